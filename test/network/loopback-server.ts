import { once } from 'node:events'
import { createServer } from 'node:http'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { RequestError } from './http.ts'

/** Address everything in the local network listens on. */
export const LOOPBACK = '127.0.0.1'

/**
 * How long an idle connection stays open, in milliseconds. Node's five seconds
 * are less than a client may spend hashing between two requests, and it would
 * then write to a connection that is just being closed.
 */
const KEEP_ALIVE = 300_000

export type Handler = (
  request: IncomingMessage,
  response: ServerResponse
) => void | Promise<void>

export interface LoopbackServer extends AsyncDisposable {
  port: number
  /** Where it listens, without a slash at the end. */
  url: `http://${string}`
  /**
   * Starts to answer requests. What the handler throws becomes an answer, or
   * breaks the connection if the answer has begun.
   */
  serve(handler: Handler): void
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
    serve: (handler) => {
      server.on('request', (request, response) => {
        new Promise((resolve) => {
          resolve(handler(request, response))
        }).catch((error: unknown) => {
          sendError(request, response, error)
        })
      })
    },
    [Symbol.asyncDispose]: () => closeServer(server),
  }
}

/** Closes a server without waiting for its connections to end. */
export async function closeServer(server: Server): Promise<void> {
  const closed = once(server, 'close')
  server.close()
  server.closeAllConnections()
  await closed
}

function sendError(
  request: IncomingMessage,
  response: ServerResponse,
  error: unknown
): void {
  if (response.headersSent) {
    response.destroy()
    return
  }
  const status = error instanceof RequestError ? error.status : 500
  response.writeHead(status, { 'content-type': 'text/plain' })
  response.end(String(error))
  // A client that is still sending gets to read the answer.
  request.resume()
}

/** A port that nothing listens on. */
export async function findFreePort(): Promise<number> {
  await using server = await openLoopbackServer()
  return server.port
}
