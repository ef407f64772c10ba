import { CID } from 'multiformats/cid'
import type { EventLink } from '../backup/interface.ts'
import { Clock } from '../capabilities/index.ts'
import type { InvocationConfig } from './connection.ts'
import { meaningless, watchEvents, type WatchOptions } from './events.ts'

/**
 * Watches a clock: gives its head at once, and again whenever it changes. When
 * the answer breaks off, the service is asked again.
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
  options: WatchOptions
): AsyncGenerator<EventLink[], void> {
  const events = watchEvents(
    `/clock/${space}/events`,
    (validity) =>
      Clock.head.invoke({
        issuer,
        audience: audience ?? options.connection.id,
        with: space,
        proofs,
        ...validity,
      }),
    options
  )
  let last: string | undefined
  for await (const { name, data } of events) {
    if (name !== 'head') continue
    const { head } = Object(data) as { head: string[] }
    const text = JSON.stringify(head)
    // Told again after the answer broke off.
    if (text === last) continue
    last = text
    yield readHead(head)
  }
}

function readHead(head: string[]): EventLink[] {
  try {
    return head.map((event) => CID.parse(event) as EventLink)
  } catch (cause) {
    throw meaningless(cause)
  }
}
