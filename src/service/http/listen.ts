import { once } from 'node:events'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createAdaptorServer } from '@hono/node-server'
import { ListenError } from '../errors.ts'

/** What clients may take their time for. Milliseconds. */
const TIMEOUTS = {
  headersTimeout: 15_000,
  /** For a whole request, body and all. */
  requestTimeout: 60_000,
  /** Longer than a client is busy between two requests. */
  keepAliveTimeout: 75_000,
  /** How often these are looked at. */
  connectionsCheckingInterval: 5_000,
}

/** Authorizations with their proofs come in a header, in bytes. */
const MAX_HEADER_SIZE = 64 * 1024

/** Requests under way may take so long when the server closes, in milliseconds. */
const CLOSE_TIMEOUT = 5_000

/** Answers a request; `env` has it as Node.js has it. */
export type Handle = (
  request: Request,
  env?: object
) => Response | Promise<Response>

export interface HttpServer extends AsyncDisposable {
  port: number
}

/**
 * Listens for HTTP requests. Disposing of it lets those under way end.
 *
 * @throws {@link ListenError}
 */
export async function listen(
  handle: Handle,
  {
    host,
    port,
    closeTimeout = CLOSE_TIMEOUT,
    flags = '--',
  }: {
    host: string
    port: number
    closeTimeout?: number
    /** What the flags for host and port begin with. */
    flags?: string
  }
): Promise<HttpServer> {
  const server = createAdaptorServer({
    fetch: handle,
    overrideGlobalObjects: false,
    serverOptions: { ...TIMEOUTS, maxHeaderSize: MAX_HEADER_SIZE },
  }) as Server
  server.listen(port, host)
  try {
    await once(server, 'listening')
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    const hint = HINTS[code ?? ''] ?? `check host and port (${code})`
    throw new ListenError(
      `the service cannot listen on ${host}, port ${port}: ${hint.replace(/--(?=host|port)/, flags)}`,
      { cause }
    )
  }
  return {
    port: (server.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close')
      server.close()
      const timer = setTimeout(() => {
        server.closeAllConnections()
      }, closeTimeout)
      await closed
      clearTimeout(timer)
    },
  }
}

const HINTS: Record<string, string> = {
  EADDRINUSE:
    'something else does; stop it, or choose another port with --port',
  EACCES: 'it may not; choose a port above 1023 with --port',
  EADDRNOTAVAIL: 'this machine has no such address; choose another with --host',
  ENOTFOUND: 'there is no such host; choose another with --host',
}
