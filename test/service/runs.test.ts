import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { Client } from '@storacha/client'
import { DID } from '@ucanto/core'
import type { Delegation, Link } from '@ucanto/interface'
import {
  verifyBackup,
  openBackup,
  createSha256,
} from '../../src/backup/index.ts'
import { signingKeysIn } from '../../src/atproto/index.ts'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import type { Backup as Protocol } from '../../src/capabilities/index.ts'
import {
  Backup,
  Clock,
  connect,
  Revocation,
  type Connection,
  type InvocationConfig,
} from '../../src/client/index.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import { listBackups, mergeHeads } from '../../src/space/index.ts'
import { createSpaceReader } from '../../src/storacha/index.ts'
import {
  seedAccount,
  startNetwork,
  type Account,
  type Network,
} from '../network/index.ts'
import { createStorachaClient } from '../network/storacha-client.ts'
import {
  allow,
  createActors,
  createFolder,
  seconds,
  startTestService,
  until,
  type Space,
  type TestService,
} from './harness.ts'

const BLOBS = 12
/** Of an account whose run is to be met in the middle. */
const MANY_BLOBS = 40
const BLOB_SIZE = 20_000
/** A few blobs fill a shard. */
const SHARD_SIZE = 64 * 1024
const POLICY = {
  ...RUNNER_POLICY,
  lease: 1000,
  heartbeat: 200,
  progress: 20,
  poll: 50,
}

type AnyDID = `did:${string}:${string}`

