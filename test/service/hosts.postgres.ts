import assert from 'node:assert/strict'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import {
  Backup,
  connect,
  type InvocationConfig,
} from '../../src/client/index.ts'
import { createHostBudget } from '../../src/service/host-budget.ts'
import { HOST_POLICY } from '../../src/service/hosts.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import { openStores } from '../../src/stores/index.ts'
import {
  seedAccount,
  startNetwork,
  startUnwellHost,
  type Account,
  type Network,
  type UnwellHost,
} from '../network/index.ts'
import {
  allow,
  createActors,
  startTestService,
  until,
  type Space,
  type TestService,
} from './harness.ts'
import {
  createPostgresStore,
  databaseServer,
  type TestStore,
} from './slow-stores.ts'

const SECOND = 1_000
const OPTIONS = {
  policy: { ...RUNNER_POLICY, poll: 50, progress: 50 },
  hostPolicy: {
    ...HOST_POLICY,
    period: SECOND,
    failures: 3,
    closure: 600 * SECOND,
    refresh: 50,
  },
  fetchLimits: { small: { timeout: SECOND } },
}

describe('hosts that several workers on one PostgreSQL visit', () => {
  let resources: AsyncDisposableStack
  let store: TestStore

  beforeEach(async () => {
    assert.ok(databaseServer, 'run: npm run test:postgres')
    resources = new AsyncDisposableStack()
    store = resources.use(await createPostgresStore(databaseServer))
  })

  afterEach(() => resources.disposeAsync())

  it('share one budget', async () => {
    const budgets = await Promise.all(
      Array.from({ length: 3 }, async () => {
        const { database } = resources.use(await openStores(store.options))
        return createHostBudget({ rate: 480, period: 60, database })
      })
    )
    const taken = await Promise.all(
      Array.from({ length: 250 }, () =>
        budgets.map((budget) => budget.take('pds.example'))
      ).flat()
    )
    assert.equal(taken.filter((wait) => wait === 0).length, 480)
    assert.equal(await budgets[0]!.take('b.example'), 0)
    for (const budget of budgets) {
      assert.equal(budget.remaining('pds.example'), 0)
      assert.equal(budget.spent().size, 1)
    }
  })

  describe('as services', () => {
    let network: Network
    let unwell: UnwellHost
    let space: Space
    let config: InvocationConfig
    let accounts: (Account & { did: `did:plc:${string}` })[]

    beforeEach(async () => {
      network = resources.use(await startNetwork())
      unwell = resources.use(await startUnwellHost({ plcUrl: network.plc.url }))
      const actors = await createActors()
      space = actors.space
      await network.storacha.provision(space.did())
      config = {
        issuer: actors.alice,
        with: space.did(),
        proofs: [await allow(space, actors.alice, ['backup/*'])],
      }
      accounts = []
      for (let i = 0; i < 6; i++) {
        const account = await unwell.pds.createAccount({
          handle: `bob${i}.test`,
        })
        const blobs = [1000 + i, 2000 + i, 3000 + i, 4000 + i]
        await seedAccount(account.agent, { posts: 1, blobs })
        accounts.push(account as (typeof accounts)[number])
      }
    })

    const start = async (settings = {}) =>
      resources.use(
        await startTestService(
          { dataFolder: store.dataFolder, ...settings },
          { ...network.environment, DATABASE_URL: store.databaseUrl! },
          OPTIONS
        )
      )

    const runAll = async ({ url, agent }: TestService) => {
      const connection = connect({ url, did: agent })
      const delegation = await allow(space, agent, BACKUP_ABILITIES)
      const links: { toString(): string }[] = []
      for (const { did } of accounts) {
        const { ok, error } = await Backup.run(
          config,
          { account: did, delegation },
          { connection, nonce: crypto.randomUUID() }
        )
        assert.equal(error, undefined, error?.message)
        links.push(ok.run)
      }
      return until(async () => {
        const { ok } = await Backup.status(
          config,
          {},
          { connection, nonce: crypto.randomUUID() }
        )
        const runs = ok!.runs.filter(({ run }) =>
          links.some((link) => link.toString() === run.toString())
        )
        return runs.every(({ finished }) => finished !== undefined) && runs
      }, 25_000)
    }

    it('stay within the budget together', async () => {
      const services = [
        await start({ hostRate: '600', concurrentRuns: '3' }),
        await start({ hostRate: '600', concurrentRuns: '3' }),
      ]
      const begun = Date.now()
      const runs = await runAll(services[0]!)
      for (const { error } of runs) {
        // What had not begun when nothing was left comes back later.
        assert.match(error?.name ?? '', /^(HostUnavailableError)?$/)
      }
      const runsOf = ({ logs }: TestService) =>
        logs.filter(({ run }) => run !== undefined).length
      for (const service of services) assert.ok(runsOf(service) > 0)
      const { asked } = unwell
      const periods = Math.ceil(asked.length / 10)
      assert.ok(periods >= 2)
      assert.ok(asked.at(-1)!.at - begun >= (periods - 1) * SECOND)
    })

    it('leave a host alone together, also those that start later', async () => {
      const services = [
        await start({ concurrentRuns: '1', hostRate: '6000' }),
        await start({ concurrentRuns: '1', hostRate: '6000' }),
      ]
      unwell.ailment = () => 'hangs'
      const runs = await runAll(services[0]!)
      const names = runs.map(({ error }) => error?.name)
      assert.ok(names.includes('HostError'))
      assert.ok(names.includes('HostUnavailableError'))
      // Three failures in all, and what was under way with the third.
      assert.ok(unwell.asked.length <= 4, `${unwell.asked.length} requests`)
      const told = services.flatMap(({ logs }) =>
        logs.filter(({ msg }) => msg === 'a host is left alone')
      )
      assert.equal(told.length, 1)

      const before = unwell.asked.length
      for (const service of services) await service[Symbol.asyncDispose]()
      const later = await runAll(await start())
      for (const { error } of later) {
        assert.equal(error?.name, 'HostUnavailableError')
        assert.ok(error.retryAfter! > 0)
      }
      assert.equal(unwell.asked.length, before)
    })
  })
})
