import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { PgBoss } from 'pg-boss'
import { pino } from 'pino'
import { systemTime } from '../src/node/index.ts'
import type { NewJob } from '../src/scheduler/engine/index.ts'
import { openPgBossEngine, SCHEDULER_POLICY } from '../src/scheduler/index.ts'
import { openStores } from '../src/stores/index.ts'
import {
  median,
  timesAsMuch,
  timesMore,
  type Measurement,
} from './measurement.ts'
import {
  createSchema,
  createSweeper,
  DUE,
  memorySweep,
  openPostgresPlace,
  openSqlitePlace,
  SWEEPS,
  timeOfSweep,
  type Place,
} from './schedules-place.ts'

const ROWS = 1_000_000
const EMPTY_SWEEPS = 50
const EMPTY_LIMIT = 5
const JOBS = 10_000
const CONCURRENCY = 32
const PER_HOST = SCHEDULER_POLICY.perHost
/** Rounds that count, and one before them, for warming up. */
const ROUNDS = 3

const execute = promisify(execFile)

/**
 * Sweeps of 10,000 schedules that are due, of a million, beside the bare
 * statements; sweeps when nothing is; jobs a second beside bare pg-boss; and
 * memory with ten times as many schedules.
 *
 * @param options.rows - schedules there are
 */
export async function run(
  say: (line: string) => void,
  { rows = ROWS }: { rows?: number } = {}
): Promise<Measurement[]> {
  const { TEST_DATABASE_URL } = process.env
  const measurements: Measurement[] = []
  const measure = async (open: () => Promise<Place>) => {
    await using place = await open()
    measurements.push(...(await measurePlace(place, rows, say)))
  }
  await measure(openSqlitePlace)
  if (!TEST_DATABASE_URL) {
    say('PostgreSQL is left out: TEST_DATABASE_URL names none')
    return measurements
  }
  await measure(() => openPostgresPlace(TEST_DATABASE_URL))
  measurements.push(await measureJobs(TEST_DATABASE_URL, say))
  return measurements
}

async function measurePlace(
  place: Place,
  rows: number,
  say: (line: string) => void
): Promise<Measurement[]> {
  const { name } = place
  const tenth = rows / 10
  say(`${name}: making ${rows.toLocaleString('en')} schedules …`)
  await place.fill(0, tenth, rows)
  await place.settle()
  const small = await peakOf(place, memorySweep(0))
  await place.fill(tenth, rows, rows)
  await place.settle()
  const large = await peakOf(place, memorySweep(1))
  say(
    `${name}: ${Math.round((await place.size()) / 1e6)} MB of schedules; a sweep takes ${mebibytes(small)} at ${tenth.toLocaleString('en')} schedules, ${mebibytes(large)} at ${rows.toLocaleString('en')}`
  )

  const sweeper = createSweeper(place)
  const ours: number[] = []
  const bare: number[] = []
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    await place.clearJobs()
    const now = timeOfSweep(sweep)
    const isOurs = sweep % 2 === 0
    const ms = await timed(() =>
      isOurs ? sweeper.sweep(now) : place.sweepBare(now)
    )
    const { queued } = await place.engine.counts()
    if (queued !== DUE) throw new Error(`${queued} jobs of ${DUE}`)
    // The first of each is for warming up.
    if (sweep >= 2) (isOurs ? ours : bare).push(ms)
  }
  const empty: number[] = []
  for (let sweep = 0; sweep < EMPTY_SWEEPS; sweep++) {
    empty.push(await timed(() => sweeper.sweep(timeOfSweep(SWEEPS - 1))))
  }
  const of = `of ${rows.toLocaleString('en')}, ${name}`
  return [
    timesAsMuch(
      {
        what: `sweep of ${DUE.toLocaleString('en')} due ${of}`,
        ours: median(ours),
        peer: 'bare SQL claim + insert',
        theirs: median(bare),
        unit: 'ms',
      },
      1.5
    ),
    timesAsMuch(
      {
        what: `sweep of none due ${of}, ${DUE.toLocaleString('en')} jobs waiting`,
        ours: median(empty),
        peer: `the limit of ${EMPTY_LIMIT} ms`,
        theirs: EMPTY_LIMIT,
        unit: 'ms',
      },
      1
    ),
    timesAsMuch(
      {
        what: `peak memory of a sweep ${of}`,
        ours: large / 2 ** 20,
        peer: `the same of ${tenth.toLocaleString('en')}`,
        theirs: small / 2 ** 20,
        unit: 'MiB',
      },
      1.1
    ),
  ]
}

