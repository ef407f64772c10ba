import { build } from 'esbuild'
import type { Browser, Page } from 'playwright-core'
import { openLoopbackServer } from '../network/loopback-server.ts'

/**
 * Opens a page, at an address of its own, that has loaded a script.
 *
 * @param entry - path of a module that the page runs, with what it imports; it
 *   sets `ready` on its global object when it is
 */
export async function openPage(
  browser: Browser,
  entry: string
): Promise<{ page: Page } & AsyncDisposable> {
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
  const server = await openLoopbackServer()
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
  return {
    page,
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  }
}
