import assert from 'node:assert/strict'
import { AtpAgent } from '@atproto/api'
import type { Signer } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import {
  createAccountReader,
  createIdentityResolver,
  createOwnersReader,
  createPrivateReader,
  createSafeFetch,
} from '../../src/atproto/index.ts'
import { BlockOverlay } from '../../src/backup/block-overlay.ts'
import {
  chunksOf,
  DEFAULT_LIMITS,
  openBackup,
  recordChange,
  runBackup,
  streamOf,
  type BackupContext,
  type DID,
} from '../../src/backup/index.ts'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { createClock } from '../../src/client/clock.ts'
import { Authorization } from '../../src/client/index.ts'
import {
  createFileSpool,
  createNativeSha256,
  loadKeyFile,
  systemTime,
} from '../../src/node/index.ts'
import { SHARER_POLICY } from '../../src/service/sharer.ts'
import {
  addBackup,
  deriveIdentity,
  findShare,
  isSealed,
  listBackups,
  mergeHeads,
  openFileKey,
  openPart,
  recipientOf,
  setAuthorization,
  type Block,
} from '../../src/space/index.ts'
import {
  connectUploadService,
  createSpaceReader,
  createSpaceWriter,
} from '../../src/storacha/index.ts'
import { startNetwork, type Account, type Network } from '../network/index.ts'
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

/** What nobody but alice and her agents may find anywhere. */
const SECRET = 'psst-do-not-tell-mallory'
const HOUR = 3600

