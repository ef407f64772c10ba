import assert from 'node:assert/strict'
import { join } from 'node:path'
import type { Signer } from '@ucanto/interface'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { Backup, type InvocationConfig } from '../../src/client/index.ts'
import { SCHEDULER_POLICY } from '../../src/scheduler/index.ts'
import { HOST_POLICY } from '../../src/service/hosts.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import { openStores } from '../../src/stores/index.ts'
import {
  seedAccount,
  startNetwork,
  startUnwellHost,
  type Account,
  type Ailment,
  type Network,
  type Pds,
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

const ABILITIES = ['backup/run', ...BACKUP_ABILITIES]
const SECOND = 1_000
const OPTIONS = {
  policy: { ...RUNNER_POLICY, progress: 50, poll: 50 },
  schedulerPolicy: {
    ...SCHEDULER_POLICY,
    sweep: 50,
    poll: 20,
    backoff: 100,
    busy: 100,
    moved: 0.3,
  },
  hostPolicy: {
    ...HOST_POLICY,
    period: SECOND,
    failures: 3,
    closure: SECOND / 2,
    maxClosure: SECOND,
    pause: SECOND,
    refresh: 50,
    probe: 2 * SECOND,
  },
  fetchLimits: {
    small: { timeout: 2 * SECOND },
    stream: { headTimeout: 10 * SECOND, idleTimeout: 2 * SECOND },
  },
}

type Member = Account & { did: `did:plc:${string}` }

describe('hosts that are unwell', function () {
  // On a machine that has other things to do.
  this.timeout(160_000)

  const resources = new AsyncDisposableStack()
  let network: Network
  let service: TestService
  let unwell: UnwellHost
  let alice: Signer
  let space: Space
  let config: InvocationConfig
  /** On a host that is well. */
  let account: Member
  let accounts = 0

  const createAccount = async (pds: Pds, seed = {}): Promise<Member> => {
    const account = await pds.createAccount({ handle: `bob${++accounts}.test` })
    await seedAccount(account.agent, { posts: 2, ...seed })
    return account as Member
  }

  before(async () => {
    network = resources.use(await startNetwork())
    service = resources.use(
      await startTestService(
        { minScheduleInterval: '1', hostRate: '600' },
        network.environment,
        OPTIONS
      )
    )
    account = await createAccount(network.pds)
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    unwell = await startUnwellHost({ plcUrl: network.plc.url })
    ;({ alice, space } = await createActors())
    await network.storacha.provision(space.did())
    config = {
      issuer: alice,
      with: space.did(),
      proofs: [await allow(space, alice, ['backup/*'])],
    }
  })

  afterEach(async () => {
    for (const { account } of await schedules()) {
      await Backup.unschedule(
        config,
        { account: account as Member['did'] },
        service
      )
    }
    await unwell[Symbol.asyncDispose]()
  })

  const fresh = () => ({ ...service, nonce: crypto.randomUUID() })

  const schedules = async () =>
    (await Backup.schedules(config, fresh())).ok?.schedules ?? []

  const schedule = async ({ did }: Member) => {
    const { error } = await Backup.schedule(
      config,
      {
        account: did,
        every: 1,
        delegation: await allow(space, service.agent, ABILITIES),
      },
      service
    )
    assert.equal(error, undefined, error?.message)
  }

  const present = async ({ did }: Member) =>
    (await schedules()).find(({ account }) => account === did)!

  const lastRun = ({ did }: Member) =>
    until(async () => (await present({ did } as Member)).lastRun)

  /** Scheduled runs of an account that came to their end well. */
  const done = ({ did }: Member) =>
    service.logs.filter(
      (line) =>
        line.msg === 'scheduled run done' &&
        line.account === did &&
        line.space === space.did()
    ).length

  const runNow = async ({ did }: Member) => {
    const { ok, error } = await Backup.run(
      config,
      {
        account: did,
        delegation: await allow(space, service.agent, BACKUP_ABILITIES),
      },
      fresh()
    )
    assert.equal(error, undefined, error?.message)
    return until(async () => {
      const status = await Backup.status(config, { run: ok.run }, fresh())
      const [run] = status.ok!.runs
      return run?.finished === undefined ? undefined : run
    }, 60_000)
  }

  /** The account of the host that is well has its runs meanwhile. */
  const othersGoOn = async () => {
    const before = done(account)
    await until(() => done(account) >= before + 2, 60_000)
  }

  it('are asked once and not again, when they want to be left alone', async () => {
    const bob = await createAccount(unwell.pds)
    unwell.ailment = () => ({ status: 429, headers: { 'retry-after': '600' } })
    await schedule(account)
    await schedule(bob)
    const { error, finished } = await lastRun(bob)
    assert.equal(error?.name, 'HostUnavailableError')
    assert.match(error.message, /localhost:\d+ wants fewer requests/)
    const { state, next } = await present(bob)
    assert.equal(state, 'active')
    assert.ok(next! - finished > 590 * SECOND)

    // The whole host, and not the account alone.
    const carol = await createAccount(unwell.pds)
    const run = await runNow(carol)
    assert.equal(run.state, 'failed')
    assert.equal(run.error?.name, 'HostUnavailableError')
    assert.match(run.error.message, /Try again in \d+ seconds\./)
    assert.ok(run.error.retryAfter! > 500 && run.error.retryAfter! <= 600)

    await othersGoOn()
    assert.equal(unwell.asked.length, 1)
  })

  it('are believed for an hour, whatever they say', async () => {
    const bob = await createAccount(unwell.pds)
    const years = new Date(Date.now() + 10 * 365 * 86_400 * SECOND)
    unwell.ailment = () => ({
      status: 503,
      headers: { 'retry-after': years.toUTCString() },
    })
    const { error } = await runNow(bob)
    assert.equal(error?.name, 'HostUnavailableError')
    assert.equal(error.retryAfter, 3600)
  })

  it('are asked again when the time is over that they did not tell', async () => {
    const bob = await createAccount(unwell.pds)
    unwell.ailment = () =>
      unwell.asked.length > 1
        ? 'none'
        : {
            status: 429,
            headers: { 'content-type': 'text/html' },
            body: '<h1>Too Many Requests</h1>',
          }
    await schedule(bob)
    await until(() => done(bob), 60_000)
    const [first, second] = unwell.asked
    assert.ok(second!.at - first!.at >= OPTIONS.hostPolicy.pause)
  })

  for (const [what, ailment] of [
    ['hang', 'hangs'],
    ['break connections', 'resets'],
    ['answer that they are down', { status: 502 }],
    ['are dead', 'dead'],
  ] as [string, Ailment | 'dead'][]) {
    it(`are left alone while they ${what}, and come back`, async () => {
      const members = [
        await createAccount(unwell.pds),
        await createAccount(unwell.pds),
        await createAccount(unwell.pds),
      ]
      if (ailment === 'dead') await unwell.die()
      else unwell.ailment = () => ailment
      await schedule(account)
      for (const each of members) await schedule(each)
      await until(
        () => service.logged().includes(`"host":"${unwell.host}"`),
        60_000
      )
      const failed = await until(async () => {
        const all = await Promise.all(members.map(present))
        return all.find(({ lastRun }) => lastRun)
      }, 60_000)
      assert.match(failed.lastRun!.error!.name, /^Host(Unavailable)?Error$/)
      assert.equal(failed.state, 'active')
      // Those that were under way when it was left alone, and then probes.
      const before = unwell.asked.length
      const beganAt = Date.now()
      await othersGoOn()
      const closures = (Date.now() - beganAt) / (OPTIONS.hostPolicy.closure / 2)
      assert.ok(unwell.asked.length - before <= Math.ceil(closures) + 4)
      if (ailment === 'dead') await unwell.revive()
      else unwell.ailment = () => 'none'
      await until(() => members.every((each) => done(each) > 0), 60_000)
    })
  }

  it('do not keep accounts that have moved away', async () => {
    const { did } = account
    await schedule(account)
    const { run } = await lastRun(account)
    unwell.ailment = () => ({ status: 429, headers: { 'retry-after': '600' } })
    const bob = await createAccount(unwell.pds)
    assert.equal((await runNow(bob)).error?.name, 'HostUnavailableError')
    // As if it had been there the last time.
    await using stores = await openStores({
      path: join(service.config.dataFolder, 'service.sqlite'),
    })
    await until(async () => {
      await stores.database
        .updateTable('schedules')
        .set({ host: unwell.host, next: Date.now() })
        .where('account', '=', did)
        .where('space', '=', space.did())
        .where('owner', 'is', null)
        .execute()
      await new Promise((resolve) => setTimeout(resolve, 200))
      const { lastRun } = await present(account)
      return lastRun?.run !== run && lastRun?.outcome === 'unchanged'
    })
    assert.equal(unwell.asked.length, 1)
  })

  it('leave room for others, however long they take', async () => {
    await using patient = await startTestService(
      { minScheduleInterval: '1', concurrentRuns: '2' },
      network.environment,
      {
        ...OPTIONS,
        schedulerPolicy: { ...OPTIONS.schedulerPolicy, busy: 5 * SECOND },
        fetchLimits: { small: { timeout: 60 * SECOND } },
      }
    )
    unwell.ailment = () => 'hangs'
    const add = async ({ did }: Member) => {
      const { error } = await Backup.schedule(
        config,
        {
          account: did,
          every: 1,
          delegation: await allow(space, patient.agent, ABILITIES),
        },
        patient
      )
      assert.equal(error, undefined, error?.message)
    }
    for (let i = 0; i < 4; i++) await add(await createAccount(unwell.pds))
    await until(() => unwell.asked.length > 0)
    await add(account)
    await until(async () => {
      const { ok } = await Backup.schedules(config, {
        ...patient,
        nonce: crypto.randomUUID(),
      })
      const { lastRun } = ok!.schedules.find(
        ({ account: did }) => did === account.did
      )!
      return lastRun?.outcome === 'unchanged'
    }, 60_000)
    assert.equal(unwell.asked.length, 1)
  })

  it('leave nothing out for being unwell in the middle', async () => {
    const blobs = Array.from({ length: 12 }, (_, index) => 1000 + index)
    const bob = await createAccount(unwell.pds, { blobs })
    let allowed = 5
    unwell.ailment = ({ cid }) =>
      cid === undefined || allowed-- > 0
        ? 'none'
        : { status: 429, headers: { 'retry-after': '1' } }
    const first = await runNow(bob)
    assert.equal(first.error?.name, 'HostUnavailableError')
    const given = unwell.asked.flatMap(({ cid }) => cid ?? []).slice(0, 5)

    unwell.ailment = () => 'none'
    await new Promise((resolve) => setTimeout(resolve, SECOND))
    unwell.asked.length = 0
    const { outcome, error } = await runNow(bob)
    assert.equal(error, undefined, error?.message)
    assert.equal(outcome?.kind, 'first')
    assert.equal(outcome.blobsMissing, 0)
    // What it gave the first time, it is not asked for a second time.
    const again = unwell.asked.flatMap(({ cid }) => cid ?? [])
    assert.equal(again.length, blobs.length - 5)
    assert.deepEqual(
      again.filter((cid) => given.includes(cid)),
      []
    )
  })

  it('leave nothing out for stopping in the middle of blobs', async () => {
    const blobs = Array.from({ length: 12 }, (_, index) => 1000 + index)
    const bob = await createAccount(unwell.pds, { blobs })
    unwell.ailment = ({ cid }) => (cid === undefined ? 'none' : 'stalls')
    const first = await runNow(bob)
    assert.equal(first.error?.name, 'HostUnavailableError')
    unwell.ailment = () => 'none'
    await schedule(bob)
    await until(() => done(bob), 60_000)
    const { ok } = await Backup.status(config, {}, fresh())
    const well = ok!.runs.find(({ state }) => state === 'done')
    assert.equal(well?.outcome?.blobsMissing, 0)
  })

  it('are not asked more often than they can bear', async () => {
    const blobs = Array.from({ length: 40 }, (_, index) => 1000 + index)
    const bob = await createAccount(unwell.pds, { blobs })
    const begun = Date.now()
    const { outcome, error } = await runNow(bob)
    assert.equal(error, undefined, error?.message)
    assert.equal(outcome?.blobsMissing, 0)
    assert.ok(unwell.asked.length > blobs.length)
    const periods = Math.ceil(unwell.asked.length / 10)
    assert.ok(unwell.asked.at(-1)!.at - begun >= (periods - 1) * SECOND)
  })
})
