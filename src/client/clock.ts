/**
 * The Merkle clock of a Space, at a service.
 *
 * @packageDocumentation
 */
import type { Block, Link } from '@ucanto/interface'
import { ClockError } from '../backup/errors.ts'
import type { Clock as SpaceClock, EventLink } from '../backup/interface.ts'
import { Clock } from '../capabilities/index.ts'
import { attachmentsOf } from './attach.ts'
import {
  commonOf,
  type InvocationConfig,
  type InvocationOptions,
} from './connection.ts'

/** Asks for the events at the head of the clock. */
export async function head(
  { issuer, audience, with: space, proofs }: InvocationConfig,
  { connection, expiration, nonce }: InvocationOptions
) {
  const receipt = await Clock.head
    .invoke({
      issuer,
      audience: audience ?? connection.id,
      with: space,
      proofs,
      ...(expiration === undefined ? {} : { expiration }),
      ...(nonce === undefined ? {} : { nonce }),
    })
    .execute(connection)
  return receipt.out
}

/**
 * Adds an event to the clock.
 *
 * @param options.blocks - the block of the event, those of its ancestors that
 *   the clock may not know, and what else should go along
 */
export async function advance(
  config: InvocationConfig,
  event: Link,
  { blocks, ...options }: InvocationOptions & { blocks: Block[] }
) {
  const attachments = await attachmentsOf(config, options, { blocks })
  const invocation = Clock.advance.invoke({
    ...commonOf(config, options),
    nb: { event },
    facts: attachments.facts,
  })
  attachments.attachTo(invocation)
  return (await invocation.execute(options.connection)).out
}

/**
 * The clock as the pipeline uses it.
 *
 * @returns a clock that throws {@link ClockError}
 */
export function createClock(
  config: InvocationConfig,
  options: InvocationOptions
): SpaceClock {
  const unwrap = async (
    doing: string,
    signal: AbortSignal | undefined,
    act: () => ReturnType<typeof head> | ReturnType<typeof advance>
  ): Promise<EventLink[]> => {
    signal?.throwIfAborted()
    let out: Awaited<ReturnType<typeof act>>
    try {
      out = await act()
    } catch (cause) {
      throw new ClockError(
        `${doing} failed: ${cause instanceof Error ? cause.message : String(cause)}`,
        { cause }
      )
    }
    if (out.error) {
      throw new ClockError(
        `${doing} was refused: ${out.error.name}: ${out.error.message.slice(0, 500)}`,
        { cause: out.error }
      )
    }
    return out.ok.head as EventLink[]
  }
  return {
    head: ({ signal } = {}) =>
      unwrap('reading the head of the clock', signal, () =>
        head(config, options)
      ),
    advance: (event, blocks, { signal } = {}) =>
      unwrap('advancing the clock', signal, () =>
        advance(config, event, { ...options, blocks })
      ),
  }
}