describe('sharing of private parts by the service', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let gateway: Gateway
  let service: TestService
  /** The service's own key, which seals what the service backs up. */
  let agent: Signer
  let account: Account & { did: DID }
  let alice: Signer
  let bob: ed25519.EdSigner
  let mallory: Signer
  let space: Space
  let context: BackupContext

  before(async () => {
    network = resources.use(await startNetwork())
    gateway = resources.use(await startGateway(network.storacha.url))
    service = resources.use(await start())
    agent = await loadKeyFile(service.config.keyFile)
    account = (await network.pds.createAccount({
      handle: 'alice.test',
    })) as typeof account
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    gateway.answers = true
    gateway.waiting = 0
    gateway.lost.clear()
    gateway.stuck.clear()
    ;({ alice, mallory, space, bob } = await createActors())
    await network.storacha.provision(space.did())
    context = await createContext(service)
    await mute(SECRET)
  })

  const mute = (word: string) =>
    account.agent.app.bsky.actor.putPreferences({
      preferences: [
        {
          $type: 'app.bsky.actor.defs#mutedWordsPref',
          items: [{ value: word, targets: ['content'] }],
        },
      ],
    } as never)

  const start = (policy: Partial<typeof SHARER_POLICY> = {}) =>
    startTestService(
      {},
      {
        ...network.environment,
        BLUESKY_BACKUPS_GATEWAY_URLS: gateway.url.href,
      },
      { sharerPolicy: { ...SHARER_POLICY, ...policy } }
    )

  const createReader = () =>
    createSpaceReader({
      gateways: [new URL(network.storacha.url)],
      fetch: globalThis.fetch,
      createSha256: createNativeSha256,
    })

  /** What alice backs up with, where the clock is at a service. */
  const createContext = async ({
    connection,
  }: TestService = service): Promise<BackupContext> => {
    const { storacha, plc, pds } = network
    const fetch = createSafeFetch({ allowPrivateNetwork: true })
    const proofs = [await allow(space, alice, BACKUP_ABILITIES)]
    return {
      identities: createIdentityResolver({
        plcUrl: new URL(plc.url),
        handleResolverUrl: new URL(pds.url),
        fetch,
        allowPrivateNetwork: true,
      }),
      accounts: createAccountReader({ fetch }),
      writer: createSpaceWriter(
        connectUploadService({
          url: new URL(storacha.url),
          did: storacha.did,
          receiptsUrl: new URL(storacha.receiptsUrl),
        }),
        { issuer: alice, space: space.did(), proofs }
      ),
      reader: createReader(),
      clock: createClock(
        { issuer: alice, with: space.did(), proofs },
        { connection }
      ),
      journal: () => ({
        load: async () => [],
        append: async () => {},
        clear: async () => {},
      }),
      createSpool: () => createFileSpool(),
      createSha256: createNativeSha256,
      time: systemTime,
      limits: DEFAULT_LIMITS,
    }
  }

  const identityOf = (signer: Signer) =>
    deriveIdentity(signer, { space: space.did(), account: account.did })

  /** Makes a backup whose preferences are sealed by, and for, an agent. */
  const backUp = async (signer: Signer = agent, to = context) => {
    const app = new AtpAgent({ service: network.pds.url })
    await app.login({
      identifier: account.did,
      password: account.password,
    })
    const outcome = await runBackup(
      {
        ...to,
        private: {
          session: async () => ({
            account: account.did,
            parts: ['preferences'],
            fetch: (pathname, init) =>
              app.sessionManager.fetchHandler(pathname, init),
          }),
          reader: createPrivateReader(),
          accounts: createOwnersReader,
          identity: () => identityOf(signer),
        },
      },
      { account: account.did, parts: ['preferences'] }
    )
    assert.equal(outcome.private?.preferences?.outcome, 'ok')
  }

  const authorize = async (
    signer: ed25519.EdSigner = bob,
    changes: { expiration?: number; seq?: number; recipient?: string } = {},
    to = context
  ) => {
    const recipient =
      'recipient' in changes
        ? changes.recipient
        : await recipientOf(await identityOf(signer))
    await recordChange(to, (fetcher, state) =>
      setAuthorization(fetcher, state, {
        account: account.did,
        agent: signer.did(),
        authorization: {
          sealed: Uint8Array.of(1),
          expiration: changes.expiration ?? seconds(HOUR),
          seq: changes.seq ?? 1,
          ...(recipient === undefined ? {} : { recipient }),
        },
      })
    )
  }

  /** The same backup again, at other times. */
  const repeat = async (times: string[], to = context) => {
    const [listed] = await backups(to)
    assert.ok(listed)
    await recordChange(to, async (fetcher, before) => {
      const overlay = new BlockOverlay(fetcher)
      const all: Block[] = []
      let root = before!
      for (const timestamp of times) {
        const { backup } = listed
        const added = await addBackup(overlay, root, {
          account: account.did,
          timestamp,
          backup,
        })
        overlay.put(added.additions)
        all.push(...added.additions)
        root = added.root
      }
      return { root, additions: all }
    })
  }

  const view = async ({ clock } = context) => {
    const reader = createReader()
    return { reader, ...(await mergeHeads(reader, await clock.head())) }
  }

  const backups = async (of = context) => {
    const { reader, state } = await view(of)
    return Array.fromAsync(
      listBackups(reader, state, account.did, { reverse: true })
    )
  }

  const head = async () => (await context.clock.head()).map(String)

  const share = async (
    changes: Partial<Authorization.ShareInput> = {},
    {
      issuer = alice,
      abilities = ['authorization/share'],
      to = service,
    }: { issuer?: Signer; abilities?: string[]; to?: TestService } = {}
  ) =>
    Authorization.share(
      {
        issuer,
        with: space.did(),
        proofs:
          abilities.length > 0 ? [await allow(space, issuer, abilities)] : [],
      },
      {
        account: account.did,
        agent: bob.did(),
        delegation: await allow(space, to.agent, BACKUP_ABILITIES),
        ...changes,
      },
      { connection: to.connection, nonce: crypto.randomUUID() }
    )

  const shared = async (...input: Parameters<typeof share>) => {
    const { ok, error } = await share(...input)
    assert.equal(error, undefined, error?.message)
    return ok
  }

  const refused = async (...input: Parameters<typeof share>) =>
    failureOf(await share(...input))

  /** What an agent reads of a backup by what was shared with it. */
  const read = async (signer: Signer, timestamp: string) => {
    const { reader, state } = await view()
    const listed = (await backups()).find(
      (each) => each.timestamp === timestamp
    )
    const backup = await openBackup(reader, listed!.backup, {
      createSha256: createNativeSha256,
    })
    const record = backup.value.private?.preferences
    assert.ok(isSealed(record))
    const { preferences: sealed } = await findShare(reader, state, {
      account: account.did,
      timestamp,
      agent: signer.did(),
    })
    if (!sealed) return undefined
    const key = await openFileKey(await identityOf(signer), sealed)
    const opened = await openPart(key, streamOf(backup.privateFile(record)))
    const parts = await Array.fromAsync(chunksOf(opened))
    return Buffer.concat(parts).toString()
  }

  it('lets a new agent open what was sealed before it was there', async () => {
    await backUp()
    await authorize()
    const { timestamp } = (await backups())[0]!
    assert.equal(await read(bob, timestamp), undefined)
    assert.deepEqual(await shared(), { backups: 1, closed: 0, unreadable: 0 })
    assert.match((await read(bob, timestamp))!, new RegExp(SECRET))
    assert.equal(await read(mallory, timestamp), undefined)
    assert.ok(!service.logged().includes(SECRET))
  })

  it('does nothing the second time', async () => {
    await backUp()
    await authorize()
    await shared()
    const before = await head()
    assert.deepEqual(await shared(), { backups: 0, closed: 0, unreadable: 0 })
    assert.deepEqual(await head(), before)
  })

  it('takes what it may do in the Space from the proofs as well', async () => {
    await backUp()
    await authorize()
    const { ok } = await Authorization.share(
      {
        issuer: alice,
        with: space.did(),
        proofs: [
          await allow(space, alice, ['authorization/share']),
          await allow(space, service.agent, BACKUP_ABILITIES),
        ],
      },
      { account: account.did, agent: bob.did() },
      { connection: service.connection, nonce: crypto.randomUUID() }
    )
    assert.equal(ok?.backups, 1)
  })

  it('counts backups with parts that it cannot open either', async () => {
    const phone = await ed25519.generate()
    await backUp(phone)
    await backUp()
    await authorize()
    assert.deepEqual(await shared(), { backups: 1, closed: 1, unreadable: 0 })
    assert.deepEqual(await shared(), { backups: 0, closed: 1, unreadable: 0 })
    const [newest, oldest] = await backups()
    assert.match((await read(bob, newest!.timestamp))!, new RegExp(SECRET))
    assert.equal(await read(bob, oldest!.timestamp), undefined)
  })

  it('opens in one Space nothing that was sealed in another', async () => {
    await backUp()
    const { backup } = (await backups())[0]!
    // Everybody knows the blocks: mallory lists the backup in her own Space.
    ;({ alice, space } = await createActors())
    await network.storacha.provision(space.did())
    context = await createContext()
    await authorize()
    await recordChange(context, (fetcher, state) =>
      addBackup(fetcher, state, {
        account: account.did,
        timestamp: new Date().toISOString(),
        backup,
      })
    )
    assert.deepEqual(await shared(), { backups: 0, closed: 1, unreadable: 0 })
  })

  describe('is refused', () => {
    let before: string[]

    beforeEach(async () => {
      await backUp()
      before = await head()
    })

    afterEach(async () => {
      assert.deepEqual(await head(), before)
      const [listed] = await backups()
      assert.equal(await read(bob, listed!.timestamp), undefined)
    })

    it('to who is not authorized for the account', async () => {
      const { name, message } = await refused()
      assert.equal(name, 'AgentNotAuthorized')
      assert.match(message, /is not authorized for did:plc:.*authorize did:plc/)
    })

    for (const [why, changes, because] of [
      ['has given it back', { expiration: 0 }, /not authorized any more for/],
      [
        'was authorized until a second ago',
        { expiration: seconds(-1) },
        /not authorized any more: that ended on 20/,
      ],
      ['has no key', { recipient: undefined }, /no key/],
      [
        'has a key whose checksum is wrong',
        { recipient: `age1${'q'.repeat(58)}` },
        /not valid/,
      ],
    ] as [string, object, RegExp][]) {
      it(`to an agent that ${why}`, async () => {
        await authorize(bob)
        await authorize(bob, { seq: 2, ...changes })
        before = await head()
        const { name, message } = await refused()
        assert.equal(name, 'AgentNotAuthorized', message)
        assert.match(message, because)
      })
    }

    it('for an account that the Space does not have', async () => {
      const { name } = await refused({
        account: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz',
      })
      assert.equal(name, 'AccountNotFound')
    })

    it('to who may not ask', async () => {
      await authorize()
      before = await head()
      for (const options of [
        { issuer: mallory, abilities: [] },
        { abilities: ['authorization/list', 'authorization/request'] },
        { abilities: ['clock/*', 'backup/*', 'space/*'] },
      ]) {
        assert.equal((await refused({}, options)).name, 'Unauthorized')
      }
    })

    it('where nothing lets the service write into the Space', async () => {
      await authorize()
      before = await head()
      for (const delegation of [
        undefined,
        await allow(space, service.agent, ['clock/*']),
        await allow(space, mallory, BACKUP_ABILITIES),
        await allow(mallory, service.agent, BACKUP_ABILITIES, {
          with: space.did(),
        }),
      ]) {
        const { name } = await refused({ delegation })
        assert.equal(name, 'InsufficientDelegation')
      }
    })
  })

  describe('of many backups', () => {
    it('goes on where it ended, the latest first', async () => {
      await using slow = await start({ limit: 2 })
      const signer = await loadKeyFile(slow.config.keyFile)
      context = await createContext(slow)
      await backUp(signer)
      await repeat([1, 2, 3, 4].map((day) => `2025-01-0${day}T00:00:00.000Z`))
      await authorize()
      const times = (await backups()).map(({ timestamp }) => timestamp)
      const first = await shared({}, { to: slow })
      const page = { backups: 2, closed: 0, unreadable: 0 }
      assert.deepEqual(first, { ...page, before: times[1] })
      assert.ok(await read(bob, times[1]!))
      assert.equal(await read(bob, times[2]!), undefined)
      const second = await shared({ before: first.before }, { to: slow })
      assert.deepEqual(second, { ...page, before: times[3] })
      const third = await shared({ before: second.before }, { to: slow })
      assert.deepEqual(third, { ...page, backups: 1 })
      for (const time of times) assert.ok(await read(bob, time), time)
      assert.equal((await shared({}, { to: slow })).backups, 0)
    })

    it('keeps what it came to where one takes for ever', async () => {
      await backUp()
      const [stuck] = await backups()
      await mute('something else')
      await backUp()
      const [latest] = await backups()
      await authorize()
      gateway.stuck.add(`${stuck!.backup}`)
      await using hasty = await restart({ patience: 1000 })
      const { before } = await shared({}, { to: hasty })
      assert.equal(before, latest!.timestamp)
      assert.ok(await read(bob, latest!.timestamp))
      const rest = await share({ before }, { to: hasty })
      assert.equal(failureOf(rest).name, 'SpaceUnavailable')
      gateway.stuck.clear()
      assert.deepEqual(await shared({ before }, { to: hasty }), {
        backups: 1,
        closed: 0,
        unreadable: 0,
      })
    })

    it('passes over one that is lost', async () => {
      await backUp()
      const [lost] = await backups()
      await mute('something else')
      await backUp()
      await authorize()
      gateway.lost.add(`${lost!.backup}`)
      await using other = await restart()
      assert.deepEqual(await shared({}, { to: other }), {
        backups: 1,
        closed: 0,
        unreadable: 1,
      })
      assert.match(other.logged(), /cannot be read, so that it is not shared/)
      gateway.lost.clear()
      assert.equal((await shared({}, { to: other })).backups, 1)
    })
  })

  /** The same service, which has read nothing yet. */
  const restart = (policy: Partial<typeof SHARER_POLICY> = {}) =>
    startTestService(
      { dataFolder: service.config.dataFolder },
      {
        ...network.environment,
        BLUESKY_BACKUPS_GATEWAY_URLS: gateway.url.href,
      },
      { sharerPolicy: { ...SHARER_POLICY, ...policy } }
    )

  describe('while the Space does not answer', () => {
    beforeEach(async () => {
      await backUp()
      await authorize()
    })

    it('fails by name, and is done later', async () => {
      const { faults } = network.storacha
      faults.uploadsClosed = true
      try {
        assert.equal((await refused()).name, 'SpaceUnavailable')
      } finally {
        faults.uploadsClosed = false
      }
      assert.equal((await shared()).backups, 1)
    })

    it('does not wait for a gateway for ever, and lets others wait', async () => {
      await using hasty = await restart({ patience: 300, retryAfter: 2000 })
      gateway.answers = false
      const first = share({}, { to: hasty })
      await until(() => gateway.waiting > 0)
      const second = await share({}, { to: hasty })
      assert.equal(second.error?.name, 'RateLimited')
      assert.equal((second.error as { retryAfter?: number }).retryAfter, 2)
      assert.equal(failureOf(await first).name, 'SpaceUnavailable')
      gateway.answers = true
      assert.equal((await shared({}, { to: hasty })).backups, 1)
    })

    it('ends when the service stops', async () => {
      const other = await restart({ patience: 60_000 })
      gateway.answers = false
      const asked = share({}, { to: other }).catch((error: unknown) => error)
      await until(() => gateway.waiting > 0)
      const started = performance.now()
      await other[Symbol.asyncDispose]()
      await asked
      assert.ok(performance.now() - started < 5000)
    })
  })
})

/** A gateway that hangs, or has lost something, when it is told to. */
interface Gateway extends AsyncDisposable {
  url: URL
  answers: boolean
  /** CIDs that it does not have. */
  lost: Set<string>
  /** CIDs that it leaves without an answer. */
  stuck: Set<string>
  /** Requests that were left without an answer. */
  waiting: number
}

async function startGateway(upstream: string): Promise<Gateway> {
  const server = await startServer((request, response) => {
    const { url = '/', headers } = request
    const asksFor = (cids: Set<string>) =>
      [...cids].some((cid) => url.includes(cid))
    if (!gateway.answers || asksFor(gateway.stuck)) {
      gateway.waiting++
      return
    }
    if (asksFor(gateway.lost)) {
      response.writeHead(404).end()
      return
    }
    const { accept = '*/*', range } = headers
    void fetch(new URL(url, upstream), {
      headers: { accept, ...(range === undefined ? {} : { range }) },
    }).then(async (answer) => {
      const body = Buffer.from(await answer.arrayBuffer())
      response.writeHead(answer.status).end(body)
    })
  })
  const gateway: Gateway = {
    url: server.url,
    answers: true,
    lost: new Set(),
    stuck: new Set(),
    waiting: 0,
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  }
  return gateway
}
