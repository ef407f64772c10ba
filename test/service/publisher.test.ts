import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { Authorization, Backup } from '../../src/client/index.ts'
import { systemTime } from '../../src/node/index.ts'
import { createLogger } from '../../src/service/logger.ts'
import {
  createPublisher,
  PUBLISHER_POLICY,
  type PublisherContext,
} from '../../src/service/publisher.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import { openStores } from '../../src/stores/index.ts'
import { consent } from '../network/consent.ts'
import { startNetwork, type Account, type Network } from '../network/index.ts'
import { comeBack } from './come-back.ts'
import {
  allow,
  createActors,
  createFolder,
  startTestService,
  until,
  type Space,
  type TestService,
} from './harness.ts'

const HOUR = 60 * 60_000

describe('authorizations that are on their way into a Space', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let account: Account & { did: `did:plc:${string}` }
  let delay = 0
  let refreshes = 0

  before(async () => {
    network = resources.use(
      await startNetwork({
        pds: {
          async onRefresh() {
            refreshes++
            await sleep(delay)
          },
        },
      })
    )
    account = (await network.pds.createAccount({
      handle: 'alice.test',
    })) as typeof account
  })

  after(() => resources.disposeAsync())

  afterEach(() => {
    network.storacha.faults.down = false
    delay = 0
  })

  /** Lets the service into the account, for backups in one more Space. */
  const authorize = async (
    service: TestService,
    { isProvisioned = true } = {}
  ) => {
    const { alice, space } = await createActors()
    if (isProvisioned) await network.storacha.provision(space.did())
    const config = {
      issuer: alice,
      with: space.did(),
      proofs: [await allow(space, alice, ['authorization/*', 'backup/*'])],
    }
    const delegation = await allow(space, service.agent, BACKUP_ABILITIES)
    const { ok, error } = await Authorization.request(
      config,
      { account: account.did, include: ['preferences'], delegation },
      { connection: service.connection }
    )
    assert.equal(error, undefined, error?.message)
    const { handle: username, password } = account
    const back = await consent(new URL(ok.url), { username, password })
    const { page } = await comeBack(back)
    return { page, config, delegation, space }
  }

  const isPublished = async (service: TestService, space: Space) => {
    await using stores = await openStores({
      path: `${service.config.dataFolder}/service.sqlite`,
    })
    const grant = await stores.grants.get(space.did(), account.did)
    return grant?.published === grant?.seq && grant?.sealed === undefined
  }

  it('get there by themselves when it can be reached again', async () => {
    await using service = await startTestService({}, network.environment, {
      publisherPolicy: { ...PUBLISHER_POLICY, patience: 0, interval: 20 },
    })
    network.storacha.faults.down = true
    const { page, space } = await authorize(service)
    assert.match(page, /gets into your Space as soon as it can be reached/)
    assert.equal(await isPublished(service, space), false)
    network.storacha.faults.down = false
    await until(() => isPublished(service, space))
  })

  it('are held up by none that cannot get there', async () => {
    await using service = await startTestService({}, network.environment, {
      publisherPolicy: {
        ...PUBLISHER_POLICY,
        patience: 0,
        interval: 20,
        batch: 1,
        concurrency: 1,
      },
    })
    const stuck: Space[] = []
    for (let count = 0; count < 2; count++) {
      const { space } = await authorize(service, { isProvisioned: false })
      stuck.push(space)
    }
    network.storacha.faults.down = true
    const { space } = await authorize(service)
    network.storacha.faults.down = false
    await until(() => isPublished(service, space))
    for (const space of stuck) {
      assert.equal(await isPublished(service, space), false)
    }
  })

  it('are not lost when the service goes down in the middle of a refresh', async () => {
    await using folder = await createFolder()
    let ahead = 0
    const service = await startTestService(
      { dataFolder: folder.path, drainTimeout: '0' },
      network.environment,
      {
        time: { ...systemTime, now: () => Date.now() + ahead },
        // The run itself is left behind at once.
        policy: { ...RUNNER_POLICY, grace: 10 },
      }
    )
    const { config, delegation, space } = await authorize(service)
    ahead = 2 * HOUR
    delay = 700
    refreshes = 0
    const { error } = await Backup.run(
      config,
      { account: account.did, include: ['preferences'], delegation },
      { connection: service.connection }
    )
    assert.equal(error, undefined)
    await until(() => refreshes > 0)
    await service[Symbol.asyncDispose]()
    await using stores = await openStores({
      path: `${folder.path}/service.sqlite`,
    })
    const grant = await stores.grants.get(space.did(), account.did)
    assert.equal(grant?.seq, 2)
    assert.equal(grant.refreshing, undefined)
  })

  it('are held up by no host that does not take back what it has granted', async () => {
    let looks = 0
    let ended = 0
    const publisher = createPublisher({
      grants: {
        pending: async () => undefined,
        async pendingOlderThan() {
          looks++
          return []
        },
        attempted: async () => {},
        published: async () => true,
        giveBack: (_before, { signal }) => {
          signal?.addEventListener('abort', () => ended++)
          return new Promise(() => {})
        },
      },
      policy: { ...PUBLISHER_POLICY, interval: 1 },
      time: systemTime,
      logger: createLogger('silent'),
      gateways: [],
    } as Partial<PublisherContext> as PublisherContext)
    publisher.start()
    await until(() => looks > 3)
    await publisher.stop()
    assert.equal(ended, 1)
    const before = looks
    await sleep(20)
    assert.equal(looks, before)
  })

  it('hold up no host that is told again what is given back', async () => {
    let told = 0
    const looking = Promise.withResolvers<never[]>()
    const publisher = createPublisher({
      grants: {
        pending: async () => undefined,
        pendingOlderThan: () => looking.promise,
        attempted: async () => {},
        published: async () => true,
        async giveBack() {
          told++
        },
      },
      policy: { ...PUBLISHER_POLICY, interval: 1 },
      time: systemTime,
      logger: createLogger('silent'),
      gateways: [],
    } as Partial<PublisherContext> as PublisherContext)
    publisher.start()
    await until(() => told > 3)
    looking.resolve([])
    await publisher.stop()
  })
})
