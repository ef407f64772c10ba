import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Delegation, Signer } from '@ucanto/interface'
import PQueue from 'p-queue'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { createSha256 } from '../../src/backup/index.ts'
import {
  Backup,
  Clock,
  ServiceUnreachableError,
  type Connection,
  type InvocationConfig,
} from '../../src/client/index.ts'
import { listBackups, mergeHeads } from '../../src/space/index.ts'
import { createSpaceReader } from '../../src/storacha/index.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import {
  seedAccount,
  startNetwork,
  type Network,
  type Read,
} from '../network/index.ts'
import { allow, createActors, type Space } from './harness.ts'
import { loadServiceProcess, type ServiceProcess } from './service-process.ts'
import {
  createEmbeddedStore,
  createPostgresStore,
  databaseServer,
  type TestStore,
} from './slow-stores.ts'

const ACCOUNTS = Number(process.env.SCHEDULED_ACCOUNTS ?? 300)
/** Accounts that share a Space. */
const ACCOUNTS_PER_SPACE = 10
/** Customers that are made, or make schedules, at the same time. */
const CONCURRENT_CUSTOMERS = 4
const CONCURRENT_RUNS = 4
/** Milliseconds between two kills, or more where there is little progress. */
const PAUSE = { min: 1_000, max: 5_000 }
/**
 * Shares of the accounts that are backed up between two kills, at least: the
 * work comes to an end. What a process had that is killed is left alone until
 * its leases are over, and where there is no other, that is most of the work.
 */
const PROGRESS = { several: 1 / 30, one: 1 / 3 }
/** Schedules that are acknowledged between two kills, at least. */
const TAKEN = Math.ceil(ACCOUNTS / 6)
/** Milliseconds that the process which takes them lives on after that, at most. */
const LONGEST_TAKING = 500
/** Milliseconds in which the accounts come to be due. */
const DUE_WITHIN = 20_000
/** How long the host takes to answer, in milliseconds. */
const ANSWER = { min: 50, max: 250 }
const DAY = 24 * 60 * 60
const LONGEST = 500_000

type AccountDID = `did:plc:${string}`

interface Customer {
  space: Space
  config: InvocationConfig & { issuer: Signer }
  accounts: AccountDID[]
}

/** Where there is a process of a role: when it is killed, another one. */
interface Place {
  role: string
  kills: number
  /** How to reach the process, as soon as it can be. */
  connection: Promise<Connection>
  /** Kills the process and starts another one. */
  kill(): Promise<void>
}

/** What both databases are tried with. */
interface World {
  network: Network
  accounts: AccountDID[]
  reads: ReturnType<typeof watchReads>
}

describe('schedules whose processes are killed', () => {
  const resources = new AsyncDisposableStack()
  let world: World

  before(async () => {
    const reads = watchReads()
    const network = resources.use(
      await startNetwork({ pds: { onRead: reads.onRead } })
    )
    world = { network, accounts: await createAccounts(network), reads }
  })

  after(() => resources.disposeAsync())

  it('are all kept, on PostgreSQL with three workers', async function () {
    const server = databaseServer
    if (server === undefined) return this.skip()
    await run(world, () => createPostgresStore(server), {
      front: 'api',
      // Two of five kills are of schedulers.
      victims: ['worker', 'scheduler', 'worker', 'scheduler', 'worker'],
    })
  })

  it('are all kept, on SQLite with one process', () =>
    run(world, createEmbeddedStore, { front: 'all', victims: [] }))
})

