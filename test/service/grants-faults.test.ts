import assert from 'node:assert/strict'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Signer } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import type { Keyset } from '@atproto/oauth-client-node'
import { confidentialMetadata } from '../../src/atproto/oauth/index.ts'
import { loadClientKeys } from '../../src/node/index.ts'
import { GRANT_POLICY, type GrantKeeper } from '../../src/service/grants.ts'
import type { DID } from '../../src/space/index.ts'
import {
  openStores,
  StoreUnavailableError,
  type GrantStore,
  type Stores,
} from '../../src/stores/index.ts'
import type { Account, Network, Pds, Plc } from '../network/index.ts'
import { openLoopbackServer } from '../network/loopback-server.ts'
import { startPds, startPlc } from '../network/pds.ts'
import {
  createTestGrants,
  HeldTime,
  routeClient,
  SPACE,
  type TestGrantsOptions,
} from './grants-harness.ts'
import { createFolder } from './harness.ts'
import { MemorySpace } from './test-space.ts'

const HOUR = 60 * 60_000
const PREFERENCES = '/xrpc/app.bsky.actor.getPreferences'

describe('grants when something fails', () => {
  const resources = new AsyncDisposableStack()
  let plc: Plc
  let pds: Pds
  let agent: Signer
  let stores: Stores
  let alice: Account
  let accounts = 0
  let taken = 0
  let refused = 0
  let delay = 0

  before(async () => {
    plc = resources.use(await startPlc())
    pds = resources.use(
      await startPds({
        plcUrl: plc.url,
        async onRefresh({ isTaken }) {
          if (isTaken) taken++
          else refused++
          await sleep(delay)
        },
      })
    )
    agent = await ed25519.generate()
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    stores = await openStores({ path: ':memory:' })
    alice = await pds.createAccount({ handle: `alice${accounts++}.test` })
    taken = refused = delay = 0
  })

  afterEach(() => stores[Symbol.asyncDispose]())

  const create = (options: Partial<TestGrantsOptions> = {}) =>
    createTestGrants({
      network: { plc, pds } as Network,
      agent,
      store: stores.grants,
      ...options,
    })

  const read = async (keeper: GrantKeeper) => {
    const session = await keeper.open(SPACE, alice.did as DID)
    assert.ok(session)
    const response = await session.fetch(PREFERENCES)
    const text = await response.text()
    assert.equal(response.status, 200, text)
    return session
  }

  const stateOf = async (keeper: GrantKeeper) => {
    const [listed] = await keeper.list(SPACE)
    return { state: listed?.state, reason: listed?.reason?.message ?? '' }
  }

  it('are kept before they are used', async () => {
    const time = new HeldTime()
    const gate = Promise.withResolvers<void>()
    let asked = 0
    const store: GrantStore = {
      ...stores.grants,
      async put(...input) {
        if (taken > 0) await gate.promise
        return stores.grants.put(...input)
      },
    }
    const { keeper, authorize } = create({
      time,
      store,
      onRequest({ pathname }) {
        if (pathname === PREFERENCES) asked++
      },
    })
    await authorize(alice)
    time.pass(2 * HOUR)
    const reading = read(keeper)
    while (taken === 0) await sleep(5)
    await sleep(50)
    assert.equal(asked, 0)
    gate.resolve()
    await reading
    assert.equal(asked, 1)
  })

  it('are not refreshed by another while an answer could not be kept', async () => {
    let isAway = false
    const kept = Promise.withResolvers<void>()
    const patient = new HeldTime()
    const store: GrantStore = {
      ...stores.grants,
      async put(...input) {
        if (isAway) throw new StoreUnavailableError('it is away')
        const isNewest = await stores.grants.put(...input)
        if (taken > 0) kept.resolve()
        return isNewest
      },
    }
    const one = create({ store, time: patient })
    await one.authorize(alice)
    patient.pass(2 * HOUR)
    isAway = true
    const reading = read(one.keeper)
    while (taken === 0) await sleep(5)

    // Its lease has ended, and the database is back just when another has it.
    const impatient = new (class extends HeldTime {
      override async sleep(ms: number) {
        if (ms !== GRANT_POLICY.precedence) return super.sleep(ms)
        isAway = false
        await kept.promise
      }
    })()
    impatient.pass(2 * HOUR + 2 * GRANT_POLICY.lease)
    await read(create({ time: impatient }).keeper)
    await reading
    assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
    assert.equal((await stores.grants.get(SPACE, alice.did))?.seq, 2)
  })

  it('are taken over from whoever vanished, in the time that others wait', async () => {
    const time = new HeldTime({ sleeps: true })
    const policy = { ...GRANT_POLICY, poll: 5_000 }
    const { keeper, authorize } = create({ time, policy })
    await authorize(alice)
    time.pass(2 * HOUR)
    const options = {
      owner: 'gone',
      now: time.now(),
      lease: GRANT_POLICY.lease,
    }
    assert.ok(await stores.grants.lease(SPACE, alice.did, options))
    assert.ok(await stores.grants.refreshing(SPACE, alice.did, options))
    await read(keeper)
    assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
  })

  it('do not end when what a store is told takes effect and seems to fail', async () => {
    const time = new HeldTime()
    let failures = 0
    const store: GrantStore = {
      ...stores.grants,
      async put(...input) {
        const isNewest = await stores.grants.put(...input)
        if (failures-- > 0) throw new StoreUnavailableError('it is away')
        return isNewest
      },
    }
    const { keeper, authorize } = create({ time, store })
    failures = 2
    await authorize(alice)
    time.pass(2 * HOUR)
    failures = 2
    await read(keeper)
    assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
    assert.equal((await stateOf(keeper)).state, 'active')
  })

  it('do not end when the host takes its time', async () => {
    const time = new HeldTime()
    const limits = { small: { timeout: 2_000 } }
    const { keeper, authorize } = create({ time, limits })
    await authorize(alice)
    time.pass(2 * HOUR)
    delay = limits.small.timeout + 500
    await read(keeper)
    assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
  })

  it('end when the account has moved to another host', async () => {
    const other = resources.use(await startPds({ plcUrl: plc.url }))
    let hasMoved = false
    const server = resources.use(await openLoopbackServer())
    server.serve(async ({ url }, response) => {
      const answer = await fetch(new URL(url ?? '/', plc.url))
      const text = await answer.text()
      response.writeHead(answer.status, {
        'content-type': answer.headers.get('content-type') ?? '',
      })
      response.end(hasMoved ? text.replaceAll(pds.url, other.url) : text)
    })
    const time = new HeldTime()
    const network = { plc: { ...plc, url: server.url }, pds } as Network
    const { keeper, authorize } = create({ time, network })
    await authorize(alice)
    time.pass(2 * HOUR)
    hasMoved = true
    const opening = () => keeper.open(SPACE, alice.did as DID)
    await assert.rejects(opening(), { name: 'ReauthorizeError' })
    const { state, reason } = await stateOf(keeper)
    assert.equal(state, 'ended')
    assert.match(reason, /moved to another host/)
    assert.deepEqual({ taken, refused }, { taken: 0, refused: 0 })
  })

  it('do not end when the keys of the client are away', async () => {
    await using folder = await createFolder()
    await using client = await routeClient(folder.path, 'one.example.dev')
    const time = new HeldTime()
    const { keeper, authorize } = create({ time, oauth: client })
    await authorize(alice)
    time.pass(2 * HOUR)
    const keys = await loadClientKeys(join(folder.path, 'other.json'), {
      now: Date.now(),
    })
    const without = create({ time, oauth: withKeys(client, keys) })
    await assert.rejects(without.keeper.open(SPACE, alice.did as DID), {
      name: 'HostError',
      message: /key .* put the file/,
    })
    assert.equal((await stateOf(keeper)).state, 'active')
    await read(keeper)
    assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
  })

  it('go on with the key that they began with, when there is a newer one', async () => {
    await using folder = await createFolder()
    await using client = await routeClient(folder.path, 'two.example.dev')
    const time = new HeldTime()
    const first = create({ time, oauth: client })
    await first.authorize(alice)
    time.pass(2 * HOUR)
    const path = join(folder.path, 'client-keys.json')
    const year = 366 * 24 * HOUR
    await loadClientKeys(path, { now: Date.now() + year })
    const keys = await loadClientKeys(path, {
      now: Date.now() + year + year / 2,
    })
    assert.notEqual([...keys][0]?.kid, [...client.keys][0]?.kid)
    const second = create({ time, oauth: withKeys(client, keys) })
    await read(second.keeper)
    assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
  })

  it('end once, also where the Space knows of a newer one than we', async () => {
    const time = new HeldTime()
    const { keeper, authorize, publish, space } = create({ time })
    await authorize(alice)
    await publish(alice)
    await using others = await openStores({ path: ':memory:' })
    const twin = create({ time, space, store: others.grants })
    time.pass(2 * HOUR)
    await read(twin.keeper)
    await twin.publish(alice)
    // What the Space has is newer, and good.
    await read(keeper)
    assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
    time.pass(2 * HOUR)
    await read(twin.keeper)
    const opening = () => keeper.open(SPACE, alice.did as DID)
    await assert.rejects(opening(), { name: 'ReauthorizeError' })
    await assert.rejects(opening(), { name: 'ReauthorizeError' })
    assert.deepEqual({ taken, refused }, { taken: 2, refused: 1 })
    assert.equal((await stateOf(keeper)).state, 'ended')
  })

  it('are refreshed before their time when the host takes the session no more', async () => {
    let isRefused = false
    const { keeper, authorize } = create({
      answer({ pathname }) {
        if (!isRefused || pathname !== PREFERENCES) return undefined
        isRefused = false
        return new Response('', {
          status: 401,
          headers: { 'www-authenticate': 'DPoP error="invalid_token"' },
        })
      },
    })
    await authorize(alice)
    const session = await read(keeper)
    isRefused = true
    const response = await session.fetch(PREFERENCES)
    assert.equal(response.status, 200)
    await response.body?.cancel()
    assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
  })

  it('ask the host who it is once for many questions', async () => {
    let asked = 0
    const { keeper, authorize } = create({
      onRequest({ pathname }) {
        if (pathname.startsWith('/.well-known/')) asked++
      },
    })
    await authorize(alice)
    const session = await read(keeper)
    const before = asked
    assert.ok(before > 0)
    for (let count = 0; count < 3; count++) {
      const response = await session.fetch(PREFERENCES)
      assert.equal(response.status, 200)
      await response.body?.cancel()
    }
    assert.equal(asked, before)
  })

  it('that the Space has are read from it once for many questions', async () => {
    let reads = 0
    const space = new (class extends MemorySpace {
      override read(account: DID) {
        reads++
        return super.read(account)
      }
    })(agent)
    const { keeper, authorize, publish } = create({ space })
    await authorize(alice)
    await publish(alice)
    const session = await read(keeper)
    const before = reads
    assert.ok(before > 0)
    for (let count = 0; count < 3; count++) {
      const response = await session.fetch(PREFERENCES)
      assert.equal(response.status, 200)
      await response.body?.cancel()
    }
    assert.equal(reads, before)
  })
})

/** The same client after a restart, with other keys. */
function withKeys(
  { metadata }: Awaited<ReturnType<typeof routeClient>>,
  keys: Keyset
) {
  const origin = new URL(metadata.client_id ?? '')
  return { keys, metadata: confidentialMetadata(origin, keys) }
}
