import { createHash, randomUUID } from 'node:crypto'
import { mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { sql } from 'kysely'
import pg from 'pg'
import { pino } from 'pino'
import { systemTime } from '../src/node/index.ts'
import {
  createEmbeddedEngine,
  createScheduler,
  openPgBossEngine,
  SCHEDULER_POLICY,
  type JobEngine,
} from '../src/scheduler/index.ts'
import {
  openStores,
  type Stores,
  type StoresOptions,
} from '../src/stores/index.ts'

/** Schedules that are due at once. */
export const DUE = 10_000
/** Times at which so many are due. */
export const SWEEPS = 8
/** Bytes of a delegation with its proofs. */
const DELEGATION_SIZE = 1_000
const HOSTS = 100
const PER_HOST = SCHEDULER_POLICY.perHost
const START = Date.UTC(2026, 0, 1)
const FILL_STEP = 100_000

/** Where a bench has its schedules and jobs, and what it does there bare. */
export interface Place extends AsyncDisposable {
  name: string
  options: StoresOptions
  stores: Stores
  engine: JobEngine
  /** Claims what is due and inserts its jobs by nothing but two statements. */
  sweepBare(now: number): Promise<void>
  /** Makes rows of schedules, from one number up to another. */
  fill(from: number, to: number, rows: number): Promise<void>
  /** Has the database come to rest. */
  settle(): Promise<void>
  clearJobs: () => Promise<void>
  /** Bytes of the schedules with their indexes. */
  size(): Promise<number>
}

/**
 * When a schedule is due: most of them far from now, 10,000 at each of the
 * times of a sweep, wherever they are in the table.
 */
function dueOf(number: string, rows: number): string {
  const stride = Math.floor((rows - 2 * DUE) / (DUE * SWEEPS))
  const mark = `((${number} - ${DUE}) / ${stride})`
  return `case
    when ${number} <= ${DUE} then ${memorySweep(0)}
    when ${number} > ${rows - DUE} then ${memorySweep(1)}
    when (${number} - ${DUE}) % ${stride} = 0 and ${mark} <= ${DUE * SWEEPS}
      then ${START} + (1 + ${mark} % ${SWEEPS}) * 1000 - ${mark} % 900
    else ${START} + 86400000 + ${number} end`
}

/** @returns Unix milliseconds at which 10,000 are due that were not before */
export function timeOfSweep(sweep: number): number {
  return START + (1 + sweep) * 1000
}

/** The same, for the first and the last of the table; before the others. */
export function memorySweep(which: 0 | 1): number {
  return START - (2 - which) * 1000
}

export async function openSqlitePlace(): Promise<Place> {
  await using resources = new AsyncDisposableStack()
  const folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-bench-'))
  resources.defer(() => rm(folder, { recursive: true }))
  const path = join(folder, 'service.sqlite')
  const stores = resources.use(await openStores({ path }))
  const { database } = stores
  const engine = resources.use(createEmbeddedEngine(engineOptions(stores)))
  const bare = new Database(path)
  resources.defer(async () => {
    bare.close()
  })
  bare.pragma('synchronous = FULL')
  const claim = bare.prepare(`
    with due as materialized (
      select space, account from schedules
      where next is not null and owner is null and next <= ?
      order by next limit ?)
    update schedules set owner = 'bare', lease_expiration = ?, claimed_version = version
    from due where schedules.space = due.space and schedules.account = due.account
    returning schedules.space, schedules.account, schedules.host`)
  const insert = bare.prepare(`
    insert into jobs (id, kind, key, slot, priority, data, state, created, start_after, claims, excused)
    select value ->> 'id', 'backup', value ->> 'key', value ->> 'slot', 0, value ->> 'data', 'queued', ?, ?, 0, 0
    from json_each(?)`)
  const owned = resources.move()
  return {
    name: 'SQLite',
    options: { path },
    stores,
    engine,
    async sweepBare(now) {
      bare.exec('begin immediate')
      const rows = claim.all(now, DUE, now + 600_000) as ClaimedRow[]
      insert.run(now, now, JSON.stringify(rows.map(jobOf)))
      bare.exec('commit')
    },
    async fill(from, to, rows) {
      for (let at = from; at < to; at += FILL_STEP) {
        const end = Math.min(to, at + FILL_STEP)
        await sql
          .raw(
            `
          insert into schedules (${COLUMNS})
          with recursive numbers (i) as (
            select ${at + 1} union all select i + 1 from numbers where i < ${end})
          select 'did:key:z6Mk' || hex(randomblob(22)), 'did:plc:' || hex(randomblob(12)),
            '{"every":3600}', ${START}, 'bafyrei' || hex(randomblob(26)),
            randomblob(${DELEGATION_SIZE}), 'pds-' || (i % ${HOSTS}) || '.example',
            'active', ${dueOf('i', rows)}, i, i, 1
          from numbers`
          )
          .execute(database)
      }
    },
    async settle() {
      await sql`pragma wal_checkpoint(truncate)`.execute(database)
    },
    async clearJobs() {
      await sql`delete from jobs`.execute(database)
      await sql`pragma wal_checkpoint(truncate)`.execute(database)
    },
    size: async () => (await stat(path)).size,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

export async function openPostgresPlace(serverUrl: string): Promise<Place> {
  await using resources = new AsyncDisposableStack()
  const { databaseUrl, schema } = resources.use(await createSchema(serverUrl))
  const stores = resources.use(await openStores({ databaseUrl }))
  const { database } = stores
  const engine = resources.use(
    await openPgBossEngine({ ...engineOptions(stores), databaseUrl })
  )
  const bare = new pg.Client(databaseUrl)
  await bare.connect()
  resources.defer(() => bare.end())
  const { rows: tables } = await bare.query<{ table: string }>(
    `select table_name as table from pgboss_${schema}.queue where name = 'jobs'`
  )
  const table = `pgboss_${schema}.${tables[0]?.table}`
  const owned = resources.move()
  return {
    name: 'PostgreSQL',
    options: { databaseUrl },
    stores,
    engine,
    async sweepBare(now) {
      await bare.query('begin')
      const { rows } = await bare.query<ClaimedRow>({
        name: 'claim',
        text: `
          with due as materialized (
            select space, account from schedules
            where next is not null and owner is null and next <= $1
            order by next limit $2 for update skip locked)
          update schedules set owner = 'bare', lease_expiration = $3, claimed_version = version
          from due where schedules.space = due.space and schedules.account = due.account
          returning schedules.space, schedules.account, schedules.host`,
        values: [now, DUE, now + 600_000],
      })
      await bare.query({
        name: 'insert',
        text: `
          insert into ${table} (name, data, priority, singleton_key, policy)
          select 'jobs', data, 0, slot, 'singleton'
          from json_to_recordset($1) as jobs (slot text, data jsonb)`,
        values: [
          JSON.stringify(
            rows.map(jobOf).map(({ slot, key }) => ({ slot, data: { key } }))
          ),
        ],
      })
      await bare.query('commit')
    },
    async fill(from, to, rows) {
      for (let at = from; at < to; at += FILL_STEP) {
        const end = Math.min(to, at + FILL_STEP)
        await sql
          .raw(
            `
          insert into schedules (${COLUMNS})
          select 'did:key:z6Mk' || md5('space' || i) || md5('key' || i), 'did:plc:' || left(md5('account' || i), 24),
            '{"every":3600}', ${START}, 'bafyrei' || md5('cid' || i) || left(md5('link' || i), 20),
            (select string_agg(decode(md5(i || ' ' || part), 'hex'), '') from generate_series(1, ${Math.ceil(DELEGATION_SIZE / 16)}) as part),
            'pds-' || (i % ${HOSTS}) || '.example',
            'active', ${dueOf('i', rows)}, i, i, 1
          from generate_series(${at + 1}::bigint, ${end}) as i`
          )
          .execute(database)
      }
    },
    async settle() {
      await bare.query('vacuum analyze schedules')
      await bare.query('checkpoint')
    },
    async clearJobs() {
      await bare.query(`truncate ${table}`)
      await bare.query('checkpoint')
    },
    async size() {
      const { rows } = await bare.query<{ size: string }>(
        `select pg_total_relation_size('schedules') as size`
      )
      return Number(rows[0]?.size)
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

const COLUMNS =
  'space, account, rhythm, anchor, delegation, delegation_bytes, host, state, next, created, updated, version'

interface ClaimedRow {
  space: string
  account: string
  host: string
}

/** What our scheduler makes of a schedule. */
function jobOf({ space, account, host }: ClaimedRow) {
  const digest = createHash('sha256').update(`${space}\n${account}`).digest()
  return {
    id: randomUUID(),
    key: `${space} ${account}`,
    slot: `${host}/${digest.readUInt32BE(0) % PER_HOST}`,
    data: JSON.stringify({ space, account }),
  }
}

function engineOptions({ database }: Stores) {
  return { database, time: systemTime, logger: pino({ level: 'warn' }) }
}

/** A schema of its own, and the one beside it that pg-boss makes. */
export async function createSchema(
  serverUrl: string
): Promise<{ databaseUrl: string; schema: string } & AsyncDisposable> {
  const schema = `bench_${randomUUID().replaceAll('-', '')}`
  const client = new pg.Client(serverUrl)
  await client.connect()
  await client.query(`create schema ${schema}`)
  const url = new URL(serverUrl)
  url.searchParams.set('options', `-c search_path=${schema}`)
  return {
    schema,
    databaseUrl: url.href.replaceAll('+', '%20'),
    async [Symbol.asyncDispose]() {
      await client.query(`drop schema ${schema} cascade`)
      await client.query(`drop schema if exists pgboss_${schema} cascade`)
      await client.end()
    },
  }
}

/** Our scheduler, which looks for what is due when it is told to. */
export interface Sweeper {
  /** Looks once, at a time of its own. */
  sweep(now: number): Promise<void>
}

/** Has the scheduler look, and not do anything else. */
export function createSweeper({
  stores,
  engine,
}: Pick<Place, 'stores' | 'engine'>): Sweeper {
  let now = 0
  let asleep = Promise.withResolvers<void>()
  let wake = () => {}
  const unused = () => {
    throw new Error('there is no work to do')
  }
  const scheduler = createScheduler({
    stores,
    engine,
    agent: undefined as never,
    connection: unused,
    decodeDelegations: unused,
    findHost: unused,
    hosts: {
      unavailable: async () => new Map<string, number>(),
      unavailableUntil: async () => undefined,
    },
    time: {
      now: () => now,
      sleep: async () => {
        const awake = new Promise<void>((resolve) => (wake = resolve))
        asleep.resolve()
        await awake
      },
    },
    logger: pino({ level: 'warn' }),
    policy: SCHEDULER_POLICY,
  })
  let started = false
  return {
    async sweep(moment) {
      now = moment
      asleep = Promise.withResolvers()
      if (started) wake()
      else scheduler.sweep()
      started = true
      await asleep.promise
    },
  }
}
