import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Signer } from '@ucanto/interface'
import PQueue from 'p-queue'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { createSha256 } from '../../src/backup/index.ts'
import {
  Backup,
  Clock,
  type Connection,
  type InvocationConfig,
} from '../../src/client/index.ts'
import { listBackups, mergeHeads } from '../../src/space/index.ts'
import { createSpaceReader } from '../../src/storacha/index.ts'
import { openStores } from '../../src/stores/index.ts'
import {
  seedAccount,
  startNetwork,
  type Account,
  type Network,
} from '../network/index.ts'
import { allow, createActors, until, type Space } from './harness.ts'
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
/** Customers that are made at the same time. */
const CONCURRENT_CUSTOMERS = 4
const WORKERS = 3
/** Milliseconds between two kills. */
const KILL_EVERY = 4_000
const KILLS = 4
const DAY = 24 * 60 * 60
const LONGEST = 500_000

type AccountDID = `did:plc:${string}`

interface Customer {
  space: Space
  config: InvocationConfig & { issuer: Signer }
  accounts: AccountDID[]
}

describe('schedules whose workers are killed', () => {
  it('are all kept, on PostgreSQL with three workers', async function () {
    const server = databaseServer
    if (server === undefined) return this.skip()
    await run(() => createPostgresStore(server), WORKERS)
  })

  it('are all kept, on SQLite with one process', () =>
    run(createEmbeddedStore, 1))
})

async function run(
  createStore: () => Promise<TestStore>,
  count: number
): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const network = resources.use(await startNetwork())
  const store = resources.use(await createStore())
  const load = (role: string) =>
    loadServiceProcess(store, {
      ...network.environment,
      BLUESKY_BACKUPS_ROLE: count > 1 ? role : 'all',
      BLUESKY_BACKUPS_CONCURRENT_RUNS: '4',
    })
  const begin = async (process: ServiceProcess): Promise<Connection> => {
    const connection = await process.start()
    assert.ok(connection)
    return connection
  }

  // One process answers and is never killed where others do the work.
  let front = resources.use(await load('api'))
  let connection = await begin(front)
  const customers = await createCustomers(network)
  const agent = await agentOf(connection)
  for (const { space, config, accounts } of customers) {
    const delegation = await allow(space, agent, [
      'backup/run',
      ...BACKUP_ABILITIES,
    ])
    for (const account of accounts) {
      const { error } = await Backup.schedule(
        config,
        { account, every: DAY, delegation },
        { connection }
      )
      assert.equal(error, undefined, error?.message)
    }
  }
  // What was acknowledged survives: nobody takes leave here either.
  if (count === 1) await front.kill()

  const stores = resources.use(await openStores(store.options))
  const now = Date.now()
  for (const { space, accounts } of customers) {
    for (const [at, account] of accounts.entries()) {
      // As they are spread, accounts come from all of the Spaces in turns.
      const { numUpdatedRows } = await stores.database
        .updateTable('schedules')
        .set({ next: now - accounts.length + at })
        .where('space', '=', space.did())
        .where('account', '=', account)
        .executeTakeFirst()
      assert.equal(numUpdatedRows, 1n)
    }
  }

  const workers: ServiceProcess[] = []
  resources.defer(async () => {
    await Promise.all(workers.map((worker) => worker.kill()))
  })
  const startWorker = async (at: number) => {
    const worker = await load('worker')
    workers[at] = worker
    const reached = await begin(worker)
    if (count === 1) [front, connection] = [worker, reached]
  }
  if (count > 1) {
    const scheduler = resources.use(await load('scheduler'))
    await begin(scheduler)
  }
  await Promise.all(Array.from({ length: count }, (_, at) => startWorker(at)))

  let kills = 0
  const killing = (async () => {
    for (; kills < KILLS; kills++) {
      await sleep(KILL_EVERY * (0.5 + Math.random()))
      const victim = kills % count
      await workers[victim]?.kill()
      await startWorker(victim)
    }
  })()
  const done = until(async () => {
    const rows = await stores.database
      .selectFrom('schedules')
      .select(['state', 'last_run', 'owner'])
      .execute()
    // None that was acknowledged is lost.
    assert.equal(rows.length, ACCOUNTS)
    return rows.every(
      ({ last_run, owner }) => last_run !== null && owner === null
    )
  }, LONGEST)
  await killing
  await done
  assert.equal(kills, KILLS)

  const runs = await stores.database
    .selectFrom('runs')
    .select(['account', 'state', 'started', 'finished', 'outcome', 'error'])
    .execute()
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
      const own = runs
        .filter((run) => run.account === account)
        .sort((a, b) => (a.started ?? 0) - (b.started ?? 0))
      assert.ok(own.some(({ state }) => state === 'done'))
      for (const [at, { finished, error }] of own.entries()) {
        assert.ok(finished !== null, error ?? account)
        const next = own[at + 1]
        // Never twice at once.
        assert.ok(!next || (next.started ?? 0) >= finished)
      }
    }
  }
}

async function createCustomers(network: Network): Promise<Customer[]> {
  const making = new PQueue({ concurrency: CONCURRENT_CUSTOMERS })
  const firsts = Array.from(
    { length: Math.ceil(ACCOUNTS / ACCOUNTS_PER_SPACE) },
    (_, at) => at * ACCOUNTS_PER_SPACE
  )
  return making.addAll(
    firsts.map((first) => () => createCustomer(network, first))
  )
}

async function createCustomer(
  network: Network,
  first: number
): Promise<Customer> {
  const { alice, space } = await createActors()
  await network.storacha.provision(space.did())
  const accounts: AccountDID[] = []
  const end = Math.min(ACCOUNTS, first + ACCOUNTS_PER_SPACE)
  for (let at = first; at < end; at++) {
    const account: Account = await network.pds.createAccount({
      handle: `account-${at}.test`,
    })
    await seedAccount(account.agent, {
      posts: 2,
      blobs: [500],
      salt: `${at}`,
    })
    accounts.push(account.did as AccountDID)
  }
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
