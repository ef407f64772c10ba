import { spawn } from 'node:child_process'

const OPENERS: Partial<Record<NodeJS.Platform, [string, ...string[]]>> = {
  darwin: ['open'],
  // `start` of the shell would read `&` in an address as its own.
  win32: ['rundll32', 'url.dll,FileProtocolHandler'],
}

/**
 * Opens an address in the user's browser, as far as there is one. It is shown
 * beside this, so that nobody depends on it.
 *
 * @param url - http or https
 */
export function openBrowser(url: URL): void {
  if (!/^https?:$/.test(url.protocol)) return
  const [command, ...words] = OPENERS[process.platform] ?? ['xdg-open']
  const child = spawn(command, [...words, url.href], {
    stdio: 'ignore',
    detached: true,
  })
  // There may be no such program.
  child.on('error', () => {})
  child.unref()
}
