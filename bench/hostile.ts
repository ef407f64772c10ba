import {
  createEmbeddedStore,
  createPostgresStore,
  type TestStore,
} from '../test/service/slow-stores.ts'
import { runTenants } from '../test/service/hostile/tenants.ts'
import { timesAsMuch, type Measurement } from './measurement.ts'

const MINUTES = Number(process.env.HOSTILE_MINUTES ?? 10)

/** What each figure may come to at most beside hostile tenants. */
const LIMITS = {
  lateness: 60_000,
  silence: 1_000,
  memory: 700e6,
  growth: 200e6,
}

/**
 * What well-behaved tenants see of a service beside hostile ones, and without
 * them: how late backups are, how long `/health/alive` is silent, memory, and
 * how much the database grows. The goal is a limit on our figure, not a ratio.
 */
export async function run(say: (line: string) => void): Promise<Measurement[]> {
  const { TEST_DATABASE_URL } = process.env
  const measurements = await measure('SQLite', createEmbeddedStore, say)
  if (!TEST_DATABASE_URL) {
    say('PostgreSQL is left out: TEST_DATABASE_URL names none')
    return measurements
  }
  return [
    ...measurements,
    ...(await measure(
      'PostgreSQL',
      () => createPostgresStore(TEST_DATABASE_URL),
      say
    )),
  ]
}

async function measure(
  name: string,
  createStore: () => Promise<TestStore>,
  say: (line: string) => void
): Promise<Measurement[]> {
  const runOnce = async (hostile: boolean) => {
    await using store = await createStore()
    say(
      `${name}: ${MINUTES} minutes ${hostile ? 'beside' : 'without'} hostile tenants …`
    )
    return runTenants(store, { minutes: MINUTES, hostile, say })
  }
  const peer = await runOnce(false)
  const ours = await runOnce(true)
  say(JSON.stringify(ours.attacks))
  const rows = [
    { what: 'latest backup after its time', key: 'lateness', unit: 'ms' },
    { what: 'longest silence of /health/alive', key: 'silence', unit: 'ms' },
    { what: 'peak memory of the process', key: 'memory', unit: 'bytes' },
    { what: 'growth of the database', key: 'growth', unit: 'bytes' },
  ] as const
  return rows.map(({ what, key, unit }) => ({
    ...timesAsMuch(
      {
        what: `${what}, ${name}`,
        ours: ours[key],
        peer: 'without hostile tenants',
        theirs: peer[key],
        unit,
      },
      Infinity
    ),
    goal: `≤ ${LIMITS[key].toLocaleString('en')} ${unit}`,
    met: ours[key] <= LIMITS[key],
  }))
}