/** @returns bytes of memory, at most, of a process that sweeps once */
async function peakOf({ options, clearJobs }: Place, now: number) {
  const script = fileURLToPath(new URL('schedules-process.ts', import.meta.url))
  const { stdout } = await execute(process.execPath, [
    script,
    JSON.stringify(options),
    `${now}`,
  ])
  const { peak, jobs } = JSON.parse(stdout) as { peak: number; jobs: number }
  if (jobs < DUE) throw new Error(`${jobs} jobs of ${DUE}`)
  await clearJobs()
  return peak
}

/** Jobs that do nothing, by our engine and by pg-boss alone, in turns. */
async function measureJobs(
  serverUrl: string,
  say: (line: string) => void
): Promise<Measurement> {
  const jobs = Array.from({ length: JOBS }, (_, at): NewJob => ({
    kind: 'none',
    key: `job ${at}`,
    slot: `host-${at % 100}/${Math.floor(at / 100) % PER_HOST}`,
    priority: 0,
    data: { space: `space ${at}`, account: `account ${at}` },
  }))
  const ours: number[] = []
  const theirs: number[] = []
  for (let round = 0; round <= ROUNDS; round++) {
    const one = await drainOurs(serverUrl, jobs)
    const other = await drainBare(serverUrl, jobs)
    if (round === 0) continue
    ours.push((JOBS / one) * 1000)
    theirs.push((JOBS / other) * 1000)
  }
  say(
    `jobs a second: ${ours.map(Math.round)} and bare ${theirs.map(Math.round)}`
  )
  return timesMore(
    {
      what: `jobs that do nothing, ${CONCURRENCY} at a time`,
      ours: median(ours),
      peer: 'bare pg-boss, fetch + complete',
      theirs: median(theirs),
      unit: '/s',
    },
    0.8
  )
}

/** @returns milliseconds until all jobs are done */
async function drainOurs(serverUrl: string, jobs: NewJob[]): Promise<number> {
  await using schema = await createSchema(serverUrl)
  const { databaseUrl } = schema
  await using stores = await openStores({ databaseUrl })
  await using engine = await openPgBossEngine({
    database: stores.database,
    databaseUrl,
    time: systemTime,
    logger: pino({ level: 'warn' }),
  })
  await engine.enqueue(jobs)
  return await timed(async () => {
    let done = 0
    const all = Promise.withResolvers<void>()
    engine.work(
      {
        async none() {
          if (++done === jobs.length) all.resolve()
        },
      },
      { concurrency: CONCURRENCY }
    )
    await all.promise
    // The last of them are done when the database says so.
    while ((await engine.outstanding()).size > 0);
  })
}

/** The fastest way there is: what is done is told before more is fetched. */
async function drainBare(serverUrl: string, jobs: NewJob[]): Promise<number> {
  await using schema = await createSchema(serverUrl)
  const boss = new PgBoss({
    connectionString: schema.databaseUrl,
    schema: `pgboss_${schema.schema}`,
    schedule: false,
    supervise: false,
  })
  boss.on('error', (error) => {
    throw error
  })
  await boss.start()
  const name = 'jobs'
  await boss.createQueue(name, { policy: 'singleton', partition: true })
  await boss.insert(
    name,
    jobs.map(({ kind, key, slot, data, priority }) => ({
      data: { kind, key, slot, priority, data },
      singletonKey: slot,
      priority,
    }))
  )
  const ms = await timed(async () => {
    for (;;) {
      const fetched = await boss.fetch(name, { batchSize: CONCURRENCY })
      if (fetched.length === 0) return
      await boss.complete(
        name,
        fetched.map(({ id }) => id)
      )
    }
  })
  await boss.stop({ graceful: false, close: true })
  return ms
}

/** @returns milliseconds */
async function timed(act: () => Promise<unknown>): Promise<number> {
  const started = performance.now()
  await act()
  return performance.now() - started
}

function mebibytes(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`
}
