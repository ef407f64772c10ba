import type { Block, Invocation, Link } from '@ucanto/interface'
import { ok } from '@ucanto/core'
import { provide } from '@ucanto/server'
import { CID } from 'multiformats/cid'
import { Clock } from '../capabilities/index.ts'
import { decodeEvent, MAX_PARENTS } from '../space/index.ts'
import { TooManyHeadsError, type ClockEvent } from '../stores/index.ts'
import type { ServiceContext } from './context.ts'
import { attachedBlocks, failure } from './invocation.ts'

/** New events that one call may bring. */
export const MAX_NEW_EVENTS = 256

/** Events at the head of a clock: as many as one event can replace. */
export const MAX_HEADS = MAX_PARENTS

/** Handlers of `clock/*`. */
export function createClockService({
  stores,
  watchers,
  provisioning,
}: Pick<ServiceContext, 'stores' | 'watchers' | 'provisioning'>) {
  return {
    head: provide(Clock.head, async ({ capability }) => ({
      ok: { head: links(await stores.clock.head(capability.with)) },
    })),

    /**
     * Verifies the event and every ancestor the clock does not know, from the
     * attached blocks alone, and accepts them all at once.
     */
    advance: provide(Clock.advance, async ({ capability, invocation }) => {
      const space = capability.with
      const admitted = await provisioning.check(space, invocation)
      if (admitted.error) return admitted
      const collected = await collectEvents(
        CID.parse(capability.nb.event.toString()),
        invocation,
        (events) => stores.clock.unknown(space, events)
      )
      if (collected.error) return collected
      try {
        const head = await stores.clock.advance(space, collected.ok, {
          maxHeads: MAX_HEADS,
        })
        if (collected.ok.length > 0) watchers.notify(space)
        return ok({ head: links(head) })
      } catch (error) {
        if (!(error instanceof TooManyHeadsError)) throw error
        return failure('TooManyHeads', error.message)
      }
    }),
  }
}

/** The event and its unknown ancestors, parents before children. */
async function collectEvents(
  event: CID,
  invocation: Invocation,
  unknown: (events: string[]) => Promise<string[]>
) {
  const blocks = attachedBlocks(invocation)
  const found = new Map<string, ClockEvent>()
  const first = event.toString()
  // One that is there is looked at before anybody is asked: most likely it is
  // new, and its parents are not. If it is known, nothing comes of it.
  let wave = blocks.has(first) ? [first] : await unknown([first])
  while (wave.length > 0) {
    const parents = new Set<string>()
    for (const cid of wave) {
      const block = blocks.get(cid)
      if (!block) {
        return failure(
          'MissingBlock',
          `the block of the event ${cid} is not attached; attach the event and all its ancestors that the clock does not know`
        )
      }
      const decoded = decode(block)
      if (decoded.error) return decoded
      found.set(cid, {
        event: cid,
        parents: decoded.ok,
        bytes: block.bytes,
      })
      if (found.size > MAX_NEW_EVENTS) {
        return failure(
          'TooManyEvents',
          `more than ${MAX_NEW_EVENTS} new events in one call; advance to an earlier one first`
        )
      }
      for (const parent of decoded.ok) {
        if (!found.has(parent)) parents.add(parent)
      }
    }
    wave = parents.size > 0 ? await unknown([...parents]) : []
  }
  return ok(parentsFirst(found))
}

function decode(block: Block) {
  try {
    const { parents } = decodeEvent(block)
    return ok(parents.map(String))
  } catch (error) {
    return failure(
      'InvalidEvent',
      `${block.cid.toString()} is not an event: ${error instanceof Error ? error.message : String(error)}`
    )
  }
}

/**
 * Orders events as a store takes them. Parents are hashed into their children,
 * so there are no cycles.
 *
 * @param events - by their CIDs
 */
export function parentsFirst<T extends Pick<ClockEvent, 'event' | 'parents'>>(
  events: Map<string, T>
): T[] {
  const ordered = new Map<string, T>()
  const stack = [...events.keys()]
  for (let cid = stack.at(-1); cid !== undefined; cid = stack.at(-1)) {
    const event = events.get(cid)
    const open =
      event && !ordered.has(cid)
        ? event.parents.filter(
            (parent: string) => events.has(parent) && !ordered.has(parent)
          )
        : []
    if (open.length > 0) {
      stack.push(...open)
      continue
    }
    stack.pop()
    if (event) ordered.set(cid, event)
  }
  return [...ordered.values()]
}

function links(cids: string[]): Link[] {
  return cids.map((cid) => CID.parse(cid))
}
