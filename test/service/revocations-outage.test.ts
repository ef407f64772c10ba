import assert from 'node:assert/strict'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import {
  Authorization,
  Backup,
  Clock,
  Revocation,
} from '../../src/client/index.ts'
import { systemTime } from '../../src/node/index.ts'
import { SCHEDULER_POLICY } from '../../src/scheduler/index.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import { seedAccount, startNetwork, type Network } from '../network/index.ts'
import {
  allow,
  createActors,
  failureOf,
  seconds,
  startServer,
  startTestService,
  until,
  type Space,
  type TestService,
} from './harness.ts'

const ABILITIES = ['backup/run', ...BACKUP_ABILITIES]
const NOBODY_CAN_TELL = /^nobody can tell just now/

describe('while nobody can tell what was revoked, with the policy closed', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: TestService
  let space: Space
  let config: { issuer: Space; with: `did:key:${string}` }
  /** Answers of the upload service, but for what was revoked. */
  let down = false
  /** Milliseconds that the service is ahead of the machine. */
  let ahead = 0

  before(async () => {
    network = resources.use(await startNetwork())
    const { url } = network.storacha
    const revocations = resources.use(
      await startServer((request, response) => {
        if (down) {
          response.writeHead(503).end()
          return
        }
        void fetch(new URL(`/revocations${request.url}`, url)).then(
          async (answer) => {
            response.writeHead(answer.status)
            response.end(new Uint8Array(await answer.arrayBuffer()))
          }
        )
      })
    )
    service = resources.use(
      await startTestService(
        {
          minScheduleInterval: '1',
          revocationsPolicy: 'closed',
          revocationsMaxAge: '1',
          revocationsUrl: revocations.url.href,
        },
        network.environment,
        {
          shardSize: 64 * 1024,
          time: { ...systemTime, now: () => Date.now() + ahead },
          policy: { ...RUNNER_POLICY, progress: 20, poll: 50, check: 5 },
          schedulerPolicy: {
            ...SCHEDULER_POLICY,
            sweep: 50,
            poll: 20,
            backoff: 100,
            busy: 100,
          },
        }
      )
    )
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    ;({ space } = await createActors())
    await network.storacha.provision(space.did())
    config = { issuer: space, with: space.did() }
  })

  afterEach(recover)

  /** No answer of before holds any more. */
  function fail() {
    down = true
    ahead += 1_000
  }

  /** An upload service that has failed is asked again after ten seconds. */
  async function recover() {
    if (!down) return
    down = false
    // What it has refused already has arrived by then.
    await new Promise((resolve) => setTimeout(resolve, 100))
    ahead += 10_000
  }

  const fresh = () => ({ ...service, nonce: crypto.randomUUID() })

  const createAccount = async (name: string, blobs: number) => {
    const account = await network.pds.createAccount({ handle: `${name}.test` })
    await seedAccount(account.agent, {
      posts: 2,
      blobs: Array<number>(blobs).fill(20_000),
      salt: name,
    })
    return account.did as `did:plc:${string}`
  }

  const schedule = async (account: `did:plc:${string}`) =>
    Backup.schedule(
      config,
      {
        account,
        every: 1,
        delegation: await allow(space, service.agent, ABILITIES),
      },
      fresh()
    )

  const present = async () =>
    (await Backup.schedules(config, fresh())).ok?.schedules[0]

  it('a schedule goes on as soon as somebody can', async () => {
    const account = await createAccount('scheduled', 1)
    assert.equal((await schedule(account)).error, undefined)
    await until(async () => (await present())?.lastRun)
    fail()
    const waits = () =>
      service.logs.filter(
        ({ msg, key }) =>
          msg === 'the job waits for its next run' &&
          String(key).includes(space.did())
      ).length
    const before = waits()
    await until(() => waits() >= before + 3)
    assert.equal((await present())?.state, 'active')
    await recover()
    const back = Date.now() + ahead
    await until(async () => {
      const { lastRun } = (await present())!
      return lastRun?.outcome === 'unchanged' && lastRun.finished > back
    }, 20_000)
    await Backup.unschedule(config, { account }, fresh())
  })

  it('a run that is under way goes on', async () => {
    const account = await createAccount('running', 40)
    const { stats } = network.storacha
    stats.reset()
    const delegation = await allow(space, service.agent, BACKUP_ABILITIES)
    const { ok, error } = await Backup.run(
      config,
      { account, delegation },
      fresh()
    )
    assert.equal(error, undefined, error?.message)
    await until(() => stats.puts >= 2)
    fail()
    await until(() =>
      service.logs.some(
        ({ msg, run, failure }) =>
          msg === 'the delegation of a run cannot be checked' &&
          run === ok.run.toString() &&
          Object(failure).name === 'RevocationsUnavailable'
      )
    )
    await recover()
    const run = await until(async () => {
      const status = await Backup.status(config, { run: ok.run }, fresh())
      const [run] = status.ok!.runs
      return run?.finished !== undefined && run
    }, 20_000)
    assert.equal(run.state, 'done', run.error?.message)
    assert.equal(run.attempts, 1)
  })

  it('who asks is told to try again, whatever the delegation is for', async () => {
    fail()
    const { alice } = await createActors()
    const account = 'did:plc:nobody'
    const delegation = await allow(space, service.agent, ABILITIES)
    const refusals = [
      await Clock.head(
        {
          issuer: alice,
          with: space.did(),
          proofs: [await allow(space, alice, ['clock/*'])],
        },
        fresh()
      ),
      await Backup.run(config, { account, delegation }, fresh()),
      await schedule(account),
      await Authorization.share(
        config,
        { account, agent: alice.did(), delegation },
        fresh()
      ),
    ]
    for (const refusal of refusals) {
      const { name, message } = failureOf(refusal)
      assert.equal(name, 'RevocationsUnavailable')
      assert.match(message, NOBODY_CAN_TELL)
    }
  })

  it('who may not is told so all the same', async () => {
    const { alice, mallory } = await createActors()
    const revoked = await allow(space, service.agent, ABILITIES)
    await Revocation.revoke({ issuer: space }, revoked, fresh())
    fail()
    const head = (issuer: typeof alice, proofs = [revoked]) =>
      Clock.head({ issuer, with: space.did(), proofs }, fresh())
    assert.equal(failureOf(await head(mallory)).name, 'Unauthorized')
    const expired = await allow(space, alice, ['clock/*'], {
      expiration: seconds(-60),
    })
    assert.equal(failureOf(await head(alice, [expired])).name, 'Unauthorized')
    const account = 'did:plc:nobody'
    const narrow = await allow(space, service.agent, ['clock/head'])
    const { name, message } = failureOf(
      await Backup.run(config, { account, delegation: narrow }, fresh())
    )
    assert.equal(name, 'InsufficientDelegation')
    assert.match(message, /does not allow space\/blob\/add/)
    assert.doesNotMatch(message, /clock\/head,/)
    const { error } = await Backup.schedule(
      config,
      { account, every: 1, delegation: revoked },
      fresh()
    )
    assert.equal(error?.name, 'DelegationRevoked')
  })
})
