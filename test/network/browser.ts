import { build } from 'esbuild'
import { chromium, type Browser, type Page } from 'playwright-core'
import { openLoopbackServer } from './loopback-server.ts'

/** A real browser, and a site of its own for each script. */
export interface RealBrowser extends AsyncDisposable {
  browser: Browser
  /**
   * Opens a page that has loaded a script.
   *
   * @param entry - path of a module that the page runs, with what it imports
   */
  open(entry: string): Promise<Page>
}

/** Starts the Chromium that `scripts/with-chromium.sh` has found. */
export async function startBrowser(): Promise<RealBrowser> {
  await using resources = new AsyncDisposableStack()
  const executablePath = process.env['CHROMIUM'] ?? '/usr/bin/chromium'
  const browser = await chromium.launch({
    executablePath,
    // There is no sandbox within a container, and nothing here is foreign.
    args: ['--no-sandbox', '--disable-gpu', '--no-first-run'],
  })
  resources.defer(() => browser.close())
  const owned = resources.move()
  return {
    browser,
    async open(entry) {
      const { outputFiles } = await build({
        entryPoints: [entry],
        bundle: true,
        write: false,
        format: 'esm',
        platform: 'browser',
        target: 'es2022',
      })
      const [script] = outputFiles
      if (!script) throw new Error(`${entry} came to nothing`)
      const server = owned.use(await openLoopbackServer())
      server.serve((request, response) => {
        const isScript = request.url === '/script.js'
        response.writeHead(200, {
          'content-type': isScript ? 'text/javascript' : 'text/html',
        })
        response.end(
          isScript
            ? script.contents
            : '<!doctype html><script type="module" src="/script.js"></script>'
        )
      })
      const page = await browser.newPage()
      const failed = new Promise<never>((_resolve, reject) => {
        page.on('pageerror', reject)
      })
      // Later failures show where the page is used.
      failed.catch(() => {})
      await Promise.race([page.goto(server.url), failed])
      await Promise.race([
        page.waitForFunction(() => 'ready' in globalThis),
        failed,
      ])
      return page
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}
