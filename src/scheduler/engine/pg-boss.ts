import { createHash } from 'node:crypto'
import { sql } from 'kysely'
import type { Kysely } from 'kysely'
import { PgBoss, fromKysely } from 'pg-boss'
import type {
  CommandResponse,
  ConnectionOptions,
  FetchOptions,
  Job,
} from 'pg-boss'
import { StoreUnavailableError } from '../../stores/index.ts'
import type { Tables } from '../../stores/index.ts'
import { bury, countDead, readDeadLetters } from './dead-jobs.ts'
import type {
  EngineOptions,
  EnginePolicy,
  JobEngine,
  NewJob,
} from './interface.ts'
import { ENGINE_POLICY } from './policy.ts'
import type { Claim, ClaimedJob, JobQueue } from './queue.ts'
import { attemptOf, priorityAfter } from './queue.ts'
import { createEngine } from './worker.ts'

/** One queue for all kinds: slots are held across them. */
const QUEUE = 'jobs'

const DAY_SECONDS = 24 * 60 * 60

/** Connections of pg-boss itself; transactions use those of the stores. */
const CONNECTIONS = 4

/** pg-boss takes no shorter lease, in milliseconds. */
const MIN_LEASE = 10_000

export interface PgBossOptions extends EngineOptions {
  /** `postgres://user:password@host:port/database`, the one `database` is of. */
  databaseUrl: string
  /**
   * Where pg-boss has its tables, which it makes itself. Left out, it follows
   * from the schema that the tables of the service are in: two services in one
   * database do not share their jobs.
   */
  schema?: string
  /** How often to look for jobs whose workers are gone, in seconds. */
  superviseSeconds?: number
}

/** What a row of pg-boss holds for us. */
interface Payload extends Omit<NewJob, 'startAfter'> {
  excused: number
}

/**
 * Opens the engine on PostgreSQL, which any number of processes share. Leases
 * are told by the clock of the database. A job that goes on for a day is taken
 * over, however well it is kept.
 *
 * @param options.policy - `lease` is at least 10,000 ms, in whole seconds
 * @throws StoreUnavailableError
 *
 * @example
 * ```ts
 * await using engine = await openPgBossEngine({
 *   database: stores.database,
 *   databaseUrl,
 *   time: systemTime,
 *   logger,
 * })
 * ```
 */
export async function openPgBossEngine(
  options: PgBossOptions
): Promise<JobEngine> {
  const policy = { ...ENGINE_POLICY, ...options.policy }
  const schema = options.schema ?? (await schemaBeside(options.database))
  const queue = await openQueue({ ...options, schema }, policy)
  return createEngine(queue, options, policy)
}

/** Names of schemas that pg-boss takes as they are. */
const PLAIN_SCHEMA = /^[a-z_][a-z0-9_]{0,42}$/

async function schemaBeside(database: Kysely<Tables>): Promise<string> {
  const { rows } = await sql<{
    schema: string
  }>`select current_schema() as schema`.execute(database)
  const schema = rows[0]?.schema ?? 'public'
  if (schema === 'public') return 'pgboss'
  if (PLAIN_SCHEMA.test(schema)) return `pgboss_${schema}`
  const digest = createHash('sha256').update(schema).digest('hex')
  return `pgboss_${digest.slice(0, 32)}`
}

