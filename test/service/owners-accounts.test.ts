import assert from 'node:assert/strict'
import type { Signer } from '@ucanto/interface'
import { signingKeysIn } from '../../src/atproto/index.ts'
import {
  createSha256,
  openBackup,
  verifyBackup,
} from '../../src/backup/index.ts'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import {
  Authorization,
  Backup,
  Clock,
  readReceipt,
  type InvocationConfig,
} from '../../src/client/index.ts'
import { SCHEDULER_POLICY } from '../../src/scheduler/index.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import { listBackups, mergeHeads } from '../../src/space/index.ts'
import { createSpaceReader } from '../../src/storacha/index.ts'
import { consent } from '../network/consent.ts'
import {
  seedAccount,
  startNetwork,
  type Account,
  type Network,
} from '../network/index.ts'
import { comeBack } from './come-back.ts'
import {
  allow,
  createActors,
  failureOf,
  startTestService,
  until,
  type Space,
  type TestService,
} from './harness.ts'

const ABILITIES = ['backup/run', ...BACKUP_ABILITIES]

describe('an account that its host gives to nobody', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: TestService
  let account: Account & { did: `did:plc:${string}` }
  let alice: Signer
  let space: Space
  let config: InvocationConfig
  let handles = 0

  before(async () => {
    network = resources.use(await startNetwork())
    service = resources.use(
      await startTestService(
        { minScheduleInterval: '1' },
        network.environment,
        {
          policy: { ...RUNNER_POLICY, progress: 20, poll: 50 },
          schedulerPolicy: {
            ...SCHEDULER_POLICY,
            sweep: 50,
            poll: 20,
            absence: 1_000,
          },
        }
      )
    )
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    ;({ alice, space } = await createActors())
    await network.storacha.provision(space.did())
    config = {
      issuer: alice,
      with: space.did(),
      proofs: [
        await allow(space, alice, ['authorization/*', 'backup/*', 'clock/*']),
      ],
    }
    const name = `alice${handles++}`
    account = (await network.pds.createAccount({
      handle: `${name}.test`,
    })) as typeof account
    await seedAccount(account.agent, { posts: 3, blobs: [2000], salt: name })
  })

  const options = () => ({
    connection: service.connection,
    nonce: crypto.randomUUID(),
  })

  const authorize = async () => {
    const { ok, error } = await Authorization.request(
      config,
      {
        account: account.did,
        delegation: await allow(space, service.agent, BACKUP_ABILITIES),
      },
      options()
    )
    assert.equal(error, undefined, error?.message)
    const { page } = await comeBack(
      await consent(new URL(ok.url), {
        username: account.handle,
        password: account.password,
      })
    )
    const receipt = await readReceipt(
      { url: service.url, info: service },
      ok.task
    )
    return { page, receipt: receipt! }
  }

  const letIn = async () => {
    const { receipt } = await authorize()
    assert.ok(receipt.ok, JSON.stringify(receipt.error))
  }

  const backUp = async () => {
    const { ok, error } = await Backup.run(
      config,
      {
        account: account.did,
        delegation: await allow(space, service.agent, ABILITIES),
      },
      options()
    )
    assert.equal(error, undefined, error?.message)
    return until(async () => {
      const { ok: answer } = await Backup.status(
        config,
        { run: ok.run },
        options()
      )
      const status = answer!.runs[0]!
      return /done|failed/.test(status.state) && status
    }, 20_000)
  }

  const succeeds = async () => {
    const { outcome, error } = await backUp()
    assert.equal(error, undefined, error?.message)
    return outcome!
  }

  const fails = async () => {
    const { error, outcome } = await backUp()
    assert.equal(outcome, undefined)
    assert.equal(error?.name, 'AccountUnavailableError', error?.message)
    return error.message
  }

  const grant = async () => {
    const { ok } = await Authorization.list(config, options())
    return ok!.authorizations[0]
  }

  /** How many backups the Space has, the newest of which is whole. */
  const backups = async () => {
    const { ok } = await Clock.head(config, options())
    const reader = createSpaceReader({
      gateways: [new URL(network.storacha.url)],
      fetch,
      createSha256,
    })
    const { state } = await mergeHeads(reader, ok!.head as never)
    const found = await Array.fromAsync(listBackups(reader, state, account.did))
    if (!found[0]) return 0
    const opened = await openBackup(reader, found[0].backup, { createSha256 })
    const { problems, blobs } = await verifyBackup(opened, {
      keys: signingKeysIn,
    })
    assert.deepEqual(problems, [])
    assert.equal(blobs, 1)
    return found.length
  }

  describe('because it is deactivated', () => {
    it("is backed up whole with the owner's grant", async () => {
      await letIn()
      await account.agent.com.atproto.server.deactivateAccount({})
      const first = await succeeds()
      assert.equal(first.kind, 'first')
      assert.equal(first.records, 4)
      assert.equal(first.blobsUploaded, 1)
      assert.equal(first.private?.preferences?.outcome, 'ok')
      assert.equal(await backups(), 1)
      assert.equal((await grant())?.state, 'active')
      assert.equal((await succeeds()).kind, 'unchanged')
    })

    it('fails by name without a grant, and there cannot be one until it is active', async () => {
      await account.agent.com.atproto.server.deactivateAccount({})
      assert.match(await fails(), /RepoDeactivated.*Activate it at the host/)

      const { page, receipt } = await authorize()
      assert.match(page, /You have not let Bluesky Backups in/)
      assert.match(page, /while it is deactivated\. Activate it there/)
      assert.equal(failureOf(receipt).name, 'HostRefused')

      await account.agent.com.atproto.server.activateAccount()
      await letIn()
      await account.agent.com.atproto.server.deactivateAccount({})
      assert.equal((await succeeds()).kind, 'first')
    })

    it('says so when the host has ended the grant with it', async () => {
      await letIn()
      assert.equal((await succeeds()).kind, 'first')
      await network.pds.deactivateAccount(account.did)
      const message = await fails()
      assert.match(message, /RepoDeactivated.*Activate it at the host/)
      assert.match(
        message,
        /has ended; authorize again when the account is back/
      )
      assert.equal(await backups(), 1)

      await account.agent.com.atproto.server.activateAccount()
      await letIn()
      assert.equal((await succeeds()).private?.preferences?.outcome, 'ok')
    })
  })

  describe('because it is taken down', () => {
    it('has no grants any more, which is said, until it is back and authorized again', async () => {
      await letIn()
      assert.equal((await succeeds()).private?.preferences?.outcome, 'ok')
      await network.pds.takedownAccount(account.did)

      // The host has not told us that the grant has ended.
      assert.equal((await grant())?.state, 'active')
      const found = await fails()
      assert.match(found, /RepoTakendown.*the people who run the host/)
      assert.match(found, /has ended; authorize again when the account is back/)
      const ended = await grant()
      assert.equal(ended?.state, 'ended')
      assert.equal(ended.reason?.name, 'GrantEndedError')
      assert.match(ended.reason.message, /takes the grant no more/)
      assert.equal(await fails(), found)
      await assert.rejects(authorize(), /Account was taken down/)
      assert.equal(await backups(), 1)

      await network.pds.takedownAccount(account.did, false)
      await account.agent.login({
        identifier: account.handle,
        password: account.password,
      })
      await account.agent.post({ text: 'back again' })
      const open = await succeeds()
      assert.equal(open.kind, 'incremental')
      assert.equal(open.private?.preferences?.outcome, 'not-granted')
      assert.match(
        open.private.preferences.detail ?? '',
        /has to be authorized again/
      )
      assert.equal((await grant())?.state, 'ended')

      await letIn()
      assert.equal((await grant())?.state, 'active')
      assert.equal((await succeeds()).private?.preferences?.outcome, 'ok')
      assert.equal(await backups(), 3)
    })

    it('keeps its schedule waiting until it is back', async () => {
      await letIn()
      await network.pds.takedownAccount(account.did)
      const { error } = await Backup.schedule(
        config,
        {
          account: account.did,
          every: 1,
          delegation: await allow(space, service.agent, ABILITIES),
        },
        options()
      )
      assert.equal(error, undefined, error?.message)
      const present = async () => {
        const { ok } = await Backup.schedules(config, options())
        return ok!.schedules[0]
      }
      const waiting = await until(async () => {
        const now = await present()
        return now?.lastRun && now
      })
      assert.equal(waiting.state, 'paused')
      assert.equal(waiting.reason?.name, 'AccountUnavailableError')
      assert.match(waiting.reason.message, /RepoTakendown.*authorize again/)
      await network.pds.takedownAccount(account.did, false)
      await until(async () => (await present())?.lastRun?.outcome === 'first')
      await Backup.unschedule(config, { account: account.did }, options())
    })
  })
})
