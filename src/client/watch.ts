import { Message } from '@ucanto/core'
import { CAR } from '@ucanto/transport'
import { base64url } from 'multiformats/bases/base64'
import { CID } from 'multiformats/cid'
import type { EventLink } from '../backup/interface.ts'
import { Clock } from '../capabilities/index.ts'
import {
  send,
  ServiceUnreachableError,
  type Connection,
  type InvocationConfig,
} from './connection.ts'

/** Seconds for which a service is allowed to tell about the clock. */
const LIFETIME = 60 * 60
/** Characters of one event, at most: a head of 32 CIDs is much less. */
const MAX_EVENT_LENGTH = 64 * 1024

/** The service does not tell, or not any more. */
export class WatchRefusedError extends Error {
  override readonly name = 'WatchRefusedError'
}

/**
 * Watches a clock: gives its head at once, and again whenever it changes.
 *
 * @param options.url - base URL of the service
 * @param options.signal - ends the watching
 * @throws {@link ServiceUnreachableError} {@link WatchRefusedError}
 * @example
 * ```ts
 * for await (const head of watch({ issuer, with: space, proofs }, { connection, url })) {
 *   console.log(head)
 * }
 * ```
 */
export async function* watch(
  { issuer, audience, with: space, proofs }: InvocationConfig,
  {
    connection,
    url,
    lifetime = LIFETIME,
    fetch = globalThis.fetch.bind(globalThis),
    signal,
  }: {
    connection: Connection
    url: URL
    /** Seconds after which the service must be asked anew. */
    lifetime?: number
    fetch?: typeof globalThis.fetch
    signal?: AbortSignal
  }
): AsyncGenerator<EventLink[], void> {
  const invocation = await Clock.head
    .invoke({
      issuer,
      audience: audience ?? connection.id,
      with: space,
      proofs,
      expiration: Math.floor(Date.now() / 1000) + lifetime,
      nonce: crypto.randomUUID(),
    })
    .delegate()
  const message = await Message.build({ invocations: [invocation] as never })
  const { body } = CAR.request.encode(message)
  const response = await send(fetch, new URL(`/clock/${space}/events`, url), {
    headers: {
      accept: 'text/event-stream',
      authorization: `UCAN ${base64url.baseEncode(body)}`,
    },
    ...(signal ? { signal } : {}),
  })
  if (!response.body) throw new ServiceUnreachableError(`${url.href} is silent`)
  for await (const { name, data } of eventsIn(response.body)) {
    if (name === 'end') {
      const { name: why, message: what } = Object(JSON.parse(data)) as Record<
        string,
        unknown
      >
      throw new WatchRefusedError(
        `the service does not tell about the clock any more: ${String(why)}: ${String(what)}`
      )
    }
    if (name !== 'head') continue
    const { head } = Object(JSON.parse(data)) as { head?: string[] }
    yield (head ?? []).map((event) => CID.parse(event) as EventLink)
  }
}

async function* eventsIn(
  body: ReadableStream<Uint8Array>
): AsyncGenerator<{ name: string; data: string }> {
  const decoder = new TextDecoder()
  let text = ''
  for await (const chunk of body as unknown as AsyncIterable<Uint8Array>) {
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
      if (name) yield { name, data: fields.get('data') ?? '{}' }
    }
    if (text.length > MAX_EVENT_LENGTH) {
      throw new WatchRefusedError('the service sends what is no head')
    }
  }
}