async function openQueue(
  {
    database,
    databaseUrl,
    schema,
    superviseSeconds = 5,
    time,
    logger,
  }: PgBossOptions & { schema: string },
  policy: EnginePolicy
): Promise<JobQueue> {
  if (policy.lease < MIN_LEASE || policy.lease % 1000 !== 0) {
    throw new TypeError(
      `the lease of a job on PostgreSQL is at least ${MIN_LEASE} ms, in whole seconds: ${policy.lease}`
    )
  }
  const boss = new PgBoss({
    connectionString: databaseUrl,
    application_name: 'bluesky-backups-jobs',
    max: CONNECTIONS,
    schema,
    schedule: false,
    superviseIntervalSeconds: superviseSeconds,
    monitorIntervalSeconds: superviseSeconds,
    registerInstance: false,
    openTelemetry: { enabled: false },
  })
  boss.on('error', (error) => logger.error({ err: error }, 'pg-boss failed'))
  boss.on('warning', (warning) => logger.warn({ warning }, 'pg-boss warns'))
  const close = () => boss.stop({ graceful: false, close: true })

  const table = await start().catch(async (cause: unknown) => {
    await close().catch(() => {})
    throw new StoreUnavailableError(
      `Cannot open the queue of jobs in the schema ${schema} of the database. Check DATABASE_URL, that the database is running, and that its user may create a schema.`,
      { cause }
    )
  })

  async function start() {
    await boss.start()
    await boss.createQueue(QUEUE, {
      policy: 'singleton',
      partition: true,
      heartbeatSeconds: policy.lease / 1000,
      expireInSeconds: DAY_SECONDS,
      // We decide how often; and nothing that was acknowledged is forgotten.
      retryLimit: 1_000_000_000,
      retentionSeconds: 3_650 * DAY_SECONDS,
    })
    const queue = await boss.getQueue(QUEUE)
    if (!queue) throw new TypeError('pg-boss has lost the queue')
    await createKeyIndex(database, schema, queue.table)
    return sql.table(`${schema}.${queue.table}`)
  }

  const fetch = async (options: FetchOptions) =>
    (await boss.fetch<Payload>(QUEUE, options)).map(toClaimed)

  return {
    async insert(jobs, transaction) {
      const now = time.now()
      const rows = jobs.map((job) => ({
        data: toPayload(job, 0),
        singletonKey: job.slot,
        priority: job.priority,
        ...(job.startAfter === undefined
          ? {}
          : { startAfter: toInterval(job.startAfter - now) }),
      }))
      const ids = await boss.insert(QUEUE, rows, {
        returnId: true,
        ...within(transaction),
      })
      return ids?.length ?? 0
    },

    async claim(limit) {
      const claimed: ClaimedJob[] = []
      // Of several jobs of one slot, pg-boss takes any when it is asked for
      // more than one: those that matter are asked for one by one.
      while (claimed.length < limit) {
        const urgent = await fetch({ minPriority: 1, batchSize: 1 })
        if (urgent.length === 0) break
        claimed.push(...urgent)
      }
      const batchSize = limit - claimed.length
      if (batchSize > 0) {
        claimed.push(...(await fetch({ maxPriority: 0, batchSize })))
      }
      return claimed
    },

    keep: async (claims) =>
      settledIds(await boss.touch(QUEUE, claims.map(toAttempt))),

    complete: async (claims) =>
      settledIds(await boss.deleteJob(QUEUE, claims.map(toAttempt))),

    settle: ({ claim, job }, ending) =>
      database.transaction().execute(async (transaction) => {
        const attempt = toAttempt(claim)
        const options = within(transaction)
        if ('retry' in ending) {
          const failed = await boss.fail(QUEUE, attempt, null, options)
          if (!settledIds(failed).has(claim.id)) return false
          const excused = claim.excused + (ending.excused ? 1 : 0)
          const priority = priorityAfter(job, ending)
          await boss.update(QUEUE, toPayload({ ...job, priority }, excused), {
            id: claim.id,
            priority,
            startAfter: toInterval(ending.retry),
            ...options,
          })
          return true
        }
        const deleted = await boss.deleteJob(QUEUE, attempt, options)
        if (!settledIds(deleted).has(claim.id)) return false
        const now = time.now()
        const oldest = now - policy.deadLetters
        await bury(transaction, { claim, job }, ending.dead, { now, oldest })
        return true
      }),

    async outstanding() {
      const { rows } = await sql<{ host: string; jobs: number }>`
        select split_part(singleton_key, '/', 1) as host, count(*) as jobs
        from ${table} where state < 'completed' group by 1`.execute(database)
      return new Map(rows.map(({ host, jobs }) => [host, Number(jobs)]))
    },

    async live(keys) {
      const { rows } = await sql<{ key: string }>`
        select data ->> 'key' as key from ${table}
        where state < 'completed' and data ->> 'key' = any(${keys})`.execute(
        database
      )
      return new Set(rows.map(({ key }) => key))
    },

    async counts() {
      const { rows } = await sql<{
        state: 'created' | 'active' | 'retry'
        jobs: number
      }>`
        select state, count(*) as jobs
        from ${table} where state < 'completed' group by 1`.execute(database)
      const jobs = new Map(rows.map(({ state, jobs }) => [state, Number(jobs)]))
      return {
        queued: jobs.get('created') ?? 0,
        active: jobs.get('active') ?? 0,
        retrying: jobs.get('retry') ?? 0,
        dead: await countDead(database),
      }
    },

    deadLetters: (limit) => readDeadLetters(database, limit),
    close,
  }
}

/**
 * pg-boss has one key for a job, which is the slot here. That no two live jobs
 * have the same key of ours is up to an index of our own on its table, which
 * its inserts heed: they leave out what is in conflict with any index.
 */
async function createKeyIndex(
  database: Kysely<Tables>,
  schema: string,
  table: string
): Promise<void> {
  await database.transaction().execute(async (transaction) => {
    // Of several processes that start at the same time one makes it.
    const lock = `${schema}.${table} live_key`
    await sql`select pg_advisory_xact_lock(hashtextextended(${lock}, 0))`.execute(
      transaction
    )
    await sql`
      create unique index if not exists ${sql.id(`${table.slice(0, 16)}_live_key`)}
      on ${sql.table(`${schema}.${table}`)} ((data ->> 'key'))
      where state < 'completed'`.execute(transaction)
  })
}

function within(transaction: Kysely<Tables> | undefined): ConnectionOptions {
  return transaction ? { db: fromKysely(transaction) } : {}
}

/** By the database's clock: ours may differ from it. */
function toInterval(ms: number): string {
  return `${Math.max(0, Math.round(ms))} milliseconds`
}

/** pg-boss counts from 0, and fences what is done to a job by it. */
function toAttempt({ id, claims }: Claim) {
  return { id, retryCount: claims - 1 }
}

/** What pg-boss answers without declaring it. */
function settledIds(response: CommandResponse): Set<string> {
  const { settled } = response as { settled?: string[] }
  if (!settled) throw new TypeError('pg-boss does not tell what it has done')
  return new Set(settled)
}

function toPayload(
  { kind, key, slot, priority, data }: NewJob,
  excused: number
): Payload {
  return { kind, key, slot, priority, excused, data }
}

function toClaimed({
  id,
  retryCount,
  data: payload,
}: Job<Payload>): ClaimedJob {
  const { excused, ...job } = payload
  const claim: Claim = { id, claims: retryCount + 1, excused }
  return { claim, job: { id, ...job, attempt: attemptOf(claim) } }
}
