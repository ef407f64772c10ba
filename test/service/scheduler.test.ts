import assert from 'node:assert/strict'
import type { Delegation, Signer } from '@ucanto/interface'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import {
  Backup,
  Clock,
  Revocation,
  type InvocationConfig,
} from '../../src/client/index.ts'
import { createSha256 } from '../../src/backup/index.ts'
import { SCHEDULER_POLICY } from '../../src/scheduler/index.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import { listBackups, mergeHeads } from '../../src/space/index.ts'
import { createSpaceReader } from '../../src/storacha/index.ts'
import {
  seedAccount,
  startNetwork,
  type Account,
  type Network,
} from '../network/index.ts'
import {
  allow,
  createActors,
  createFolder,
  startTestService,
  until,
  type Space,
  type TestService,
} from './harness.ts'

const ABILITIES = ['backup/run', ...BACKUP_ABILITIES]
const EVERY = 2
const SETTINGS = { minScheduleInterval: '1' }
const OPTIONS = {
  policy: { ...RUNNER_POLICY, progress: 20, poll: 50 },
  schedulerPolicy: {
    ...SCHEDULER_POLICY,
    sweep: 50,
    poll: 20,
    backoff: 100,
    busy: 100,
    absence: 1_000,
    lease: 3_000,
    keep: 500,
  },
}

/** So small that a backup has many, which takes a while. Bytes. */
const SHARD_SIZE = 256 * 1024
const BLOBS = 40
const BLOB_SIZE = 100_000

