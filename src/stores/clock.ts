import { setTimeout as sleep } from 'node:timers/promises'
import { PostgresAdapter, sql, type Kysely } from 'kysely'
import { LRUCache } from 'lru-cache'
import {
  StoreUnavailableError,
  TooManyHeadsError,
  UnknownParentError,
} from './errors.ts'
import { inGroups } from './in-groups.ts'
import type { ClockEvent, ClockStore } from './interface.ts'
import { batchesOf, toBytes } from './rows.ts'
import type { Tables } from './tables.ts'

/** Clocks and events of which is remembered that they are there. */
const MAX_KNOWN = { clocks: 10_000, events: 50_000 }
/** Rows that PostgreSQL takes along with the new heads, in one statement. */
const MAX_ROWS_AT_ONCE = 2_000
/** Times that another process may be faster, each after a longer break. */
const MAX_ATTEMPTS = 200
const MAX_BREAK_MS = 50

interface Advance {
  space: string
  events: ClockEvent[]
  maxHeads: number
}

/** What is known of a clock, and what is about to be written. */
interface Clock {
  /** The head as it was read, literally. */
  last: string
  head: Set<string>
  accepted: Set<string>
  fresh: ClockEvent[]
}

/** What is there, and never goes away. */
interface Known {
  clocks: LRUCache<string, true>
  /** By {@link keyOf}. */
  events: LRUCache<string, true>
}

/**
 * For each clock, the accepted events and its head. An event is accepted after
 * its parents, so that it can only ever leave the head: no advance has to look
 * at more than the head, the events it brings and their parents.
 *
 * Advances that come at the same time are written together, and share what a
 * durable commit costs; each is still accepted or refused by itself. What is
 * written depends on the head being what was read. That is enough: an accepted
 * event changes the head, and no head ever comes back.
 */
export function createClockStore(db: Kysely<Tables>): ClockStore {
  const known: Known = {
    clocks: new LRUCache({ max: MAX_KNOWN.clocks }),
    events: new LRUCache({ max: MAX_KNOWN.events }),
  }
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
      return row ? parseHead(row.head) : []
    },

    advance: (space, events, { maxHeads = Infinity } = {}) =>
      advance({ space, events, maxHeads }),

    async unknown(space, events) {
      const clocks = await readClocks(db, known, new Map([[space, events]]))
      const accepted = clocks.get(space)?.accepted
      return events.filter((event) => !accepted?.has(event))
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
  known: Known,
  advances: Advance[]
): Promise<PromiseSettledResult<string[]>[]> {
  const answers = new Map<Advance, PromiseSettledResult<string[]>>()
  let left = advances
  for (let attempt = 1; left.length > 0; attempt++) {
    if (attempt > MAX_ATTEMPTS) {
      throw new StoreUnavailableError(
        'Others advance the same clock all the time. Try again.'
      )
    }
    await createClocks(db, known, left)
    const clocks = await readClocks(db, known, namesIn(left))
    const tried = left.map(
      (advance) =>
        [
          advance,
          settle(() => apply(clocks.get(advance.space), advance)),
        ] as const
    )
    const lost = await write(db, clocks)
    for (const [advance, answer] of tried) {
      if (lost.has(advance.space)) continue
      answers.set(advance, answer)
      if (answer.status === 'rejected') continue
      for (const { event } of advance.events) {
        known.events.set(keyOf(advance.space, event), true)
      }
    }
    left = left.filter(({ space }) => lost.has(space))
    if (left.length > 0) {
      await sleep(Math.random() * Math.min(attempt, MAX_BREAK_MS))
    }
  }
  return advances.flatMap((advance) => answers.get(advance) ?? [])
}

function namesIn(advances: Advance[]): Map<string, Set<string>> {
  const names = new Map<string, Set<string>>()
  for (const { space, events } of advances) {
    const named = names.get(space) ?? new Set()
    names.set(space, named)
    for (const { event, parents } of events) {
      named.add(event)
      for (const parent of parents) named.add(parent)
    }
  }
  return names
}

/** Makes rows for clocks that nobody has advanced. */
async function createClocks(
  db: Kysely<Tables>,
  known: Known,
  advances: Advance[]
): Promise<void> {
  const spaces = new Set(advances.map(({ space }) => space))
  const strangers = [...spaces].filter((space) => !known.clocks.has(space))
  if (strangers.length === 0) return
  await db
    .insertInto('clocks')
    // In one order, so that none waits for one that waits for it.
    .values(strangers.sort().map((space) => ({ space, head: '[]' })))
    .onConflict((conflict) => conflict.doNothing())
    .execute()
  for (const space of strangers) known.clocks.set(space, true)
}

/**
 * Reads the heads, and then which events are accepted: one that is accepted
 * meanwhile changes a head that was read already.
 *
 * @param names - of events, by clock
 */
