import type { Kysely } from 'kysely'
import type { Tables } from '../../stores/index.ts'
import type { DeadLetter, JSONValue } from './interface.ts'
import { attemptOf } from './queue.ts'
import type { ClaimedJob } from './queue.ts'

/** Keeps a job that was given up, and forgets those that died before `oldest`. */
export async function bury(
  db: Kysely<Tables>,
  { claim, job }: ClaimedJob,
  error: { name: string; message: string },
  { now, oldest }: { now: number; oldest: number }
): Promise<void> {
  await db
    .insertInto('dead_jobs')
    .values({
      id: job.id,
      kind: job.kind,
      key: job.key,
      slot: job.slot,
      data: JSON.stringify(job.data),
      attempts: attemptOf(claim),
      error: JSON.stringify(error),
      died: now,
    })
    .execute()
  await db.deleteFrom('dead_jobs').where('died', '<', oldest).execute()
}

/** @returns the newest first */
export async function readDeadLetters(
  db: Kysely<Tables>,
  limit: number
): Promise<DeadLetter[]> {
  const rows = await db
    .selectFrom('dead_jobs')
    .selectAll()
    .orderBy('died', 'desc')
    .orderBy('id', 'desc')
    .limit(limit)
    .execute()
  return rows.map(({ data, error, ...row }) => ({
    ...row,
    data: JSON.parse(data) as JSONValue,
    error: JSON.parse(error) as DeadLetter['error'],
  }))
}

export async function countDead(db: Kysely<Tables>): Promise<number> {
  const { count } = await db
    .selectFrom('dead_jobs')
    .select((rows) => rows.fn.countAll<number>().as('count'))
    .executeTakeFirstOrThrow()
  return Number(count)
}