describe('schedules of the service', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: TestService
  let account: Account & { did: `did:plc:${string}` }
  let alice: Signer
  let space: Space
  let config: InvocationConfig

  before(async () => {
    network = resources.use(await startNetwork())
    service = resources.use(
      await startTestService(SETTINGS, network.environment, OPTIONS)
    )
    account = (await network.pds.createAccount({
      handle: 'alice.test',
    })) as typeof account
    await seedAccount(account.agent, { posts: 5, blobs: [1000] })
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    ;({ alice, space } = await createActors())
    await network.storacha.provision(space.did())
    config = {
      issuer: alice,
      with: space.did(),
      proofs: [await allow(space, alice, ['backup/*', 'clock/*'])],
    }
  })

  afterEach(async () => {
    network.storacha.faults.uploadsClosed = false
    await Backup.unschedule(config, { account: account.did }, service)
  })

  const schedule = async (delegation: Delegation, every = EVERY) => {
    const { ok, error } = await Backup.schedule(
      config,
      { account: account.did, every, delegation },
      { ...service, nonce: crypto.randomUUID() }
    )
    assert.equal(error, undefined, error?.message)
    return ok.schedule
  }

  const present = async (at: Pick<TestService, 'connection'> = service) => {
    const { ok, error } = await Backup.schedules(config, {
      ...at,
      nonce: crypto.randomUUID(),
    })
    assert.equal(error, undefined, error?.message)
    return ok.schedules[0]
  }

  const backups = async () => {
    const { ok } = await Clock.head(config, {
      ...service,
      nonce: crypto.randomUUID(),
    })
    const reader = createSpaceReader({
      gateways: [new URL(network.storacha.url)],
      fetch,
      createSha256,
    })
    const { state } = await mergeHeads(reader, ok!.head as never)
    return Array.fromAsync(listBackups(reader, state, account.did))
  }

  it('make backups by themselves, again and again', async () => {
    const made = await schedule(await allow(space, service.agent, ABILITIES))
    assert.equal(made.state, 'active')
    const first = await until(async () => {
      const { lastRun, next } = (await present())!
      return lastRun && { ...lastRun, next }
    })
    assert.equal(first.outcome, 'first')
    assert.equal((await backups()).length, 1)
    await account.agent.post({ text: 'news' })
    const second = await until(async () => {
      const { lastRun, next } = (await present())!
      return lastRun?.outcome === 'incremental' && { ...lastRun, next }
    })
    assert.equal(((second.next ?? 0) - (first.next ?? 0)) % (EVERY * 1000), 0)
    assert.equal((await backups()).length, 2)
    // It was the service's own agent that asked, and nobody else.
    const { ok } = await Backup.status(config, {}, service)
    assert.ok(ok && ok.runs.length >= 2)
  })

  it('stop when the delegation is revoked, and go on when it is renewed', async () => {
    const delegation = await allow(space, service.agent, ABILITIES)
    await schedule(delegation)
    await until(async () => (await present())?.lastRun)
    const revoked = await Revocation.revoke(
      { issuer: space, with: space.did() },
      delegation,
      service
    )
    assert.equal(revoked.error, undefined)
    const stopped = await until(async () => {
      const now = await present()
      return now?.state === 'stopped' && now
    })
    assert.equal(stopped.reason?.name, 'Unauthorized')
    assert.match(stopped.reason.message, /revoked/)
    assert.equal(stopped.next, undefined)
    const runs = async () =>
      (await Backup.status(config, {}, service)).ok!.runs.length
    const before = await runs()

    const renewed = await schedule(
      await allow(space, service.agent, ABILITIES, { expiration: 1e10 })
    )
    assert.equal(renewed.state, 'active')
    assert.equal(renewed.reason, undefined)
    await until(async () => (await runs()) > before)
  })

  it('stop in the middle of a run when the delegation is revoked', async () => {
    const watchful = {
      ...OPTIONS,
      policy: { ...OPTIONS.policy, check: 20 },
      shardSize: SHARD_SIZE,
    }
    await using service = await startTestService(
      SETTINGS,
      network.environment,
      watchful
    )
    const bob = await network.pds.createAccount({ handle: 'bobby.test' })
    const blobs = Array.from({ length: BLOBS }, () => BLOB_SIZE)
    await seedAccount(bob.agent, { posts: 5, blobs })
    const { stats } = network.storacha
    stats.reset()
    const delegation = await allow(space, service.agent, ABILITIES)
    const made = await Backup.schedule(
      config,
      { account: bob.did as `did:plc:x`, every: EVERY, delegation },
      service
    )
    assert.equal(made.error, undefined)
    await until(() => stats.puts >= 2)
    const revoked = await Revocation.revoke(
      { issuer: space, with: space.did() },
      delegation,
      service
    )
    assert.equal(revoked.error, undefined)
    const stopped = await until(async () => {
      const now = await present(service)
      return now?.state === 'stopped' && now
    })
    assert.equal(stopped.reason?.name, 'Unauthorized')
    assert.match(stopped.reason.message, /revoked/)
    assert.equal(stopped.lastRun?.outcome, 'failed')
    assert.equal(stopped.next, undefined)
    const { puts } = stats
    assert.ok(stats.bytesPut < BLOBS * BLOB_SIZE)
    await new Promise((resolve) => setTimeout(resolve, 500))
    assert.equal(stats.puts, puts)
    const { ok } = await Clock.head(config, service)
    assert.deepEqual(ok?.head, [])
  })

  it('wait while they are paused', async () => {
    await schedule(await allow(space, service.agent, ABILITIES))
    await until(async () => (await present())?.lastRun)
    const { ok } = await Backup.pause(config, { account: account.did }, service)
    assert.equal(ok?.schedule.state, 'paused')
    const runs = async () =>
      (
        await Backup.status(
          config,
          {},
          { ...service, nonce: crypto.randomUUID() }
        )
      ).ok!.runs.length
    // One that had begun comes to its end.
    await until(async () => {
      const { ok } = await Backup.status(config, {}, service)
      return ok?.runs.every(({ state }) => /done|failed/.test(state))
    })
    const before = await runs()
    await new Promise((resolve) => setTimeout(resolve, EVERY * 1500))
    assert.equal(await runs(), before)
    await Backup.resume(config, { account: account.did }, service)
    await until(async () => (await runs()) > before)
  })

  it('tell what failed, and go on at the next time', async () => {
    network.storacha.faults.uploadsClosed = true
    await schedule(await allow(space, service.agent, ABILITIES))
    const failed = await until(async () => {
      const now = await present()
      return now?.lastRun && now
    })
    assert.equal(failed.lastRun?.outcome, 'failed')
    assert.equal(failed.lastRun.error?.name, 'SpaceUnavailableError')
    assert.equal(failed.state, 'active')
    assert.ok((failed.next ?? 0) > failed.lastRun.finished)
    network.storacha.faults.uploadsClosed = false
    await until(async () => (await present())?.lastRun?.outcome === 'first')
  })

  it('wait while the account is deactivated, and come back by themselves', async () => {
    const bob = await network.pds.createAccount({ handle: 'bob.test' })
    await seedAccount(bob.agent, { posts: 2 })
    await bob.agent.com.atproto.server.deactivateAccount({})
    const { ok, error } = await Backup.schedule(
      config,
      {
        account: bob.did as typeof account.did,
        every: 1,
        delegation: await allow(space, service.agent, ABILITIES),
      },
      service
    )
    assert.equal(error, undefined, error?.message)
    assert.equal(ok.schedule.state, 'active')
    const waiting = await until(async () => {
      const now = await present()
      return now?.state === 'paused' && now
    })
    assert.equal(waiting.reason?.name, 'AccountUnavailableError')
    assert.ok((waiting.next ?? 0) >= (waiting.lastRun?.finished ?? Infinity))
    await bob.agent.com.atproto.server.activateAccount()
    await until(async () => {
      const now = await present()
      return now?.state === 'active' && now.lastRun?.outcome === 'first'
    })
    await Backup.unschedule(
      config,
      { account: bob.did as typeof account.did },
      service
    )
  })

  it('are kept when the service starts again', async () => {
    await using folder = await createFolder()
    const settings = { ...SETTINGS, dataFolder: folder.path }
    const start = () => startTestService(settings, network.environment, OPTIONS)
    let made
    {
      await using first = await start()
      const { ok, error } = await Backup.schedule(
        config,
        {
          account: account.did,
          every: EVERY,
          delegation: await allow(space, first.agent, ABILITIES),
        },
        first
      )
      assert.equal(error, undefined, error?.message)
      made = ok.schedule
    }
    await using second = await start()
    const found = await until(async () => {
      const now = await present(second)
      return now?.lastRun && now
    })
    assert.equal(found.created, made.created)
    assert.match(found.lastRun!.outcome, /first|unchanged/)
  })
})