async function readClocks(
  db: Kysely<Tables>,
  known: Known,
  names: Map<string, Iterable<string>>
): Promise<Map<string, Clock>> {
  const clocks = new Map<string, Clock>()
  const pairs: { space: string; event: string }[] = []
  for (const [space, events] of names) {
    const accepted = new Set<string>()
    clocks.set(space, { last: '[]', head: new Set(), accepted, fresh: [] })
    for (const event of events) {
      if (known.events.has(keyOf(space, event))) accepted.add(event)
      else pairs.push({ space, event })
    }
  }
  for (const [at, batch] of batchesOf(pairs).entries()) {
    const heads = db
      .selectFrom('clocks')
      .select(['space', 'head', sql<string | null>`null`.as('event')])
      .where('space', 'in', [...clocks.keys()])
    const events = db
      .selectFrom('events')
      .select(['space', sql<string>`null`.as('head'), 'event'])
      .where((row) =>
        row.or(
          [...Map.groupBy(batch, ({ space }) => space)].map(([space, pairs]) =>
            row.and([
              row('space', '=', space),
              row(
                'event',
                'in',
                pairs.map(({ event }) => event)
              ),
            ])
          )
        )
      )
    const query =
      at > 0 ? events : batch.length > 0 ? heads.unionAll(events) : heads
    const rows = await query.execute()
    for (const { space, head, event } of rows) {
      const clock = clocks.get(space)
      if (event !== null) {
        clock?.accepted.add(event)
        known.events.set(keyOf(space, event), true)
      } else if (clock) {
        clock.last = head
        clock.head = new Set(parseHead(head))
      }
    }
  }
  return clocks
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
  if (!clock) throw new TypeError(`the clock of ${space} was not read`)
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

/** A new head in the place of the last one, along with its events. */
interface Move {
  space: string
  last: string
  next: string
  rows: { space: string; event: string; bytes: Uint8Array }[]
}

/** @returns clocks that others have advanced meanwhile; of them, nothing is written */
async function write(
  db: Kysely<Tables>,
  clocks: Map<string, Clock>
): Promise<Set<string>> {
  const moves: Move[] = []
  for (const [space, { last, head, fresh }] of clocks) {
    if (fresh.length === 0) continue
    const next = JSON.stringify([...head].sort())
    const rows = fresh.map(({ event, bytes }) => ({ space, event, bytes }))
    moves.push({ space, last, next, rows })
  }
  if (moves.length === 0) return new Set()
  const rows = moves.reduce((sum, move) => sum + move.rows.length, 0)
  const isPostgres = db.getExecutor().adapter instanceof PostgresAdapter
  const moved =
    isPostgres && rows <= MAX_ROWS_AT_ONCE
      ? await writeAtOnce(db, moves)
      : await writeOneByOne(db, moves)
  const lost = moves.map(({ space }) => space)
  return new Set(lost.filter((space) => !moved.has(space)))
}

/** One statement that begins, writes and commits: one way to the server and back. */
async function writeAtOnce(
  db: Kysely<Tables>,
  moves: Move[]
): Promise<Set<string>> {
  const heads = moves.map(
    ({ space, last, next }) => sql`(${space}, ${last}, ${next})`
  )
  const rows = moves
    .flatMap((move) => move.rows)
    .map(
      ({ space, event, bytes }) => sql`(${space}, ${event}, ${bytes}::bytea)`
    )
  try {
    const { rows: moved } = await sql<{ space: string }>`
      with moved as (
        update clocks set head = move.next
        from (values ${sql.join(heads)}) as move (space, last, next)
        where clocks.space = move.space and clocks.head = move.last
        returning clocks.space
      ), written as (
        insert into events (space, event, bytes)
        select fresh.space, fresh.event, fresh.bytes
        from (values ${sql.join(rows)}) as fresh (space, event, bytes)
        where fresh.space in (select space from moved)
      )
      select space from moved`.execute(db)
    return new Set(moved.map(({ space }) => space))
  } catch (error) {
    // Two that advance the same clocks may wait for each other.
    if ((error as { code?: unknown }).code === DEADLOCK) return new Set()
    throw error
  }
}

const DEADLOCK = '40P01'

async function writeOneByOne(
  db: Kysely<Tables>,
  moves: Move[]
): Promise<Set<string>> {
  return db.transaction().execute(async (transaction) => {
    const moved = new Set<string>()
    for (const { space, last, next, rows } of moves) {
      const { numUpdatedRows } = await transaction
        .updateTable('clocks')
        .set({ head: next })
        .where('space', '=', space)
        .where('head', '=', last)
        .executeTakeFirst()
      if (numUpdatedRows === 0n) continue
      moved.add(space)
      for (const batch of batchesOf(rows)) {
        await transaction.insertInto('events').values(batch).execute()
      }
    }
    return moved
  })
}

function settle<T>(attempt: () => T): PromiseSettledResult<T> {
  try {
    return { status: 'fulfilled', value: attempt() }
  } catch (reason) {
    return { status: 'rejected', reason }
  }
}

function parseHead(head: string): string[] {
  return JSON.parse(head) as string[]
}

function keyOf(space: string, event: string): string {
  return `${space} ${event}`
}
