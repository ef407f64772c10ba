import type { Clock, EventLink } from '../backup/index.ts'
import { MAX_NEW_EVENTS, parentsFirst } from '../service/clock.ts'
import type { Block, BlockFetcher } from '../space/index.ts'
import { walkHistory, type HistoryEvent } from './clock-history.ts'
import { MissingEventError, ServiceError } from './errors.ts'
import type { Session } from './session.ts'
import { inWaves } from './waves.ts'

/** Events that are read between two looks at what the clock knows. */
const MAX_STRIDE = 256

/** Whether a clock has accepted an event. Changes nothing. */
export async function knowsEvent(
  clock: Clock,
  event: EventLink
): Promise<boolean> {
  try {
    // Without its block, no event is accepted that was not before.
    await clock.advance(event, [])
    return true
  } catch (error) {
    if (isMissingBlock(error)) return false
    throw error
  }
}

/** Those of the events that a clock has not accepted. */
export async function unknownEvents(
  clock: Clock,
  events: EventLink[]
): Promise<EventLink[]> {
  const unknown = await inWaves(events, async (event) =>
    (await knowsEvent(clock, event)) ? [] : [event]
  )
  return unknown.flat()
}

/** Whether a clock refused an event because it lacks the block of one. */
export function isMissingBlock(error: unknown): boolean {
  const { name } = Object((error as Error).cause) as Partial<Error>
  return name === 'MissingBlock' || name === 'MissingBlockError'
}

/**
 * Tells a clock of events and of all before them that it does not know, however
 * many: earlier ones first, no more in a call than a service takes. Telling
 * twice changes nothing.
 *
 * @param blocks - where events are read
 * @returns number of events that were new to the clock
 * @throws {@link MissingEventError} before anything is told, if an event that
 *   the clock needs cannot be read
 */
export async function bringEvents(
  clock: Clock,
  blocks: BlockFetcher,
  heads: EventLink[],
  {
    signal,
    onProgress,
  }: {
    signal: AbortSignal
    /** @param told - of `read` */
    onProgress?: (read: number, told: number) => void
  }
): Promise<number> {
  let nextLook = 0
  const { events } = await walkHistory(blocks, heads, {
    signal,
    onRead: throwIfMissing,
    onWave: async (next, read) => {
      onProgress?.(read, 0)
      if (read < nextLook) return next
      // Mostly the clock lacks little: it is asked often at first.
      nextLook = read + Math.min(read + 1, MAX_STRIDE)
      return unknownEvents(clock, next)
    },
  })
  const ordered = parentsFirst(events)
  for (let start = 0; start < ordered.length; start += MAX_NEW_EVENTS) {
    const batch = ordered.slice(start, start + MAX_NEW_EVENTS)
    const replaced = new Set(batch.flatMap(({ parents }) => parents))
    const attached = batch.map(({ block }) => block as Block)
    for (const { link, event } of batch) {
      if (!replaced.has(event)) await clock.advance(link, attached, { signal })
    }
    onProgress?.(ordered.length, start + batch.length)
  }
  return ordered.length
}

/**
 * Where events are read for a clock that lacks them: in the Space, and if it
 * does not give one, in the agent's own store.
 */
export function createEventSource(session: Session): BlockFetcher {
  return {
    async get(link) {
      const [inSpace] = await Promise.allSettled([session.reader.get(link)])
      if (inSpace.status === 'fulfilled' && inSpace.value) return inSpace.value
      const { clock } = await session.stores()
      const bytes = await clock.event(session.space(), link.toString())
      if (bytes) return { cid: link as EventLink, bytes }
      if (inSpace.status === 'rejected') throw inSpace.reason
      return undefined
    },
  }
}

/**
 * Tells a clock of one event, and of those before it in the same call.
 *
 * @throws {@link MissingEventError} when one before it is needed and cannot be
 *   read, {@link ServiceError} when the clock lacks more than one call may bring
 */
export async function advanceTo(
  session: Session,
  clock: Clock,
  { link, block }: { link: EventLink; block: Block },
  signal: AbortSignal
): Promise<void> {
  try {
    // Mostly the clock lacks no other.
    await clock.advance(link, [block], { signal })
    return
  } catch (error) {
    if (!isMissingBlock(error)) throw error
  }
  const { events, more } = await walkHistory(
    createEventSource(session),
    [link],
    {
      limit: MAX_NEW_EVENTS,
      signal,
    }
  )
  const attached = parentsFirst(events).flatMap(({ block }) => block ?? [])
  try {
    await clock.advance(link, attached, { signal })
  } catch (cause) {
    const missing = [...events.values()].find(({ error }) => error)
    if (missing) {
      throw new MissingEventError(
        `the clock does not take the event: one before it, ${missing.event}, cannot be read (${missing.error?.message})`,
        { cause }
      )
    }
    if (!more) throw cause
    const { serviceUrl } = session.config
    const hint = serviceUrl
      ? `\`bluesky-backups clock fork --to ${serviceUrl.href} --event ${link}\` tells it of all`
      : '`bluesky-backups clock diverge --with URL --merge` brings it all that the service at URL has'
    throw new ServiceError(
      'TooManyEvents',
      `the clock lacks more than ${MAX_NEW_EVENTS} events before this one; ${hint}`,
      { cause }
    )
  }
}

function throwIfMissing({ event, error }: HistoryEvent): void {
  if (!error) return
  throw new MissingEventError(
    `the event ${event} is needed and cannot be read: ${error.message}; try again later, or name another gateway with --gateway-urls`,
    { cause: error }
  )
}