async function run(
  { network, accounts, reads }: World,
  createStore: () => Promise<TestStore>,
  { front, victims }: { front: string; victims: string[] }
): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const store = resources.use(await createStore())
  const stores = resources.use(await openStores(store.options))
  const places = resources.use(createPlaces(store, network.environment))
  const customers = await createCustomers(network, accounts)
  reads.reset()
  const begun = Date.now()

  const taking = await places.open(front)
  const { unanswered } = await makeSchedules(customers, taking, stores)
  assert.ok(unanswered > 0, 'no kill came before an answer')
  const kept = await stores.database
    .selectFrom('schedules')
    .select(['space', 'account'])
    .execute()
  assert.deepEqual(
    kept.map(({ space, account }) => `${space} ${account}`).sort(),
    customers
      .flatMap(({ space, accounts }) =>
        accounts.map((account) => `${space.did()} ${account}`)
      )
      .sort()
  )

  const working = await Promise.all(victims.map((role) => places.open(role)))
  if (working.length === 0) working.push(taking)
  const takingKills = taking.kills
  await makeDue(customers, stores)
  const kills = await killUntilDone(working, stores)
  const seconds = Math.round((Date.now() - begun) / 1000)

  const runs = await stores.database
    .selectFrom('runs')
    .select(['account', 'state', 'attempts'])
    .execute()
  const superfluous = runs.length - ACCOUNTS
  const interrupted = runs.reduce((sum, run) => sum + run.attempts - 1, 0)
  const failed = runs.filter(({ state }) => state === 'failed')
  process.stdout.write(
    `      ${ACCOUNTS} accounts in ${seconds} s, ${takingKills} kills while schedules were made with ${unanswered} of them unanswered, ${kills.all} kills while backups were (${kills.schedulers} of schedulers); ${interrupted} executions of runs interrupted, ${superfluous} runs superfluous, ${failed.length} failed; ${reads.count} requests at the host, ${reads.most} at once\n`
  )
  assert.ok(kills.all > 0)
  assert.ok(
    runs.some(({ attempts }) => attempts > 1),
    'no kill came in the middle of a run'
  )
  // Nothing but a kill takes a run from the process that has it.
  const touched = (kills.all + takingKills) * CONCURRENT_RUNS
  assert.ok(interrupted <= touched)
  // Who is killed after runs have ended, and before their schedules were told,
  // has them made again at most.
  assert.ok(superfluous <= touched, `${superfluous} runs too many`)
  // Never twice at once.
  assert.deepEqual(reads.overlaps, [])
  await checkBackups(customers, network, await taking.connection)
  for (const account of accounts) {
    const own = runs.filter((run) => run.account === account)
    assert.ok(own.some(({ state }) => state === 'done'))
    assert.ok(own.every(({ state }) => state === 'done' || state === 'failed'))
  }
}

function between({ min, max }: { min: number; max: number }): number {
  return min + Math.random() * (max - min)
}

/**
 * Sees which accounts are asked for twice at once. A run asks for the commit
 * before all else, and for the repository once: what else is asked for while
 * the one of them is answered is up to another run. The host takes its time,
 * so that most of what a run does there is a request that is not over.
 */
function watchReads() {
  const open = new Map<string, Set<Read>>()
  let now = 0
  const watched = {
    count: 0,
    /** At the same time. */
    most: 0,
    overlaps: [] as string[],
    reset() {
      Object.assign(watched, { count: 0, most: 0, overlaps: [] })
    },
    onRead: (read: Read) => {
      const { did, method, over } = read
      const others = open.get(did) ?? new Set()
      open.set(did, others)
      for (const other of others) {
        const methods = [other.method, method]
        if (
          methods.includes('getLatestCommit') ||
          methods.every((method) => method === 'getRepo')
        ) {
          watched.overlaps.push(`${did}: ${methods.join(', ')}`)
        }
      }
      others.add(read)
      watched.count++
      now++
      watched.most = Math.max(watched.most, now)
      over.addEventListener('abort', () => {
        others.delete(read)
        now--
      })
      return { ready: sleep(between(ANSWER)) }
    },
  }
  return watched
}

