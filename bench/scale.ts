import Table from 'cli-table3'
import type { Measurement } from './measurement.ts'

const ACCOUNTS = 10_000_000
const MINUTE = 60
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR
const RHYTHMS = [
  { name: 'hourly', period: HOUR },
  { name: 'daily', period: DAY },
]

/**
 * What a host takes of one IP address: 3,000 requests in five minutes. A
 * service keeps some room.
 */
const HOST_LIMIT = { requests: 3_000, seconds: 5 * MINUTE, share: 0.8 }

/** Hosts, and the share of our accounts that all of a kind have: a guess. */
const HOSTS = [
  { name: 'mushroom host', hosts: 100, share: 0.97 },
  { name: 'smaller host', hosts: 3_000, share: 0.03 },
]

/**
 * How large repositories are, of 4,866 that were sampled, and how much such an
 * account writes in a day: the latter is a guess.
 */
const SIZES = [
  { share: 0.45, news: 0.02 },
  { share: 0.48, news: 0.4 },
  { share: 0.07, news: 8 },
]
/** Of what an account writes, so much brings a blob of so many bytes: a guess. */
const BLOBS = { share: 0.15, bytes: 300_000 }

/**
 * What one run takes, measured with the local network: requests by whom they
 * go to, milliseconds of one core, bytes that PostgreSQL writes to its log,
 * and bytes that stay in its tables.
 */
const RUNS = {
  unchanged: { host: 1, directory: 2, storage: 1, cpu: 38, bytes: 0 },
  incremental: { host: 3, directory: 2, storage: 16, cpu: 100, bytes: 6_800 },
}
const DATABASE = {
  log: 30_000,
  transactions: 20,
  kept: { run: 1_900, receipt: 1_400, event: 230 },
  schedule: 1_590,
}
/** Transactions a second of one PostgreSQL server that wrote, with 32 clients. */
const TRANSACTIONS = 16_600
/** Cores of a worker, and how much of them is used at most. */
const WORKER = { cores: 4, share: 0.7 }
/** Accounts that are played. */
const PLAYED = 100_000

/**
 * What ten million accounts cost at an hourly and at a daily rhythm, by playing
 * a day of some of them. Prints a table; there is no peer.
 */
export async function run(say: (line: string) => void): Promise<Measurement[]> {
  const costs = RHYTHMS.map(({ period }) => costsOf(playDay(period)))
  const table = new Table({
    head: [
      `${ACCOUNTS.toLocaleString('en')} accounts`,
      ...RHYTHMS.map(({ name }) => name),
    ],
    colAligns: ['left', 'right', 'right'],
    style: { head: [], border: [] },
  })
  for (const what of Object.keys(costs[0] ?? {})) {
    table.push([what, ...costs.map((cost) => rounded(cost[what] ?? 0))])
  }
  say(table.toString())
  return []
}

/** What all accounts cost, by what some of them did in a day. */
function costsOf(day: Day): Record<string, number> {
  const all = ACCOUNTS / PLAYED
  const runs = (day.runs * all) / DAY
  const cores = (day.cpu * all) / 1000 / DAY
  const costs: Record<string, number> = {
    'runs, a second': runs,
    'runs that find something new, %': (day.changed / day.runs) * 100,
    cores,
    [`workers of ${WORKER.cores} cores`]: Math.ceil(
      cores / WORKER.cores / WORKER.share
    ),
    'PostgreSQL: transactions, a second': runs * DATABASE.transactions,
    'PostgreSQL: servers for these':
      (runs * DATABASE.transactions) / TRANSACTIONS,
    'PostgreSQL: log, MB a second': (runs * DATABASE.log) / 1e6,
    'PostgreSQL: schedules, GB': (ACCOUNTS * DATABASE.schedule) / 1e9,
    'PostgreSQL: runs, receipts and events, GB more a day':
      (keptBytes(day) * all) / 1e9,
    'handles: lookups, a second': runs,
    'PLC directory: requests, a second': (day.directory * all) / DAY,
    'Storacha: requests, a second': (day.storage * all) / DAY,
    'Storacha: into Spaces, GB a day': (day.uploaded * all) / 1e9,
  }
  for (const { name, hosts, share } of HOSTS) {
    const requests =
      ((day.host * all * share) / hosts / DAY) * HOST_LIMIT.seconds
    costs[`${name}: requests in five minutes`] = requests
    costs[`${name}: addresses that these take`] = Math.ceil(
      requests / (HOST_LIMIT.requests * HOST_LIMIT.share)
    )
  }
  return costs
}

interface Day {
  runs: number
  changed: number
  /** Requests to hosts, to the PLC directory, and to Storacha. */
  host: number
  directory: number
  storage: number
  /** Milliseconds of one core. */
  cpu: number
  /** Bytes into Spaces. */
  uploaded: number
}

/**
 * Plays the runs of a day: each account is due at a time of its own, and has
 * something new if it wrote since its last run, as often as its size tells.
 */
function playDay(period: number): Day {
  const random = randomOf(2026)
  const day: Day = {
    runs: 0,
    changed: 0,
    host: 0,
    directory: 0,
    storage: 0,
    cpu: 0,
    uploaded: 0,
  }
  for (let account = 0; account < PLAYED; account++) {
    const { news } = sizeOf(random())
    const first = random() * period
    for (let time = first; time < DAY; time += period) {
      const writes = poisson((news * period) / DAY, random)
      const kind = writes > 0 ? RUNS.incremental : RUNS.unchanged
      const blobs = poisson(writes * BLOBS.share, random)
      day.runs += 1
      day.changed += writes > 0 ? 1 : 0
      day.host += kind.host + blobs
      day.directory += kind.directory
      day.storage += kind.storage
      day.cpu += kind.cpu
      day.uploaded += kind.bytes + blobs * BLOBS.bytes
    }
  }
  return day
}

function sizeOf(fraction: number): (typeof SIZES)[number] {
  let rest = fraction
  for (const size of SIZES) {
    rest -= size.share
    if (rest < 0) return size
  }
  return SIZES[0]!
}

function keptBytes({ runs, changed }: Day): number {
  const { run, receipt, event } = DATABASE.kept
  return runs * (run + receipt) + changed * event
}

function poisson(mean: number, random: () => number): number {
  const limit = Math.exp(-mean)
  let count = 0
  for (let product = random(); product > limit; product *= random()) count += 1
  return count
}

/** Numbers from 0 to 1, the same ones each time. */
function randomOf(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

function rounded(value: number): string {
  return Number(value.toPrecision(2)).toLocaleString('en')
}
