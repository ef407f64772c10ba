import { Message } from '@ucanto/core'
import type { IssuedInvocationView } from '@ucanto/interface'
import { CAR } from '@ucanto/transport'
import { base64url } from 'multiformats/bases/base64'
import { webTime } from '../backup/web-time.ts'
import { send, ServiceUnreachableError, type Connection } from './connection.ts'

/** Seconds for which a service is allowed to tell, until it is asked anew. */
const LIFETIME = 60 * 60
/** Characters of one event, at most. */
const MAX_EVENT_LENGTH = 64 * 1024
/** Milliseconds of silence after which a connection is taken for dead. */
const SILENCE = 60_000

/** Milliseconds after which an answer that breaks off was a good one. */
const STEADY = 10_000

/** The service does not tell, or not any more. */
export class WatchRefusedError extends Error {
  override readonly name = 'WatchRefusedError'
}

/** How a service is asked again whose answer broke off. */
export interface ReconnectPolicy {
  /** Milliseconds to wait at first; it doubles each time. */
  minDelay: number
  /** Milliseconds to wait at most. */
  maxDelay: number
  /** How often in a row it may fail. */
  failures: number
}

export const RECONNECT_POLICY: ReconnectPolicy = {
  minDelay: 500,
  maxDelay: 15_000,
  failures: 12,
}

/** Where to watch, and how. */
export interface WatchOptions {
  connection: Connection
  /** Base URL of the service. */
  url: URL
  /** Seconds after which the service is asked anew. */
  lifetime?: number
  /** `false` ends the watching where the answer breaks off. */
  reconnect?: ReconnectPolicy | false
  fetch?: typeof globalThis.fetch
  /** Ends the watching. */
  signal?: AbortSignal
}

/** One event of a service. */
export interface ServiceEvent {
  name: string
  data: unknown
}

/**
 * The events that a service sends. When the answer breaks off, the service is
 * asked again, and begins with how things are then.
 *
 * @param path - what to watch
 * @param invoke - makes the invocation that allows it
 * @throws {@link ServiceUnreachableError} {@link WatchRefusedError}
 */
export async function* watchEvents(
  path: string,
  invoke: (options: {
    expiration: number
    nonce: string
  }) => IssuedInvocationView,
  {
    url,
    lifetime = LIFETIME,
    reconnect = RECONNECT_POLICY,
    fetch = globalThis.fetch.bind(globalThis),
    signal,
  }: WatchOptions
): AsyncGenerator<ServiceEvent, void> {
  let failures = 0
  /** Whether the service has answered ever. */
  let told = false
  for (;;) {
    const expiration = Math.floor(Date.now() / 1000) + lifetime
    const invocation = invoke({ expiration, nonce: crypto.randomUUID() })
    try {
      const begun = Date.now()
      const body = await connectTo(new URL(path, url), invocation, {
        fetch,
        signal,
      })
      told = true
      for await (const event of eventsIn(body)) {
        failures = 0
        if (event.name !== 'end') {
          yield event
          continue
        }
        // It was only this invocation that ended.
        if (!reconnect || Date.now() < expiration * 1000) {
          throw refused(event.data)
        }
      }
      if (!reconnect) return
      if (Date.now() - begun >= STEADY) failures = 0
      throw new ServiceUnreachableError(
        `${url.href} breaks off what it tells; try again later`
      )
    } catch (error) {
      signal?.throwIfAborted()
      if (!reconnect || error instanceof WatchRefusedError) throw error
      if (!told) throw error
      const { status = 0 } = error as ServiceUnreachableError
      if (status >= 400 && status < 500) {
        throw new WatchRefusedError((error as Error).message, { cause: error })
      }
      if (++failures >= reconnect.failures) throw error
    }
    const { minDelay, maxDelay } = reconnect
    const delay = Math.min(maxDelay, minDelay * 2 ** failures)
    await webTime.sleep(delay * (0.5 + Math.random() / 2), signal)
  }
}

async function connectTo(
  url: URL,
  invocation: IssuedInvocationView,
  {
    fetch,
    signal,
  }: { fetch: typeof globalThis.fetch; signal: AbortSignal | undefined }
): Promise<ReadableStream<Uint8Array>> {
  const message = await Message.build({
    invocations: [await invocation.delegate()] as never,
  })
  const { body } = CAR.request.encode(message)
  const response = await send(fetch, url, {
    headers: {
      accept: 'text/event-stream',
      authorization: `UCAN ${base64url.baseEncode(body)}`,
    },
    ...(signal ? { signal } : {}),
  })
  if (!response.body) throw new ServiceUnreachableError(`${url.href} is silent`)
  return response.body
}

async function* eventsIn(
  body: ReadableStream<Uint8Array>
): AsyncGenerator<ServiceEvent> {
  const decoder = new TextDecoder()
  let text = ''
  for await (const chunk of chunksOf(body)) {
    text += decoder.decode(chunk, { stream: true })
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const fields = new Map(
        text
          .slice(0, end)
          .split('\n')
          .map((line) => {
            const [, name = '', value = ''] =
              /^([^:]*): ?(.*)$/.exec(line) ?? []
            return [name, value]
          })
      )
      text = text.slice(end + 2)
      const name = fields.get('event')
      if (name) yield { name, data: parse(fields.get('data') ?? '{}') }
    }
    if (text.length > MAX_EVENT_LENGTH) throw meaningless()
  }
}

/** The bytes of a body, which must not be silent for long. */
async function* chunksOf(
  body: ReadableStream<Uint8Array>
): AsyncGenerator<Uint8Array> {
  const reader = body.getReader()
  try {
    for (;;) {
      let timer: ReturnType<typeof setTimeout> | undefined
      const silence = new Promise<never>((_resolve, reject) => {
        timer = setTimeout(() => {
          reject(new ServiceUnreachableError('the service is silent'))
        }, SILENCE)
      })
      const { done, value } = await Promise.race([
        reader.read(),
        silence,
      ]).finally(() => clearTimeout(timer))
      if (done) return
      yield value
    }
  } finally {
    await reader.cancel().catch(() => {})
  }
}

/** What the service says when it does not tell any more. */
function refused(data: unknown): WatchRefusedError {
  const { name, message } = Object(data) as Record<string, unknown>
  return new WatchRefusedError(
    `the service does not tell any more: ${String(name)}: ${String(message)}`
  )
}

/** What it comes to when a service sends something else than it should. */
export function meaningless(cause?: unknown): WatchRefusedError {
  return new WatchRefusedError(
    'the service sends what has no meaning here; check its URL, and that it is of the same version',
    { cause }
  )
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw meaningless(cause)
  }
}