describe('runs of the service', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: TestService
  let account: Account

  before(async () => {
    network = resources.use(await startNetwork())
    service = resources.use(
      await startTestService({}, network.environment, {
        shardSize: SHARD_SIZE,
        policy: POLICY,
      })
    )
    account = await createAccount('alice')
  })

  after(() => resources.disposeAsync())

  afterEach(() => {
    Object.assign(network.storacha.faults, {
      uploadsClosed: false,
      overQuota: false,
      failAfterBlobAdds: undefined,
      down: false,
      lyingGateway: false,
    })
  })

  /** An account whose blobs nobody else has: what is there is not sent. */
  const createAccount = async (name: string, blobs = BLOBS) => {
    const account = await network.pds.createAccount({ handle: `${name}.test` })
    await seedAccount(account.agent, {
      posts: 20,
      blobs: Array<number>(blobs).fill(BLOB_SIZE),
      salt: name,
    })
    return account
  }

  /** A Space that takes data, and what its own key may ask the service. */
  const createSpace = async () => {
    const { space } = await createActors()
    await network.storacha.provision(space.did())
    return { space, config: { issuer: space, with: space.did() } }
  }

  const start = async (
    config: InvocationConfig,
    delegation: Delegation,
    {
      at = service.connection,
      did = account.did,
    }: { at?: Connection; did?: string } = {}
  ) => {
    const { ok, error } = await Backup.run(
      config,
      { account: did as AnyDID, delegation },
      { connection: at, nonce: crypto.randomUUID() }
    )
    assert.equal(error, undefined, error?.message)
    return ok.run
  }

  const statusOf = async (
    config: InvocationConfig,
    run: Link,
    at = service.connection
  ) => {
    const { ok, error } = await Backup.status(
      config,
      { run },
      { connection: at }
    )
    assert.equal(error, undefined, error?.message)
    return ok.runs[0]!
  }

  const ended = (config: InvocationConfig, run: Link, at?: Connection) =>
    until(async () => {
      const status = await statusOf(config, run, at)
      return /done|failed/.test(status.state) && status
    }, 20_000)

  const backUp = async (
    space: Space,
    config: InvocationConfig,
    options: { did?: string; expiration?: number } = {}
  ) => {
    const delegation = await allow(
      space,
      service.agent,
      BACKUP_ABILITIES,
      options
    )
    return ended(config, await start(config, delegation, options))
  }

  /** Checks that the Space has the newest backup, all of it. */
  const verify = async (
    config: InvocationConfig,
    { at = service.connection, did = account.did, blobs = BLOBS } = {}
  ) => {
    const { ok } = await Clock.head(config, { connection: at })
    const reader = createSpaceReader({
      gateways: [new URL(network.storacha.url)],
      fetch,
      createSha256,
    })
    const { state } = await mergeHeads(reader, ok!.head as never)
    const backups = await Array.fromAsync(
      listBackups(reader, state, did as AnyDID)
    )
    const opened = await openBackup(reader, backups[0]!.backup, {
      createSha256,
    })
    const verified = await verifyBackup(opened, {
      keys: signingKeysIn,
    })
    assert.deepEqual(verified.problems, [])
    assert.equal(verified.blobs, blobs)
    return backups.length
  }

  it('back an account up, tell how far they are, and what came of it', async () => {
    const { space, config } = await createSpace()
    const delegation = await allow(space, service.agent, BACKUP_ABILITIES)
    const run = await start(config, delegation)
    const seen: Protocol.RunProgress[] = []
    const status = await until(async () => {
      const status = await statusOf(config, run)
      if (status.progress) seen.push(status.progress)
      return status.state === 'done' && status
    })
    const { outcome, error, attempts, created, started, finished } = status
    assert.equal(error, undefined)
    assert.equal(outcome?.kind, 'first')
    assert.equal(outcome.account, account.did)
    assert.equal(outcome.blobsUploaded, BLOBS)
    assert.equal(attempts, 1)
    assert.ok(created <= started! && started! <= finished!)
    assert.ok(seen.length > 0)
    for (const [i, now] of seen.entries()) {
      assert.ok(now.blobsDone >= (seen[i - 1]?.blobsDone ?? 0))
      assert.ok(now.blobsDone <= now.blobs)
    }
    assert.equal(await verify(config), 1)

    const again = await backUp(space, config)
    assert.equal(again.outcome?.kind, 'unchanged')
    const receipt = await fetch(
      new URL(`receipt/${run.toString()}`, service.url)
    )
    assert.equal(receipt.status, 200)
    assert.doesNotMatch(service.logged(), /"level":(50|60)/)
  })

  describe('fail by name', () => {
    const failure = async (
      name: string,
      {
        prepare = () => {},
        provisioned = true,
        ...options
      }: {
        prepare?: () => void
        provisioned?: boolean
        did?: string
        expiration?: number
      } = {}
    ) => {
      const { space } = await createActors()
      if (provisioned) await network.storacha.provision(space.did())
      const config = { issuer: space, with: space.did() }
      prepare()
      const status = await backUp(space, config, options)
      assert.equal(status.state, 'failed')
      assert.equal(status.error?.name, name, status.error?.message)
      assert.ok(status.error.message.length > 20)
      const { ok } = await Clock.head(config, service)
      assert.deepEqual(ok, { head: [] })
      return { space, config }
    }

    it('when nobody has the DID', async () => {
      await failure('DidNotFoundError', {
        did: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz',
      })
    })

    it('when the account is taken down', async () => {
      const { did, agent } = await network.pds.createAccount({
        handle: 'mallory.test',
      })
      await seedAccount(agent, { posts: 1 })
      await network.pds.takedownAccount(did)
      await failure('AccountUnavailableError', { did })
    })

    it('when the upload service takes nothing, and go on when it does', async () => {
      const { faults } = network.storacha
      const { space, config } = await failure('SpaceUnavailableError', {
        prepare: () => (faults.uploadsClosed = true),
      })
      faults.uploadsClosed = false
      assert.equal((await backUp(space, config)).state, 'done')
      await verify(config)
    })

    it('when the Space is full, and go on from there when it is not', async () => {
      const { faults, stats } = network.storacha
      const whole = BLOBS * BLOB_SIZE
      stats.reset()
      const { space, config } = await failure('SpaceQuotaError', {
        prepare: () => (faults.overQuota = true),
      })
      faults.overQuota = false
      faults.failAfterBlobAdds = 2
      const { did } = await createAccount('full')
      assert.equal((await backUp(space, config, { did })).state, 'failed')
      faults.failAfterBlobAdds = undefined
      const before = stats.puts
      const { state, outcome } = await backUp(space, config, { did })
      assert.equal(state, 'done')
      assert.equal(outcome?.kind, 'first')
      assert.ok(before >= 2 && stats.bytesPut < whole + 4 * SHARD_SIZE)
      await verify(config, { did })
    })

    it('when nobody pays for the Space', async () => {
      await failure('SpaceQuotaError', { provisioned: false })
    })

    it('when the gateway lies, and go on when it does not', async () => {
      await using folder = await createFolder()
      const { space, config } = await createSpace()
      const { faults } = network.storacha
      const outcomes = []
      for (const lying of [false, true, false]) {
        faults.lyingGateway = lying
        // Nothing that was read is remembered.
        await using service = await startTestService(
          { dataFolder: folder.path },
          network.environment
        )
        const delegation = await allow(space, service.agent, BACKUP_ABILITIES)
        const at = service.connection
        const run = await start(config, delegation, { at })
        const { error, outcome } = await ended(config, run, at)
        outcomes.push(error?.name ?? outcome?.kind)
      }
      assert.deepEqual(outcomes, ['first', 'GatewayError', 'unchanged'])
    })
  })

  describe('are taken up again', () => {
    it('by the next process, after one was killed in the middle', async () => {
      await using folder = await createFolder()
      const { space, config } = await createSpace()
      const { did } = await createAccount('killed', MANY_BLOBS)
      const { stats } = network.storacha
      stats.reset()
      await using first = await startChild(folder.path, network)
      const delegation = await allow(space, first.agent, BACKUP_ABILITIES)
      const at = first.connection
      const run = await start(config, delegation, { at, did })
      await until(() => stats.puts >= 3)
      first.child.kill('SIGKILL')
      await once(first.child, 'exit')
      const before = stats.bytesPut
      const whole = MANY_BLOBS * BLOB_SIZE
      assert.ok(before < whole / 2, `${before} of ${whole} bytes`)
      assert.deepEqual(
        (await Clock.head(config, service)).ok?.head,
        [],
        'another service has another clock'
      )

      await using second = await startChild(folder.path, network)
      const status = await ended(config, run, second.connection)
      assert.equal(status.state, 'done', status.error?.message)
      assert.equal(status.attempts, 2)
      assert.equal(status.outcome?.kind, 'first')
      // What was under way may be sent again, and there is metadata.
      assert.ok(
        stats.bytesPut < whole + 4 * SHARD_SIZE,
        `${stats.bytesPut} of ${whole} bytes`
      )
      assert.equal(
        await verify(config, {
          at: second.connection,
          did,
          blobs: MANY_BLOBS,
        }),
        1
      )
      second.child.kill('SIGTERM')
      const [code] = (await once(second.child, 'exit')) as [number]
      assert.equal(code, 0)
    })

    it('by the next process, after one was told to stop', async () => {
      await using folder = await createFolder()
      const { space, config } = await createSpace()
      const options = { shardSize: SHARD_SIZE, policy: POLICY }
      const flags = { dataFolder: folder.path }
      const { did } = await createAccount('stopped', MANY_BLOBS)
      const { stats } = network.storacha
      stats.reset()
      const first = await startTestService(flags, network.environment, options)
      const delegation = await allow(space, first.agent, BACKUP_ABILITIES)
      const at = first.connection
      const run = await start(config, delegation, { at, did })
      await until(() => stats.puts >= 3)
      await first[Symbol.asyncDispose]()
      assert.match(first.logged(), /"msg":"run parked"/)
      await using second = await startTestService(
        flags,
        network.environment,
        options
      )
      const status = await ended(config, run, second.connection)
      assert.equal(status.state, 'done', status.error?.message)
      assert.equal(status.attempts, 2)
      await verify(config, {
        at: second.connection,
        did,
        blobs: MANY_BLOBS,
      })
    })

    it('by nobody, when there is time to finish', async () => {
      await using folder = await createFolder()
      const { space, config } = await createSpace()
      const flags = { dataFolder: folder.path }
      const first = await startTestService(
        { ...flags, drainTimeout: '20' },
        network.environment,
        { policy: POLICY }
      )
      const delegation = await allow(space, first.agent, BACKUP_ABILITIES)
      const run = await start(config, delegation, { at: first.connection })
      await until(
        async () =>
          (await statusOf(config, run, first.connection)).state === 'running'
      )
      await first[Symbol.asyncDispose]()
      await using second = await startTestService(flags, network.environment)
      const status = await statusOf(config, run, second.connection)
      assert.equal(status.state, 'done', status.error?.message)
      assert.equal(status.attempts, 1)
    })
  })

  it('stop in the middle when the delegation is revoked', async () => {
    await using watchful = await startTestService({}, network.environment, {
      shardSize: SHARD_SIZE,
      policy: { ...POLICY, check: 5 },
    })
    const { space, config } = await createSpace()
    const { did } = await createAccount('revoked', MANY_BLOBS)
    const { stats } = network.storacha
    stats.reset()
    const delegation = await allow(space, watchful.agent, BACKUP_ABILITIES)
    const at = watchful.connection
    const run = await start(config, delegation, { at, did })
    await until(() => stats.puts >= 2)
    const revoked = await Revocation.revoke(config, delegation, {
      connection: at,
    })
    assert.equal(revoked.error, undefined)
    const status = await ended(config, run, at)
    assert.equal(status.state, 'failed')
    assert.equal(status.error?.name, 'Unauthorized')
    assert.match(status.error.message, /revoked/)
    const { puts } = stats
    assert.ok(stats.bytesPut < MANY_BLOBS * BLOB_SIZE)
    await new Promise((resolve) => setTimeout(resolve, 300))
    assert.equal(stats.puts, puts)
    const { ok } = await Clock.head(config, { connection: at })
    assert.deepEqual(ok?.head, [])
  })

  it('are shared by services with the same store', async () => {
    await using folder = await createFolder()
    const flags = { dataFolder: folder.path, concurrentRuns: '1' }
    const options = { policy: POLICY }
    await using one = await startTestService(
      flags,
      network.environment,
      options
    )
    await using two = await startTestService(
      flags,
      network.environment,
      options
    )
    assert.equal(one.agent, two.agent)
    const begun = []
    for (let i = 0; i < 4; i++) {
      const { space, config } = await createSpace()
      const delegation = await allow(space, one.agent, BACKUP_ABILITIES)
      const at = (i % 2 ? one : two).connection
      begun.push({ config, run: await start(config, delegation, { at }) })
    }
    for (const { config, run } of begun) {
      const status = await ended(config, run, one.connection)
      assert.equal(status.state, 'done', status.error?.message)
      assert.equal(status.attempts, 1)
    }
    for (const { logs } of [one, two]) {
      assert.ok(logs.some(({ msg }) => msg === 'run ended'))
    }
  })

  describe('for who logs in by email', () => {
    let phone: Client
    let space: AnyDID & `did:key:${string}`
    let config: InvocationConfig

    before(async () => {
      // The Space is made on one device, and used on another.
      const laptop = await createStorachaClient(network.storacha)
      const customer = await laptop.login('alice@example.com')
      const made = await laptop.createSpace('backups', {
        account: customer,
        skipGatewayAuthorization: true,
      })
      space = made.did()
      phone = await createStorachaClient(network.storacha)
      await phone.login('alice@example.com')
      await phone.capability.access.claim()
      await phone.setCurrentSpace(space)
      config = {
        issuer: phone.agent.issuer,
        with: space,
        proofs: phone.proofs([{ can: 'backup/run', with: space }]),
      }
    })

    it('are accepted when the upload service is trusted', async () => {
      const { ok, error } = await Clock.head(config, service)
      assert.equal(error, undefined, error?.message)
      assert.deepEqual(ok, { head: [] })
      const delegation = await phone.createDelegation(
        DID.parse(service.agent),
        [...BACKUP_ABILITIES] as never,
        { expiration: seconds(60) }
      )
      const status = await ended(config, await start(config, delegation))
      assert.equal(status.state, 'done', status.error?.message)
    })

    it('are refused when it is not', async () => {
      await using careful = await startTestService(
        {},
        {
          ...network.environment,
          BLUESKY_BACKUPS_TRUSTED_AUTHORITIES: '',
        }
      )
      const { error } = await Clock.head(config, careful)
      assert.equal(error?.name, 'Unauthorized')
      const { space: other } = await createActors()
      const delegation = await phone.createDelegation(
        DID.parse(careful.agent),
        [...BACKUP_ABILITIES] as never
      )
      const answer = await Backup.run(
        {
          issuer: other,
          with: space,
          proofs: config.proofs ?? [],
        },
        { account: account.did as AnyDID, delegation },
        careful
      )
      assert.equal(answer.error?.name, 'Unauthorized')
    })
  })
})

/** A service in a process of its own. */
async function startChild(dataFolder: string, { environment }: Network) {
  const script = fileURLToPath(new URL('serve-child.ts', import.meta.url))
  const child = spawn(
    process.execPath,
    [script, dataFolder, `${SHARD_SIZE}`, JSON.stringify(POLICY)],
    {
      env: {
        ...process.env,
        ...environment,
        // The service does not know the Space, and is not allowed to ask.
        BLUESKY_BACKUPS_PROVISIONING_POLICY: 'off',
      },
      stdio: ['ignore', 'pipe', 'inherit'],
    }
  )
  const [line] = (await once(createInterface(child.stdout), 'line')) as [string]
  const { url, did, agent } = JSON.parse(line) as Record<string, string>
  return {
    child,
    agent: agent!,
    connection: connect({ url: new URL(url!), did: did! }),
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null) return
      child.kill('SIGKILL')
      await once(child, 'exit')
    },
  }
}
