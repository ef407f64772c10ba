import { sql, type Kysely } from 'kysely'
import { LRUCache } from 'lru-cache'
import { TooManyHeadsError, UnknownParentError } from './errors.ts'
import { inGroups } from './in-groups.ts'
import type { ClockEvent, ClockStore } from './interface.ts'
import { inBatches, toBytes } from './rows.ts'
import type { Tables } from './tables.ts'

/** Clocks of which is remembered that they have a row. */
const MAX_KNOWN = 10_000

interface Advance {
  space: string
  events: ClockEvent[]
  maxHeads: number
}

/** What a transaction knows of a clock, and what it is about to write. */
interface Clock {
  head: Set<string>
  accepted: Set<string>
  fresh: ClockEvent[]
}

/**
 * For each clock, the accepted events and which of them are its head. An event
 * is accepted after its parents, so that it can only ever leave the head: no
 * advance has to look at more than the head, the events it brings and their
 * parents.
 *
 * Advances that come at the same time share a transaction, and with it what a
 * durable commit costs. Each is still accepted or refused by itself.
 */
export function createClockStore(db: Kysely<Tables>): ClockStore {
  const known = new LRUCache<string, true>({ max: MAX_KNOWN })
  const advance = inGroups((advances: Advance[]) =>
    advanceAll(db, known, advances)
  )
  return {
    async head(space) {
      const row = await db
        .selectFrom('clocks')
        .select('head')
        .where('space', '=', space)
        .executeTakeFirst()
      return row ? (JSON.parse(row.head) as string[]) : []
    },

    advance: (space, events, { maxHeads = Infinity } = {}) =>
      advance({ space, events, maxHeads }),

    async unknown(space, events) {
      const accepted = await selectAccepted(db, space, new Set(events))
      return events.filter((event) => !accepted.has(event))
    },

    async event(space, event) {
      const row = await db
        .selectFrom('events')
        .select('bytes')
        .where('space', '=', space)
        .where('event', '=', event)
        .executeTakeFirst()
      return row && toBytes(row.bytes)
    },
  }
}

async function advanceAll(
  db: Kysely<Tables>,
  known: LRUCache<string, true>,
  advances: Advance[]
): Promise<PromiseSettledResult<string[]>[]> {
  const named = new Map<string, Set<string>>()
  for (const { space, events } of advances) {
    let names = named.get(space)
    if (!names) named.set(space, (names = new Set()))
    for (const { event, parents } of events) {
      names.add(event)
      for (const parent of parents) names.add(parent)
    }
  }
  const answers = await db.transaction().execute(async (transaction) => {
    const clocks = await lockClocks(transaction, known, [...named.keys()])
    for (const [space, clock] of clocks) {
      clock.accepted = await selectAccepted(
        transaction,
        space,
        named.get(space) ?? new Set()
      )
    }
    const answers = advances.map((advance) =>
      settle(() => apply(clocks.get(advance.space), advance))
    )
    await write(transaction, clocks)
    return answers
  })
  // Not before the rows are there to stay.
  for (const space of named.keys()) known.set(space, true)
  return answers
}

/**
 * Makes advances of the same clock follow one another, across processes. Rows
 * are made and locked in the order of their names, so that none waits for one
 * that waits for it.
 */
async function lockClocks(
  db: Kysely<Tables>,
  known: LRUCache<string, true>,
  spaces: string[]
): Promise<Map<string, Clock>> {
  const strangers = spaces.filter((space) => !known.has(space)).sort()
  if (strangers.length > 0) {
    await db
      .insertInto('clocks')
      .values(strangers.map((space) => ({ space, head: '[]' })))
      .onConflict((conflict) => conflict.doNothing())
      .execute()
  }
  const rows = await db
    .selectFrom('clocks')
    .selectAll()
    .where('space', 'in', spaces)
    .orderBy('space')
    .forUpdate()
    .execute()
  return new Map(
    rows.map(({ space, head }) => [
      space,
      {
        head: new Set(JSON.parse(head) as string[]),
        accepted: new Set<string>(),
        fresh: [],
      },
    ])
  )
}

/**
 * Accepts the events of one advance, all or none.
 *
 * @returns the head
 */
function apply(
  clock: Clock | undefined,
  { space, events, maxHeads }: Advance
): string[] {
  if (!clock) throw new TypeError(`the clock of ${space} has lost its row`)
  const fresh = new Map<string, ClockEvent>()
  const head = new Set(clock.head)
  for (const event of events) {
    if (clock.accepted.has(event.event) || fresh.has(event.event)) continue
    for (const parent of event.parents) {
      if (!clock.accepted.has(parent) && !fresh.has(parent)) {
        throw new UnknownParentError(
          `Event ${event.event} has a parent ${parent} that the clock of ${space} has not accepted. Advance with the parent first.`
        )
      }
      head.delete(parent)
    }
    head.add(event.event)
    fresh.set(event.event, event)
  }
  // What replaces some of too many is a step in the right direction.
  if (head.size > maxHeads && head.size > clock.head.size) {
    throw new TooManyHeadsError(
      `The clock of ${space} would have ${head.size} events at its head, and at most ${maxHeads} may stand there. Merge them first: advance with an event whose parents they are.`
    )
  }
  for (const event of fresh.keys()) clock.accepted.add(event)
  clock.fresh.push(...fresh.values())
  clock.head = head
  return [...head].sort()
}

async function write(
  db: Kysely<Tables>,
  clocks: Map<string, Clock>
): Promise<void> {
  const changed = [...clocks].filter(([, { fresh }]) => fresh.length > 0)
  if (changed.length === 0) return
  const rows = changed.flatMap(([space, { fresh }]) =>
    fresh.map(({ event, bytes }) => ({ space, event, bytes }))
  )
  await inBatches(rows, (batch) =>
    db.insertInto('events').values(batch).execute()
  )
  await db
    .insertInto('clocks')
    .values(
      changed.map(([space, { head }]) => ({
        space,
        head: JSON.stringify([...head].sort()),
      }))
    )
    .onConflict((conflict) =>
      conflict.column('space').doUpdateSet({ head: sql<string>`excluded.head` })
    )
    .execute()
}

function settle<T>(attempt: () => T): PromiseSettledResult<T> {
  try {
    return { status: 'fulfilled', value: attempt() }
  } catch (reason) {
    return { status: 'rejected', reason }
  }
}

async function selectAccepted(
  db: Kysely<Tables>,
  space: string,
  events: Set<string>
): Promise<Set<string>> {
  const accepted = new Set<string>()
  await inBatches([...events], async (batch) => {
    const rows = await db
      .selectFrom('events')
      .select('event')
      .where('space', '=', space)
      .where('event', 'in', batch)
      .execute()
    for (const { event } of rows) accepted.add(event)
  })
  return accepted
}