/** Opens places for processes of one service. Disposing of it kills them all. */
function createPlaces(
  store: TestStore,
  environment: Record<string, string>
): AsyncDisposable & { open(role: string): Promise<Place> } {
  const processes = new Set<ServiceProcess>()
  let isOver = false
  const start = async (role: string) => {
    const process = await loadServiceProcess(store, {
      ...environment,
      BLUESKY_BACKUPS_ROLE: role,
      BLUESKY_BACKUPS_CONCURRENT_RUNS: String(CONCURRENT_RUNS),
    })
    processes.add(process)
    if (isOver) await process.kill()
    const connection = await process.start()
    assert.ok(connection, 'it was killed before it had started')
    return { process, connection }
  }
  return {
    async open(role) {
      let running = await start(role)
      const place: Place = {
        role,
        kills: 0,
        connection: Promise.resolve(running.connection),
        async kill() {
          place.kills++
          const { process } = running
          const next = process.kill().then(() => {
            processes.delete(process)
            return start(role)
          })
          place.connection = next.then(({ connection }) => connection)
          // Whoever kills is told of what fails; others need not be there.
          place.connection.catch(() => {})
          running = await next
        },
      }
      return place
    },
    async [Symbol.asyncDispose]() {
      isOver = true
      await Promise.all([...processes].map((process) => process.kill()))
    },
  }
}

/**
 * Has all schedules made, at a process that is killed meanwhile. What it did
 * not answer is asked for again; what it has acknowledged is not.
 */
async function makeSchedules(
  customers: Customer[],
  place: Place,
  stores: Stores
): Promise<{ unanswered: number }> {
  const agent = await agentOf(await place.connection)
  const acknowledged = new Set<string>()
  let unanswered = 0
  const make = async (
    { space, config }: Customer,
    account: AccountDID,
    delegation: Delegation
  ) => {
    for (;;) {
      const connection = await place.connection
      try {
        const { error } = await Backup.schedule(
          config,
          { account, every: DAY, delegation },
          { connection }
        )
        assert.equal(error, undefined, error?.message)
        acknowledged.add(`${space.did()} ${account}`)
        return
      } catch (error) {
        if (!isBroken(error)) throw error
        unanswered++
        // The one that is gone is not asked until the next one is there.
        await sleep(10)
      }
    }
  }
  const making = new PQueue({ concurrency: CONCURRENT_CUSTOMERS })
  const made = making.addAll(
    customers.map((customer) => async () => {
      const delegation = await allow(customer.space, agent, [
        'backup/run',
        ...BACKUP_ABILITIES,
      ])
      for (const account of customer.accounts) {
        await make(customer, account, delegation)
      }
    })
  )
  const stop = new AbortController()
  const { signal } = stop
  const killing = async () => {
    for (;;) {
      const enough = Math.min(ACCOUNTS, acknowledged.size + TAKEN)
      while (acknowledged.size < enough) await sleep(1, undefined, { signal })
      await sleep(Math.random() * LONGEST_TAKING)
      if (acknowledged.size === ACCOUNTS) return
      const sure = [...acknowledged]
      await place.kill()
      const rows = await stores.database
        .selectFrom('schedules')
        .select(['space', 'account'])
        .execute()
      const kept = new Set(
        rows.map(({ space, account }) => `${space} ${account}`)
      )
      assert.deepEqual(
        sure.filter((schedule) => !kept.has(schedule)),
        [],
        'acknowledged, and lost'
      )
    }
  }
  try {
    await Promise.all([made, killing()])
  } finally {
    stop.abort()
  }
  return { unanswered }
}

/** Has the accounts come due one after the other, the Spaces in turns. */
async function makeDue(customers: Customer[], stores: Stores): Promise<void> {
  const now = Date.now()
  for (const { space, accounts } of customers) {
    for (const [at, account] of accounts.entries()) {
      await stores.database
        .updateTable('schedules')
        .set({ next: now + Math.round((DUE_WITHIN * at) / accounts.length) })
        .where('space', '=', space.did())
        .where('account', '=', account)
        // A few are due by themselves, for the first time.
        .where('last_run', 'is', null)
        .where('owner', 'is', null)
        .execute()
    }
  }
}

