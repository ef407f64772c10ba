import { once } from 'node:events'
import { createServer } from 'node:http'
import type { RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'

/** Address everything in the local network listens on. */
export const LOOPBACK = '127.0.0.1'

/**
 * How long an idle connection stays open, in milliseconds. Node's five seconds
 * are less than a client may spend hashing between two requests, and it would
 * then write to a connection that is just being closed.
 */
const KEEP_ALIVE = 300_000

export interface LoopbackServer extends AsyncDisposable {
  port: number
  /** Where it listens, without a slash at the end. */
  url: string
  /** Starts to answer requests; until then they wait. */
  serve(listener: RequestListener): void
}

/**
 * Opens an HTTP server that only programs on this machine reach.
 *
 * @param port where to listen; a free port if it is 0
 */
export async function openLoopbackServer(port = 0): Promise<LoopbackServer> {
  const server = createServer()
  server.keepAliveTimeout = KEEP_ALIVE
  server.listen(port, LOOPBACK)
  await once(server, 'listening')
  const address = server.address() as AddressInfo
  return {
    port: address.port,
    url: `http://${LOOPBACK}:${address.port}`,
    serve: (listener) => {
      server.on('request', listener)
    },
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, 'close')
      server.close()
      server.closeAllConnections()
      await closed
    },
  }
}

/** A port that nothing listens on. */
export async function findFreePort(): Promise<number> {
  await using server = await openLoopbackServer()
  return server.port
}
