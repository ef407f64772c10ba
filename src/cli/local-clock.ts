import { CID } from 'multiformats/cid'
import { ClockError } from '../backup/errors.ts'
import type { Block, Clock, EventLink } from '../backup/interface.ts'
import { Clock as RemoteClock } from '../client/index.ts'
import type { Connection, InvocationConfig } from '../client/index.ts'
import { decodeEvent, MissingBlockError } from '../space/index.ts'
import type { ClockEvent, ClockStore } from '../stores/index.ts'
import { parentsFirst } from '../service/clock.ts'
import { refused, unreachable } from './service.ts'

/** Events that one call tells a service of. */
const BATCH_SIZE = 200

/** The clock of a Space in the agent's own store, for work without a service. */
export function createLocalClock(store: ClockStore, space: string): Clock {
  return {
    async head() {
      return links(await store.head(space))
    },

    async advance(event, blocks) {
      const attached = new Map(
        blocks.map((block) => [block.cid.toString(), block])
      )
      const events = new Map<string, ClockEvent>()
      let wave = await store.unknown(space, [event.toString()])
      while (wave.length > 0) {
        const decoded = wave.map((cid) => {
          const block = attached.get(cid)
          if (!block) {
            throw new ClockError(
              `the clock of this agent does not know the event ${cid}; run the backup again, with the service that has it`,
              { cause: new MissingBlockError(`the event ${cid} is missing`) }
            )
          }
          return toClockEvent(block)
        })
        for (const each of decoded) events.set(each.event, each)
        const parents = new Set(decoded.flatMap(({ parents }) => parents))
        wave = await store.unknown(
          space,
          [...parents].filter((cid) => !events.has(cid))
        )
      }
      return links(await store.advance(space, parentsFirst(events)))
    },
  }
}

/**
 * Tells the clock of a service of the events that only the agent's own clock
 * has. That one is left as it is: telling twice changes nothing.
 *
 * @throws {@link ServiceError}
 */
export async function pushLocalClock(
  store: ClockStore,
  authority: InvocationConfig,
  connection: Connection
): Promise<void> {
  const space = authority.with
  const advance = async (events: ClockEvent[], to: ClockEvent) => {
    const out = await RemoteClock.advance(authority, CID.parse(to.event), {
      connection,
      blocks: events.map(({ event, bytes }) => ({
        cid: CID.parse(event),
        bytes,
      })),
    }).catch((cause: unknown) => {
      throw unreachable(cause)
    })
    if (out.error && out.error.name !== 'MissingBlock') {
      throw refused(out.error)
    }
    return !out.error
  }
  for (const head of await store.head(space)) {
    const event = await readEvent(store, space, head)
    // Mostly the service knows it from the last time.
    if (await advance([event], event)) continue
    const history = await readHistory(store, space, event)
    for (let start = 0; start < history.length; start += BATCH_SIZE) {
      const batch = history.slice(start, start + BATCH_SIZE)
      const replaced = new Set(batch.flatMap(({ parents }) => parents))
      for (const tip of batch) {
        if (!replaced.has(tip.event)) await advance(batch, tip)
      }
    }
  }
}

/** An event and all that came before it, parents before children. */
async function readHistory(
  store: ClockStore,
  space: string,
  last: ClockEvent
): Promise<ClockEvent[]> {
  const events = new Map([[last.event, last]])
  const stack = [last]
  for (let event = stack.pop(); event; event = stack.pop()) {
    for (const cid of event.parents) {
      if (events.has(cid)) continue
      const parent = await readEvent(store, space, cid)
      events.set(cid, parent)
      stack.push(parent)
    }
  }
  const ordered = new Map<string, ClockEvent>()
  const open = [last]
  for (let event = open.at(-1); event; event = open.at(-1)) {
    const before = event.parents.filter((cid) => !ordered.has(cid))
    if (before.length > 0 && !ordered.has(event.event)) {
      open.push(...before.map((cid) => events.get(cid) as ClockEvent))
      continue
    }
    open.pop()
    ordered.set(event.event, event)
  }
  return [...ordered.values()]
}

async function readEvent(
  store: ClockStore,
  space: string,
  cid: string
): Promise<ClockEvent> {
  const bytes = await store.event(space, cid)
  if (!bytes) {
    throw new ClockError(
      `the event ${cid} is missing from this agent's own clock; its file was changed by something else`
    )
  }
  return toClockEvent({ cid: CID.parse(cid), bytes })
}

function toClockEvent(block: Block): ClockEvent {
  const { parents } = decodeEvent(block)
  return {
    event: block.cid.toString(),
    parents: parents.map(String),
    bytes: block.bytes,
  }
}

function links(cids: string[]): EventLink[] {
  return cids.map((cid) => CID.parse(cid) as EventLink)
}