/** Kills one after the other, until all accounts are backed up. */
async function killUntilDone(
  victims: Place[],
  stores: Stores
): Promise<{ all: number; schedulers: number }> {
  const kills = { all: 0, schedulers: 0 }
  const share = victims.length > 1 ? PROGRESS.several : PROGRESS.one
  const progress = Math.ceil(ACCOUNTS * share)
  const deadline = Date.now() + LONGEST
  const countLeft = async () => {
    assert.ok(Date.now() < deadline, `not done within ${LONGEST} ms`)
    const rows = await stores.database
      .selectFrom('schedules')
      .select(['last_run', 'owner'])
      .execute()
    // None that was acknowledged is lost.
    assert.equal(rows.length, ACCOUNTS)
    return rows.filter(
      ({ last_run, owner }) => last_run === null || owner !== null
    ).length
  }
  for (let at = 0; ; at++) {
    const before = await countLeft()
    const enough = before - Math.min(progress, before)
    await sleep(between(PAUSE))
    let left
    while ((left = await countLeft()) > enough) await sleep(100)
    if (left === 0) return kills
    const victim = victims[at % victims.length]!
    // Others are killed while it starts, but it is not, before it has.
    await victim.connection
    kills.all++
    if (victim.role === 'scheduler') kills.schedulers++
    // What fails is told to whoever waits for the connection.
    victim.kill().catch(() => {})
  }
}

/** Reads the backups from the Spaces, as their owners would. */
async function checkBackups(
  customers: Customer[],
  network: Network,
  connection: Connection
): Promise<void> {
  for (const { config, accounts } of customers) {
    const reader = createSpaceReader({
      gateways: [new URL(network.storacha.url)],
      fetch,
      createSha256,
    })
    const { ok } = await Clock.head(config, { connection })
    assert.ok(ok)
    const { state, unreadable } = await mergeHeads(reader, ok.head as never)
    assert.deepEqual(unreadable, [])
    for (const account of accounts) {
      const backups = await Array.fromAsync(listBackups(reader, state, account))
      assert.ok(backups.length >= 1, `${account} has no backup`)
    }
  }
}

async function createAccounts({ pds }: Network): Promise<AccountDID[]> {
  const creating = new PQueue({ concurrency: CONCURRENT_CUSTOMERS })
  return creating.addAll(
    Array.from({ length: ACCOUNTS }, (_, at) => async () => {
      const { agent, did } = await pds.createAccount({
        handle: `account-${at}.test`,
      })
      await seedAccount(agent, { posts: 2, blobs: [500], salt: `${at}` })
      return did as AccountDID
    })
  )
}

async function createCustomers(
  network: Network,
  accounts: AccountDID[]
): Promise<Customer[]> {
  const firsts = Array.from(
    { length: Math.ceil(accounts.length / ACCOUNTS_PER_SPACE) },
    (_, at) => at * ACCOUNTS_PER_SPACE
  )
  return Promise.all(
    firsts.map((first) =>
      createCustomer(network, accounts.slice(first, first + ACCOUNTS_PER_SPACE))
    )
  )
}

async function createCustomer(
  network: Network,
  accounts: AccountDID[]
): Promise<Customer> {
  const { alice, space } = await createActors()
  await network.storacha.provision(space.did())
  return {
    space,
    accounts,
    config: {
      issuer: alice,
      with: space.did(),
      proofs: [await allow(space, alice, ['backup/*', 'clock/*'])],
    },
  }
}

async function agentOf({ id }: Connection): Promise<string> {
  const host = decodeURIComponent(id.did().slice('did:web:'.length))
  const response = await fetch(`http://${host}/`)
  return ((await response.json()) as { agent: string }).agent
}

/** The connection broke before the answer, or in the middle of it. */
function isBroken(error: unknown): boolean {
  return (
    error instanceof ServiceUnreachableError ||
    (error instanceof TypeError && error.message === 'terminated')
  )
}
