import * as dagCbor from '@ipld/dag-cbor'
import { compareBytes } from './bytes.ts'
import { createCodec } from './codec.ts'
import { UnreadableStateError } from './errors.ts'
import type {
  Block,
  BlockFetcher,
  Event,
  EventLink,
  Link,
  State,
} from './interface.ts'
import { mergeStates } from './merge.ts'
import { type Check, checkAscending, link, list, struct } from './schema.ts'

/** Size of an event in bytes, at most. */
export const MAX_EVENT_SIZE = 4096

/** Events that one event replaces, at most. */
export const MAX_PARENTS = 32

/** Events that are read at the same time. */
const CONCURRENCY = 8

const codec = createCodec<Event>('Event', {
  check: struct<Event>({ data: link(dagCbor.code), parents }),
  maxSize: MAX_EVENT_SIZE,
})

/**
 * Encodes an event; the parents are sorted and each is named once.
 *
 * @throws {@link DecodeError} {@link TooLargeError}
 */
export async function encodeEvent({
  data,
  parents,
}: Event): Promise<Block<Event>> {
  return codec.encode({ data, parents: sortedUnique(parents) })
}

/** @throws {@link DecodeError} {@link TooLargeError} */
export const decodeEvent = codec.decode

/** @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError} */
export const readEvent = codec.read

/**
 * Makes the event that puts a state in the place of other events.
 *
 * @param parents - the events that the state includes
 * @throws {@link TooLargeError} for more than {@link MAX_PARENTS} parents
 */
export async function createEvent(
  state: Link<State>,
  parents: EventLink[]
): Promise<Block<Event>> {
  return encodeEvent({ data: state, parents })
}

/** What the head of a clock says. */
export interface MergedHeads {
  /** The state, unless the clock has no events yet. */
  state: Link<State> | undefined
  /** Blocks of the state that are not in the Space yet. */
  additions: Block[]
  /**
   * Parents of the next event: the heads that were read, sorted, of which at
   * most {@link MAX_PARENTS}. The state includes the others too, so that the
   * events after it can replace them.
   */
  heads: EventLink[]
  /**
   * Heads whose event or state cannot be read or decoded. They are not in the
   * state and stay at the head of the clock, for an agent that can read them.
   */
  unreadable: UnreadableHead[]
}

/** A head of a clock, and why it cannot be read. */
export interface UnreadableHead {
  head: EventLink
  error: Error
}

/**
 * Reads the events of a clock's head and merges their states. Who reads the
 * same head gets the same answer, whatever its order.
 *
 * @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError}
 *   {@link UnreadableStateError} when not one of the heads can be read
 */
export async function mergeHeads(
  fetcher: BlockFetcher,
  heads: EventLink[]
): Promise<MergedHeads> {
  const unique = sortedUnique(heads)
  const unreadable: UnreadableHead[] = []
  let readable: { head: EventLink; state: Link<State> }[] = []
  for (let i = 0; i < unique.length; i += CONCURRENCY) {
    await Promise.all(
      unique.slice(i, i + CONCURRENCY).map(async (head) => {
        try {
          const { data } = await readEvent(fetcher, head)
          readable.push({ head, state: data })
        } catch (error) {
          unreadable.push({ head, error: error as Error })
        }
      })
    )
  }
  for (;;) {
    const [first] = unreadable
    if (readable.length === 0 && first) throw first.error
    const order = sortedUnique(readable.map(({ head }) => head))
    if (readable.length === 0) {
      return { state: undefined, additions: [], heads: order, unreadable }
    }
    try {
      const { root, additions } = await mergeStates(
        fetcher,
        readable.map(({ state }) => state)
      )
      return {
        state: root,
        additions,
        heads: order.slice(0, MAX_PARENTS),
        unreadable: unreadable.sort((a, b) =>
          compareBytes(a.head.bytes, b.head.bytes)
        ),
      }
    } catch (error) {
      if (!(error instanceof UnreadableStateError)) throw error
      const isBad = ({ state }: { state: Link<State> }) =>
        state.toString() === error.state
      unreadable.push(
        ...readable.filter(isBad).map(({ head }) => ({ head, error }))
      )
      readable = readable.filter((each) => !isBad(each))
    }
  }
}

function parents(value: unknown, path: string): EventLink[] {
  const check: Check<EventLink[]> = list(link(dagCbor.code), MAX_PARENTS)
  const links = check(value, path)
  checkAscending(
    links.map(({ bytes }) => bytes),
    path
  )
  return links
}

function sortedUnique(links: EventLink[]): EventLink[] {
  const byText = new Map(links.map((link) => [link.toString(), link]))
  return [...byText.values()].sort((a, b) => compareBytes(a.bytes, b.bytes))
}
