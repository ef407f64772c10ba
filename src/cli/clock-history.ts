import type {
  Block,
  BlockFetcher,
  EventLink,
  Link,
  State,
} from '../space/index.ts'
import { decodeEvent, MissingBlockError } from '../space/index.ts'
import { parentsFirst } from '../service/clock.ts'

/** Events that are read at the same time. */
const CONCURRENCY = 8

/** An event of a clock; one that could not be read says why. */
export type HistoryEvent = {
  link: EventLink
  /** CID of the event. */
  event: string
  /** CIDs of the events it replaces, as far as is known. */
  parents: string[]
} & (
  | { block: Block; state: Link<State>; error?: undefined }
  | { block?: undefined; state?: undefined; error: Error }
)

/** Part of a clock's history. */
export interface History {
  /** Children before parents. */
  events: HistoryEvent[]
  /** Whether there are earlier events. */
  more: boolean
}

/**
 * Reads one event.
 *
 * @returns the event, or why it could not be read
 */
export async function readHistoryEvent(
  blocks: BlockFetcher,
  link: EventLink
): Promise<HistoryEvent> {
  const event = link.toString()
  try {
    const block = await blocks.get(link)
    if (!block) {
      throw new MissingBlockError(`the Space does not have the event ${event}`)
    }
    const { data, parents } = decodeEvent(block)
    return { link, event, parents: parents.map(String), block, state: data }
  } catch (error) {
    return {
      link,
      event,
      parents: [],
      error: error instanceof Error ? error : new Error(String(error)),
    }
  }
}

/**
 * Walks from events to those before them, nearest first, a few at a time. What
 * cannot be read ends its line of history and nothing else.
 *
 * @param options.onWave - called before each wave with the events that are to
 *   be read next and the number of those that were read; gives back which to go
 *   on with
 * @param options.onRead - called with each event, and may throw to end the walk
 */
export async function walkHistory(
  blocks: BlockFetcher,
  from: EventLink[],
  {
    limit = Infinity,
    signal,
    onWave = async (next) => next,
    onRead,
  }: {
    /** Events that are read, at most. */
    limit?: number
    signal: AbortSignal
    onWave?: (next: EventLink[], read: number) => Promise<EventLink[]>
    onRead?: (event: HistoryEvent) => void
  }
): Promise<{ events: Map<string, HistoryEvent>; more: boolean }> {
  const events = new Map<string, HistoryEvent>()
  const seen = new Set<string>()
  let next: EventLink[] = []
  const add = (links: EventLink[]) => {
    for (const link of links) {
      if (seen.has(link.toString())) continue
      seen.add(link.toString())
      next.push(link)
    }
  }
  add(from)
  while (next.length > 0 && events.size < limit) {
    next = await onWave(next, events.size)
    const wave = next.splice(0, Math.min(CONCURRENCY, limit - events.size))
    const read = await Promise.all(
      wave.map((link) => readHistoryEvent(blocks, link))
    )
    signal.throwIfAborted()
    for (const event of read) {
      onRead?.(event)
      events.set(event.event, event)
      if (event.block) add(decodeEvent(event.block).parents)
    }
  }
  return { events, more: next.length > 0 }
}

/** Reads the last events of a clock, children before parents. */
export async function readHistory(
  blocks: BlockFetcher,
  heads: EventLink[],
  options: { limit: number; signal: AbortSignal }
): Promise<History> {
  const { events, more } = await walkHistory(blocks, heads, options)
  return { events: parentsFirst(events).reverse(), more }
}
