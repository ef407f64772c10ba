import { once } from 'node:events'
import { request as forward } from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { pipeline } from 'node:stream/promises'
import { openLoopbackServer, type LoopbackServer } from './loopback-server.ts'
import { startPds } from './pds.ts'
import type { Pds, PdsOptions } from './pds.ts'

/** What a host does with a request: what it should, or something else. */
export type Ailment =
  | 'none'
  /** Takes the request and never answers. */
  | 'hangs'
  /** Answers, and stops in the middle. */
  | 'stalls'
  /** Breaks the connection. */
  | 'resets'
  | { status: number; headers?: Record<string, string>; body?: string }

/** A request to read an account. */
export interface Asked {
  /** Name of the XRPC method. */
  method: string
  /** Of the account it was for. */
  did: string | undefined
  /** Of the blob it was for. */
  cid: string | undefined
  /** Unix milliseconds. */
  at: number
}

/** A real PDS that the outside reaches through something that may be unwell. */
export interface UnwellHost extends AsyncDisposable {
  /** Answers as it should, whatever ails the host. */
  pds: Pds
  /** Name by which accounts say where they are. */
  host: string
  /** Asked at each request from outside to read an account. */
  ailment: (asked: Asked) => Ailment
  /** These requests so far, in the order of their coming. */
  asked: Asked[]
  /** Nothing listens any more. */
  die(): Promise<void>
  /** Listens again where it did. */
  revive(): Promise<void>
}

/** Starts a PDS behind a proxy; its accounts name the proxy as their host. */
export async function startUnwellHost(
  options: PdsOptions
): Promise<UnwellHost> {
  await using resources = new AsyncDisposableStack()
  let server: LoopbackServer | undefined = await openLoopbackServer()
  const { port } = server
  resources.defer(() => server?.[Symbol.asyncDispose]())
  const pds = resources.use(
    await startPds({ ...options, settings: { ...options.settings, port } })
  )
  const handle = async (
    request: IncomingMessage,
    response: ServerResponse
  ): Promise<void> => {
    const url = new URL(request.url ?? '/', pds.url)
    const asked = {
      method: url.pathname.replace('/xrpc/', ''),
      did: url.searchParams.get('did') ?? undefined,
      cid: url.searchParams.get('cid') ?? undefined,
      at: Date.now(),
    }
    const isReading = asked.method.startsWith('com.atproto.sync.')
    if (isReading) unwell.asked.push(asked)
    const ailment = isReading ? unwell.ailment(asked) : 'none'
    if (ailment === 'hangs') return
    if (ailment === 'resets') {
      request.destroy()
      return
    }
    if (typeof ailment === 'object') {
      response.writeHead(ailment.status, ailment.headers)
      response.end(ailment.body)
      return
    }
    const forwarded = forward(url, {
      method: request.method,
      headers: request.headers,
    })
    const [[answer]] = (await Promise.all([
      once(forwarded, 'response'),
      pipeline(request, forwarded),
    ])) as [[IncomingMessage], void]
    response.writeHead(answer.statusCode ?? 502, answer.headers)
    if (ailment === 'stalls') {
      response.flushHeaders()
      answer.destroy()
      return
    }
    await pipeline(answer, response)
  }
  server.serve(handle)

  const owned = resources.move()
  const unwell: UnwellHost = {
    pds,
    host: `localhost:${port}`,
    ailment: () => 'none',
    asked: [],
    async die() {
      await server?.[Symbol.asyncDispose]()
      server = undefined
    },
    async revive() {
      server = await openLoopbackServer(port)
      server.serve(handle)
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
  return unwell
}
