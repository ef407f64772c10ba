import { sql } from 'kysely'
import type { Kysely, SqlBool } from 'kysely'
import type { Tables } from '../../stores/index.ts'
import { bury, countDead, readDeadLetters } from './dead-jobs.ts'
import type {
  EngineOptions,
  EnginePolicy,
  JSONValue,
  JobEngine,
  NewJob,
} from './interface.ts'
import { ENGINE_POLICY } from './policy.ts'
import type { Claim, ClaimedJob, JobQueue } from './queue.ts'
import { attemptOf, priorityAfter } from './queue.ts'
import { createEngine } from './worker.ts'

type JobRow = Tables['jobs']

/** As the partial indexes have it, literally, so that they are used. */
const queued = sql<SqlBool>`state = 'queued'`
const active = sql<SqlBool>`state = 'active'`

/**
 * Opens the engine on SQLite. It is made for one process; several on the same
 * file do no harm, and what one leaves behind the next one takes over.
 *
 * @param options.database - on SQLite
 *
 * @example
 * ```ts
 * await using engine = createEmbeddedEngine({
 *   database: stores.database,
 *   time: systemTime,
 *   logger,
 * })
 * engine.work({ backup: runBackupJob }, { concurrency: 4 })
 * ```
 */
export function createEmbeddedEngine(options: EngineOptions): JobEngine {
  const policy = { ...ENGINE_POLICY, ...options.policy }
  return createEngine(createQueue(options, policy), options, policy)
}

function createQueue(
  { database, time }: EngineOptions,
  policy: EnginePolicy
): JobQueue {
  const owner = crypto.randomUUID()
  return {
    insert: (jobs, transaction = database) =>
      insert(transaction, jobs, time.now()),

    async claim(limit) {
      const now = time.now()
      return database.transaction().execute(async (transaction) => {
        await expire(transaction, now)
        const claimed: ClaimedJob[] = []
        while (claimed.length < limit) {
          const row = await claimOne(transaction, {
            owner,
            now,
            leaseExpiration: now + policy.lease,
          })
          if (!row) break
          claimed.push(toClaimed(row))
        }
        return claimed
      })
    },

    async keep(claims) {
      const leaseExpiration = time.now() + policy.lease
      return database.transaction().execute(async (transaction) => {
        const kept = new Set<string>()
        for (const claim of claims) {
          const held = await update(transaction, claim, {
            lease_expiration: leaseExpiration,
          })
          if (held) kept.add(claim.id)
        }
        return kept
      })
    },

    complete: (claims) =>
      database.transaction().execute(async (transaction) => {
        const done = new Set<string>()
        for (const claim of claims) {
          if (await remove(transaction, claim)) done.add(claim.id)
        }
        return done
      }),

    async settle({ claim, job }, ending) {
      const now = time.now()
      if ('retry' in ending) {
        return update(database, claim, {
          state: 'queued',
          owner: null,
          lease_expiration: null,
          start_after: now + ending.retry,
          excused: claim.excused + (ending.excused ? 1 : 0),
          priority: priorityAfter(job, ending),
        })
      }
      return database.transaction().execute(async (transaction) => {
        const held = await remove(transaction, claim)
        const oldest = now - policy.deadLetters
        if (held) {
          await bury(transaction, { claim, job }, ending.dead, { now, oldest })
        }
        return held
      })
    },

    async outstanding() {
      const host = sql<string>`substr(slot, 1, instr(slot || '/', '/') - 1)`
      const rows = await database
        .selectFrom('jobs')
        .select((jobs) => [host.as('host'), jobs.fn.countAll().as('jobs')])
        .groupBy(host)
        .execute()
      return new Map(rows.map(({ host, jobs }) => [host, Number(jobs)]))
    },

    async live(keys) {
      const rows = await database
        .selectFrom('jobs')
        .select('key')
        .where(
          'key',
          'in',
          sql<string>`(select value from json_each(${JSON.stringify(keys)}))`
        )
        .execute()
      return new Set(rows.map(({ key }) => key))
    },

    async counts() {
      const begun = sql<number>`claims > 0`
      const rows = await database
        .selectFrom('jobs')
        .select((jobs) => [
          'state',
          begun.as('begun'),
          jobs.fn.countAll().as('jobs'),
        ])
        .groupBy(['state', begun])
        .execute()
      const counts = { queued: 0, active: 0, retrying: 0 }
      for (const { state, begun, jobs } of rows) {
        const name = state === 'queued' && begun ? 'retrying' : state
        counts[name] += Number(jobs)
      }
      return { ...counts, dead: await countDead(database) }
    },

    deadLetters: (limit) => readDeadLetters(database, limit),

    // The database is not the engine's.
    close: async () => {},
  }
}

