import type { Fetch } from './safe-fetch.ts'

/** As many as fetch itself follows. */
const MAX_REDIRECTS = 20

const REDIRECTS = new Set([301, 302, 303, 307, 308])

/**
 * Makes a fetch function that follows redirects itself, so that it can be
 * decided for each hop how it is made. A redirected request has no body.
 *
 * @param send - makes one request and follows no redirect
 */
export function byHops(send: (request: Request) => Promise<Response>): Fetch {
  return async (input, init) => {
    let request = new Request(input, init)
    const { redirect, method } = request
    for (let hops = 0; ; hops++) {
      const { url, signal } = request
      const headers = new Headers(request.headers)
      const response = await send(request)
      const location = response.headers.get('location')
      if (
        redirect === 'manual' ||
        !REDIRECTS.has(response.status) ||
        location === null
      ) {
        return hops === 0
          ? response
          : Object.defineProperty(response, 'redirected', { value: true })
      }
      await response.body?.cancel()
      const next = URL.parse(location, url)
      if (
        redirect === 'error' ||
        hops === MAX_REDIRECTS ||
        !next ||
        !['GET', 'HEAD'].includes(method)
      ) {
        throw new TypeError('fetch failed', {
          cause: new Error('unexpected redirect'),
        })
      }
      if (next.origin !== new URL(url).origin) {
        for (const name of ['authorization', 'cookie', 'dpop']) {
          headers.delete(name)
        }
      }
      request = new Request(next, { method, headers, signal, redirect })
    }
  }
}
