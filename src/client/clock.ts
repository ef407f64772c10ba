/**
 * The Merkle clock of a Space, at a service.
 *
 * @packageDocumentation
 */
import type { Block, Link } from '@ucanto/interface'
import { delegate, DID } from '@ucanto/core'
import { ClockError } from '../backup/errors.ts'
import type { Clock as SpaceClock, EventLink } from '../backup/interface.ts'
import { Clock, SPACE_INFO } from '../capabilities/index.ts'
import type { InvocationConfig, InvocationOptions } from './connection.ts'

/** Seconds for which a service may ask about the Space. */
const INFO_LIFETIME = 60 * 60

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
  { issuer, audience, with: space, proofs = [], agent }: InvocationConfig,
  event: Link,
  {
    connection,
    blocks,
    expiration,
    nonce,
  }: InvocationOptions & { blocks: Block[] }
) {
  const info =
    agent === undefined
      ? undefined
      : await delegate({
          issuer,
          audience: DID.parse(agent),
          capabilities: [{ can: SPACE_INFO, with: space }],
          expiration:
            expiration ?? Math.floor(Date.now() / 1000) + INFO_LIFETIME,
          proofs,
        })
  const attached = [...blocks, ...(info ? info.export() : [])]
  const invocation = Clock.advance.invoke({
    issuer,
    audience: audience ?? connection.id,
    with: space,
    proofs,
    nb: { event },
    // Links in the facts make the blocks part of the invocation.
    facts: [
      {
        ...Object.fromEntries(attached.map(({ cid }) => [cid.toString(), cid])),
        ...(info ? { [SPACE_INFO]: info.cid } : {}),
      },
    ],
    ...(expiration === undefined ? {} : { expiration }),
    ...(nonce === undefined ? {} : { nonce }),
  })
  for (const block of attached) invocation.attach(block)
  const receipt = await invocation.execute(connection)
  return receipt.out
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