/** The rows travel as one text, so that one statement takes any number. */
async function insert(
  db: Kysely<Tables>,
  jobs: NewJob[],
  now: number
): Promise<number> {
  const rows = jobs.map((job) => ({
    ...job,
    id: crypto.randomUUID(),
    data: JSON.stringify(job.data),
    startAfter: job.startAfter ?? now,
  }))
  const { numAffectedRows = 0n } = await sql`
    insert into jobs
      (id, kind, key, slot, priority, data, state, created, start_after, claims, excused)
    select
      value ->> 'id', value ->> 'kind', value ->> 'key', value ->> 'slot',
      value ->> 'priority', value ->> 'data', 'queued', ${now},
      value ->> 'startAfter', 0, 0
    from json_each(${JSON.stringify(rows)})
    where true
    on conflict do nothing`.execute(db)
  return Number(numAffectedRows)
}

/** Puts back what somebody claimed who was not heard of since. */
async function expire(db: Kysely<Tables>, now: number): Promise<void> {
  await db
    .updateTable('jobs')
    .set({ state: 'queued', owner: null, lease_expiration: null })
    .where(active)
    .where('lease_expiration', '<=', now)
    .execute()
}

async function claimOne(
  db: Kysely<Tables>,
  {
    owner,
    now,
    leaseExpiration,
  }: { owner: string; now: number; leaseExpiration: number }
): Promise<JobRow | undefined> {
  return db
    .updateTable('jobs')
    .set((jobs) => ({
      state: 'active',
      owner,
      lease_expiration: leaseExpiration,
      claims: jobs('claims', '+', 1),
    }))
    .where('id', '=', (jobs) =>
      jobs
        .selectFrom('jobs as next')
        .select('id')
        .where(queued)
        .where('start_after', '<=', now)
        .where((next) =>
          next.not(
            next.exists(
              next
                .selectFrom('jobs as other')
                .select('other.id')
                .whereRef('other.slot', '=', 'next.slot')
                .where(sql<SqlBool>`other.state = 'active'`)
            )
          )
        )
        .orderBy('priority', 'desc')
        .orderBy('created')
        .orderBy('start_after')
        .orderBy(sql`rowid`)
        .limit(1)
    )
    .returningAll()
    .executeTakeFirst()
}

/** @returns whether the claim was still held */
async function update(
  db: Kysely<Tables>,
  { id, claims }: Claim,
  changes: Partial<JobRow>
): Promise<boolean> {
  const { numUpdatedRows } = await db
    .updateTable('jobs')
    .set(changes)
    .where('id', '=', id)
    .where('claims', '=', claims)
    .where(active)
    .executeTakeFirst()
  return numUpdatedRows > 0n
}

/** @returns whether the claim was still held */
async function remove(
  db: Kysely<Tables>,
  { id, claims }: Claim
): Promise<boolean> {
  const { numDeletedRows } = await db
    .deleteFrom('jobs')
    .where('id', '=', id)
    .where('claims', '=', claims)
    .where(active)
    .executeTakeFirst()
  return numDeletedRows > 0n
}

function toClaimed(row: JobRow): ClaimedJob {
  const { id, kind, key, slot, priority, claims, excused } = row
  const claim: Claim = { id, claims, excused }
  const data = JSON.parse(row.data) as JSONValue
  const attempt = attemptOf(claim)
  return { claim, job: { id, kind, key, slot, priority, data, attempt } }
}
