import type { Kysely } from 'kysely'
import { inBatches, toBytes } from './rows.ts'
import { TooManyHeadsError, UnknownParentError } from './errors.ts'
import type { ClockEvent, ClockStore } from './interface.ts'
import type { Tables } from './tables.ts'

/**
 * For each clock, the accepted events and which of them are its head. An event
 * is accepted after its parents, so that it can only ever leave the head: no
 * advance has to look at more than the events it brings and their parents.
 */
export function createClockStore(db: Kysely<Tables>): ClockStore {
  return {
    head: (space) => readHead(db, space),

    async advance(space, events, { maxHeads = Infinity } = {}) {
      return db.transaction().execute(async (transaction) => {
        await lockClock(transaction, space)
        const fresh = await selectFresh(transaction, space, events)
        if (fresh.length === 0) return readHead(transaction, space)
        const replaced = new Set(fresh.flatMap(({ parents }) => parents))
        await inBatches(fresh, (batch) =>
          transaction
            .insertInto('events')
            .values(batch.map(({ event, bytes }) => ({ space, event, bytes })))
            .execute()
        )
        let removed = 0
        await inBatches([...replaced], async (batch) => {
          const { numDeletedRows } = await transaction
            .deleteFrom('heads')
            .where('space', '=', space)
            .where('event', 'in', batch)
            .executeTakeFirst()
          removed += Number(numDeletedRows)
        })
        const heads = fresh.filter(({ event }) => !replaced.has(event))
        await inBatches(heads, (batch) =>
          transaction
            .insertInto('heads')
            .values(batch.map(({ event }) => ({ space, event })))
            .execute()
        )
        const head = await readHead(transaction, space)
        // What replaces some of too many is a step in the right direction.
        const before = head.length - heads.length + removed
        if (head.length > maxHeads && head.length > before) {
          throw new TooManyHeadsError(
            `The clock of ${space} would have ${head.length} events at its head, and at most ${maxHeads} may stand there. Merge them first: advance with an event whose parents they are.`
          )
        }
        return head
      })
    },

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

/** Makes advances of the same clock follow one another, across processes. */
async function lockClock(db: Kysely<Tables>, space: string): Promise<void> {
  await db
    .insertInto('clocks')
    .values({ space })
    .onConflict((conflict) => conflict.doNothing())
    .execute()
  await db
    .selectFrom('clocks')
    .select('space')
    .where('space', '=', space)
    .forUpdate()
    .execute()
}

async function readHead(db: Kysely<Tables>, space: string): Promise<string[]> {
  const rows = await db
    .selectFrom('heads')
    .select('event')
    .where('space', '=', space)
    .execute()
  // Databases sort text by rules of their own.
  return rows.map(({ event }) => event).sort()
}

/** @returns those of the events that are not accepted, each once */
async function selectFresh(
  db: Kysely<Tables>,
  space: string,
  events: ClockEvent[]
): Promise<ClockEvent[]> {
  const accepted = await selectAccepted(
    db,
    space,
    new Set(events.flatMap(({ event, parents }) => [event, ...parents]))
  )
  const fresh = []
  for (const event of events) {
    if (accepted.has(event.event)) continue
    const missing = event.parents.find((parent) => !accepted.has(parent))
    if (missing !== undefined) {
      throw new UnknownParentError(
        `Event ${event.event} has a parent ${missing} that the clock of ${space} has not accepted. Advance with the parent first.`
      )
    }
    accepted.add(event.event)
    fresh.push(event)
  }
  return fresh
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
