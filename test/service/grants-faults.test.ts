import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Signer } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import type { Keyset } from '@atproto/oauth-client-node'
import { pino } from 'pino'
import { confidentialMetadata } from '../../src/atproto/oauth/index.ts'
import { ForbiddenAddressError, HostError } from '../../src/backup/index.ts'
import { loadClientKeys } from '../../src/node/index.ts'
import { sealAnswer } from '../../src/service/answer.ts'
import {
  CourierUnavailableError,
  type Courier,
} from '../../src/service/courier.ts'
import { GrantRequestError } from '../../src/service/grant-errors.ts'
import { GRANT_POLICY, type GrantKeeper } from '../../src/service/grants.ts'
import type { DID } from '../../src/space/index.ts'
import {
  openStores,
  StoreUnavailableError,
  type GrantStore,
  type Stores,
} from '../../src/stores/index.ts'
import { consent } from '../network/consent.ts'
import type { Account, Network, Pds, Plc } from '../network/index.ts'
import { openLoopbackServer } from '../network/loopback-server.ts'
import { startPds, startPlc } from '../network/pds.ts'
import {
  createTestGrants,
  HeldTime,
  requestFor,
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

  describe('in the Space', () => {
    const did = () => alice.did as DID

    /** A Space that cannot be read for a while. */
    class DarkSpace extends MemorySpace {
      isDark = false
      override async read(account: DID) {
        if (this.isDark) throw new Error('nobody answers')
        return super.read(account)
      }
    }

    it('are not dropped for earlier ones by a greater number', async () => {
      const time = new HeldTime()
      const space = new DarkSpace(agent)
      const first = create({ time, space })
      await first.authorize(alice)
      time.pass(2 * HOUR)
      await read(first.keeper)
      assert.ok(await first.publish(alice))
      assert.equal((await space.read(did()))?.seq, 2)

      // The database is lost, the Space cannot be read, and the user consents.
      await using empty = await openStores({ path: ':memory:' })
      const second = create({ time, space, store: empty.grants })
      space.isDark = true
      time.pass(HOUR)
      await second.authorize(alice)
      space.isDark = false
      assert.equal((await empty.grants.get(SPACE, did()))?.seq, 1)
      assert.equal(await second.publish(alice), false)
      assert.equal((await empty.grants.get(SPACE, did()))?.seq, 3)
      assert.equal(await second.publish(alice), true)
      assert.equal((await space.read(did()))?.seq, 3)
      taken = 0
      await read(second.keeper)
      // It is the session of the second consent: it was not refreshed yet.
      assert.deepEqual({ taken, refused }, { taken: 0, refused: 0 })
    })

    it('are counted on from the greatest number that anybody has', async () => {
      const time = new HeldTime()
      const space = new MemorySpace(agent)
      const first = create({ time, space })
      await first.authorize(alice)
      time.pass(2 * HOUR)
      await read(first.keeper)
      await first.publish(alice)
      await using empty = await openStores({ path: ':memory:' })
      const second = create({ time, space, store: empty.grants })
      await second.authorize(alice)
      assert.equal((await empty.grants.get(SPACE, did()))?.seq, 3)
      assert.equal(await second.publish(alice), true)
    })

    it('are taken over by a database that was put back with an earlier one', async () => {
      const time = new HeldTime()
      const space = new MemorySpace(agent)
      const before = create({ time, space })
      await before.authorize(alice)
      const stored = await stores.grants.get(SPACE, did())
      assert.ok(stored?.sealed)
      await using restored = await openStores({ path: ':memory:' })
      await restored.grants.put(
        { ...stored, sealed: stored.sealed },
        time.now()
      )
      time.pass(2 * HOUR)
      await read(before.keeper)
      await before.publish(alice)

      const after = create({ time, space, store: restored.grants })
      await read(after.keeper)
      assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
      assert.equal((await restored.grants.get(SPACE, did()))?.seq, 2)
    })

    it('give way to later ones of the same number', async () => {
      const time = new HeldTime()
      const space = new DarkSpace(agent)
      const first = create({ time, space })
      await first.authorize(alice)
      await using empty = await openStores({ path: ':memory:' })
      const second = create({ time, space, store: empty.grants })
      time.pass(HOUR / 2)
      await second.authorize(alice)
      assert.equal(await second.publish(alice), true)
      assert.equal(await first.publish(alice), false)
      assert.equal(await first.publish(alice), true)
      const { created } = (await empty.grants.get(SPACE, did()))!
      assert.equal((await stores.grants.get(SPACE, did()))?.created, created)
      assert.equal((await space.read(did()))?.seq, 2)
      await read(first.keeper)
    })

    it('are not lost when they get a greater number while they are refreshed', async () => {
      const time = new HeldTime()
      const space = new MemorySpace(agent)
      const answered = Promise.withResolvers<void>()
      const gate = Promise.withResolvers<void>()
      let holds = false
      let revocations = 0
      const refresher = create({
        time,
        space,
        onRequest({ pathname }) {
          if (pathname === '/oauth/revoke') revocations++
        },
        async change({ pathname }, response) {
          if (holds && pathname === '/oauth/token' && response.ok) {
            answered.resolve()
            await gate.promise
          }
          return response
        },
      })
      const publisher = create({ time, space })
      await refresher.authorize(alice)
      const { seq } = (await stores.grants.get(SPACE, alice.did))!
      time.pass(2 * HOUR)
      holds = true
      const reading = read(refresher.keeper)
      await answered.promise
      const nonsense = { expiration: 2 ** 40, sealed: Uint8Array.of(1, 2, 3) }
      await space.record(alice.did as DID, { seq: 7, ...nonsense })
      // Nobody seals the session anew that is worth nothing by now.
      assert.equal(await publisher.publish(alice), false)
      assert.equal((await stores.grants.get(SPACE, alice.did))?.seq, seq)
      // Who has not heard of the refresh may have.
      const stale = (await stores.grants.get(SPACE, alice.did))!
      await stores.grants.put(
        { ...stale, sealed: stale.sealed!, seq: 8 },
        time.now()
      )
      holds = false
      gate.resolve()
      await reading
      assert.deepEqual(
        { revocations, taken, refused },
        { revocations: 0, taken: 1, refused: 0 }
      )
      assert.equal((await stores.grants.get(SPACE, alice.did))?.seq, 9)
      assert.equal(await publisher.publish(alice), true)
      time.pass(2 * HOUR)
      await read(publisher.keeper)
      assert.deepEqual({ taken, refused }, { taken: 2, refused: 0 })
    })

    it('are not written for an agent whose key has changed', async () => {
      const { authorize } = create()
      await authorize(alice)
      const other = create({ agent: await ed25519.generate() })
      assert.equal(
        await other.keeper.pending(SPACE, alice.did as DID),
        undefined
      )
      assert.match((await stateOf(other.keeper)).reason, /another key/)
      // It comes back with the key.
      assert.ok((await stores.grants.get(SPACE, alice.did))?.sealed)
    })

    it('do not give way to what somebody else has put there', async () => {
      const space = new MemorySpace(agent)
      const { keeper, authorize, publish } = create({ space })
      await authorize(alice)
      await space.record(did(), {
        seq: 7,
        expiration: 2 ** 40,
        sealed: Uint8Array.of(1, 2, 3),
      })
      assert.equal(await publish(alice), false)
      assert.equal(await publish(alice), true)
      assert.equal((await space.read(did()))?.seq, 8)
      await read(keeper)
    })

    it('are neither ended nor given back while it cannot be read', async () => {
      const space = new DarkSpace(agent)
      const { keeper, authorize, publish } = create({ space })
      await authorize(alice)
      await publish(alice)
      space.isDark = true
      for (const attempt of [
        () => keeper.open(SPACE, did()),
        () => keeper.revoke(SPACE, did()),
      ]) {
        await assert.rejects(attempt(), {
          name: 'SpaceUnreadableError',
          message: /try again later/,
        })
      }
      assert.equal((await stateOf(keeper)).state, 'active')
      space.isDark = false
      await read(keeper)
    })
  })

  describe('that are given back', () => {
    let isDown = false
    let revoked: string[] = []
    const did = () => alice.did as DID
    const failing = (options: Partial<TestGrantsOptions> = {}) =>
      create({
        answer: ({ pathname }) =>
          isDown && pathname === '/oauth/revoke'
            ? new Response('', { status: 503 })
            : undefined,
        change({ pathname }, response) {
          if (pathname === '/oauth/revoke' && response.ok) {
            revoked.push(pathname)
          }
          return response
        },
        ...options,
      })

    beforeEach(() => {
      isDown = false
      revoked = []
    })

    it('are given back again until the host has confirmed', async () => {
      const time = new HeldTime()
      const { keeper, authorize } = failing({ time })
      await authorize(alice)
      isDown = true
      assert.deepEqual(await keeper.revoke(SPACE, did()), {
        revoked: true,
        confirmed: false,
      })
      assert.deepEqual(await keeper.list(SPACE), [])
      assert.equal(await keeper.open(SPACE, did()), undefined)
      assert.deepEqual(await keeper.revoke(SPACE, did()), {
        revoked: false,
        confirmed: false,
      })
      isDown = false
      // It was told just now.
      await keeper.giveBack(time.now() - 1, { limit: 10 })
      assert.equal(revoked.length, 0)
      time.pass(HOUR)
      await keeper.giveBack(time.now() - 1, { limit: 10 })
      assert.equal(revoked.length, 1)
      assert.deepEqual(await keeper.revoke(SPACE, did()), {
        revoked: false,
        confirmed: true,
      })
      assert.equal(revoked.length, 1)
    })

    it('are given back to some while others do not answer', async () => {
      const { keeper, authorize } = failing()
      const subjects: DID[] = []
      isDown = true
      for (let count = 0; count < 3; count++) {
        if (count > 0) {
          const handle = `alice${accounts++}.test`
          alice = await pds.createAccount({ handle })
        }
        await authorize(alice)
        await keeper.revoke(SPACE, did())
        subjects.push(did())
      }
      isDown = false
      let told = 0
      const answered = Promise.withResolvers<void>()
      const slow = failing({
        onRequest: ({ pathname }) =>
          pathname === '/oauth/revoke' && ++told < 3
            ? answered.promise
            : undefined,
      })
      const options = { limit: 10 }
      const giving = slow.keeper.giveBack(Date.now() + 1, options)
      while (revoked.length === 0) await sleep(5)
      const waiting = async () => {
        const returns = await Promise.all(
          subjects.map((account) => stores.grants.returnsOf(SPACE, account))
        )
        return returns.flat().length
      }
      while ((await waiting()) > 2) await sleep(5)
      answered.resolve()
      await giving
      assert.equal(await waiting(), 0)
    })

    it('are not forgotten by who is killed before the host is told', async () => {
      const { keeper, authorize } = failing()
      await authorize(alice)
      const gone = failing({
        onRequest: ({ pathname }) =>
          pathname === '/oauth/revoke' ? new Promise(() => {}) : undefined,
      })
      void gone.keeper.revoke(SPACE, did())
      while ((await stores.grants.returnsOf(SPACE, did())).length === 0) {
        await sleep(5)
      }
      await keeper.giveBack(Date.now(), { limit: 10 })
      assert.equal(revoked.length, 1)
      assert.deepEqual(await stores.grants.returnsOf(SPACE, did()), [])
    })

    it('are given back with what a refresh gets meanwhile', async () => {
      const time = new HeldTime()
      const { keeper, authorize } = failing({ time })
      await authorize(alice)
      time.pass(2 * HOUR)
      const answered = Promise.withResolvers<void>()
      const gate = Promise.withResolvers<void>()
      const refreshing = failing({
        time,
        async change({ pathname }, response) {
          if (pathname === '/oauth/revoke') revoked.push(pathname)
          if (pathname !== '/oauth/token' || !response.ok) return response
          answered.resolve()
          await gate.promise
          return response
        },
      })
      const opening = refreshing.keeper.open(SPACE, did())
      await answered.promise
      await keeper.revoke(SPACE, did())
      assert.equal(revoked.length, 1)
      gate.resolve()
      assert.equal(await opening, undefined)
      assert.equal(revoked.length, 2)
      assert.deepEqual(await stores.grants.returnsOf(SPACE, did()), [])
      assert.deepEqual(await keeper.list(SPACE), [])
    })

    it('are given back with what was refreshed while the Space was asked', async () => {
      const time = new HeldTime()
      const asked = Promise.withResolvers<void>()
      const gate = Promise.withResolvers<void>()
      let isSlow = false
      class SlowSpace extends MemorySpace {
        override async read(account: DID) {
          if (isSlow) {
            asked.resolve()
            await gate.promise
          }
          return super.read(account)
        }
      }
      const one = create({ time, space: new SlowSpace(agent) })
      const other = create({ time })
      await one.authorize(alice)
      let fresh = ''
      const refresh = other.oauth.refresh.bind(other.oauth)
      other.oauth.refresh = (session, options) =>
        refresh(session, {
          ...options,
          async save(next) {
            fresh = next.session
            await options.save(next)
          },
        })
      time.pass(2 * HOUR)
      isSlow = true
      const revoking = one.keeper.revoke(SPACE, alice.did as DID)
      await asked.promise
      await read(other.keeper)
      assert.notEqual(fresh, '')
      isSlow = false
      gate.resolve()
      assert.deepEqual(await revoking, { revoked: true, confirmed: true })
      const response = await other.oauth.fetch(fresh, PREFERENCES)
      await response.body?.cancel()
      assert.equal(response.status, 401)
    })

    it('are given back when they cannot be kept', async () => {
      const time = new HeldTime({ sleeps: true })
      let isAway = true
      const store: GrantStore = {
        ...stores.grants,
        put: (...input) =>
          isAway
            ? Promise.reject(new StoreUnavailableError('it is away'))
            : stores.grants.put(...input),
      }
      const { keeper, authorize } = failing({ store, time })
      await assert.rejects(authorize(alice), { name: 'InternalError' })
      assert.equal(revoked.length, 1)
      isAway = false
      assert.equal(await keeper.open(SPACE, did()), undefined)
    })

    it('cannot be given back by who has another key, and are gone', async () => {
      const { authorize } = failing()
      await authorize(alice)
      const { keeper } = failing({ agent: await ed25519.generate() })
      await assert.rejects(keeper.open(SPACE, did()), {
        name: 'ReauthorizeError',
        message: /another key than ours/,
      })
      assert.equal((await stateOf(keeper)).state, 'ended')
      assert.deepEqual(await keeper.revoke(SPACE, did()), {
        revoked: true,
        confirmed: false,
      })
      assert.deepEqual(await keeper.list(SPACE), [])
    })

    it('are no secret in the database while they wait', async () => {
      const { keeper, authorize } = failing()
      await authorize(alice)
      isDown = true
      await keeper.revoke(SPACE, did())
      const [waiting] = await stores.grants.returnsOf(SPACE, did())
      const text = Buffer.from(waiting!.sealed).toString('latin1')
      assert.match(text, /^eyJ/)
      assert.ok(!/token|dpop/i.test(text))
    })
  })

  describe('whose requests fail', () => {
    it('say that the time of the host was over, not that its user said no', async () => {
      const { keeper } = create()
      const { url } = await keeper.request(requestFor(alice))
      const back = await visit(url, { late: 6 * 60_000 })
      await assert.rejects(keeper.conclude(back), {
        name: 'AuthorizationExpired',
        message: /some minutes only/,
      })
    })

    it('say that a host takes them once, not that its user said no', async () => {
      const { keeper } = create()
      const { url } = await keeper.request(requestFor(alice))
      const { handle: username, password } = alice
      const { searchParams } = await consent(url, { username, password })
      await keeper.find(searchParams)
      // Back in the browser, which ends the request.
      await assert.rejects(keeper.conclude(await visit(url)), {
        name: 'AuthorizationExpired',
        message: /only once/,
      })
      await assert.rejects(keeper.conclude(searchParams), {
        name: 'AuthorizationExpired',
      })
    })

    it('name the trouble of a host that is asked with a session', async () => {
      const { authorize } = create()
      await authorize(alice)
      const other = create({
        answer() {
          throw new HostError('it does not answer')
        },
      })
      await assert.rejects(read(other.keeper), { name: 'HostError' })
    })

    const conclude = async (options: Partial<TestGrantsOptions>) => {
      const { keeper } = create(options)
      const { url } = await keeper.request(requestFor(alice))
      const { handle: username, password } = alice
      const back = await consent(url, { username, password })
      await assert.rejects(
        keeper.conclude(back.searchParams),
        (error: Error) => {
          assert.ok(error instanceof GrantRequestError)
          assert.equal(error.request?.account, alice.did)
          outcome = error.name
          return true
        }
      )
      assert.deepEqual(await keeper.list(SPACE), [])
    }
    let outcome = ''
    const atToken = (fail: () => void) => ({
      onRequest({ pathname }: URL) {
        if (pathname === '/oauth/token') fail()
      },
    })

    it('say so by name to who has asked', async () => {
      await conclude(
        atToken(() => {
          throw new HostError('it is down')
        })
      )
      assert.equal(outcome, 'HostUnavailable')
      await conclude(
        atToken(() => {
          throw new ForbiddenAddressError('it is at home')
        })
      )
      assert.equal(outcome, 'HostRefused')
      const logged: string[] = []
      const logger = pino({}, { write: (line) => void logged.push(line) })
      const store: GrantStore = {
        ...stores.grants,
        get: () => Promise.reject(new StoreUnavailableError('away')),
      }
      const { keeper } = create({ store, logger })
      const { url } = await keeper.request(requestFor(alice))
      const { handle: username, password } = alice
      const back = await consent(url, { username, password })
      await assert.rejects(keeper.conclude(back.searchParams), {
        name: 'InternalError',
      })
      assert.match(logged.join(''), /a request could not be concluded/)
    })
  })

  describe('whose refreshes are carried', () => {
    /** A courier, but for its process: what becomes of that has its own test. */
    const courierOf = (send: Courier['send']): Courier => ({
      send,
      [Symbol.dispose]() {},
    })
    const ask = async (request: Request) => {
      const response = await fetch(request)
      return { response, release() {} }
    }
    const find = async () => stores.grants.get(SPACE, alice.did)

    it('go on with what a courier has kept of a refresher that was killed', async () => {
      const time = new HeldTime({ sleeps: true })
      const killed = create({
        time,
        courier: courierOf(async (request, { recipient, seq }) => {
          const { response } = await ask(request)
          if (!response.ok) return { response, release() {} }
          const { status, headers } = response
          const body = await response.text()
          const answer = { status, headers: [...headers], body }
          const sealed = await sealAnswer(recipient, answer)
          const grant = { seq, sealed }
          assert.ok(await stores.grants.answered(SPACE, alice.did, grant))
          throw new HostError('who has sent it is not there any more')
        }),
      })
      await killed.authorize(alice)
      time.pass(2 * HOUR)
      await assert.rejects(read(killed.keeper), { name: 'HostError' })
      assert.equal(taken, 1)
      let sent = 0
      const { keeper } = create({
        time,
        courier: courierOf((request) => {
          sent++
          return ask(request)
        }),
      })
      await read(keeper)
      assert.deepEqual(
        { sent, taken, refused },
        { sent: 0, taken: 1, refused: 0 }
      )
      assert.equal((await find())?.seq, 2)
      assert.equal((await find())?.answer, undefined)
      time.pass(2 * HOUR)
      await read(keeper)
      assert.deepEqual({ taken, refused }, { taken: 2, refused: 0 })
      assert.ok(sent > 0)
    })

    it('are released when they are kept, and no sooner', async () => {
      const time = new HeldTime()
      const away = Promise.withResolvers<void>()
      let isAway = true
      let released = 0
      const store: GrantStore = {
        ...stores.grants,
        async put(...input) {
          if (taken === 0 || !isAway) return stores.grants.put(...input)
          away.resolve()
          throw new StoreUnavailableError('it is away')
        },
      }
      const { keeper, authorize } = create({
        time,
        store,
        courier: courierOf(async (request) => {
          const { response } = await ask(request)
          return { response, release: () => void released++ }
        }),
      })
      await authorize(alice)
      time.pass(2 * HOUR)
      const reading = read(keeper)
      await away.promise
      await sleep(20)
      assert.equal(released, 0)
      isAway = false
      await reading
      assert.ok(released > 0)
      assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
    })

    it('are sent by their own process where there is no courier', async () => {
      const time = new HeldTime()
      const lines: string[] = []
      const { keeper, authorize } = create({
        time,
        logger: pino({}, { write: (line: string) => void lines.push(line) }),
        courier: courierOf(async () => {
          throw new CourierUnavailableError('there is no room for it')
        }),
      })
      await authorize(alice)
      time.pass(2 * HOUR)
      await read(keeper)
      assert.equal(taken, 1)
      assert.match(lines.join(''), /a refresh is sent by this process/)
    })

    it('are made with the token there is when an answer cannot be read', async () => {
      const time = new HeldTime({ sleeps: true })
      const { keeper, authorize } = create({ time })
      await authorize(alice)
      const sealed = new TextEncoder().encode('of nobody')
      await stores.grants.answered(SPACE, alice.did, { seq: 1, sealed })
      time.pass(2 * HOUR)
      await read(keeper)
      assert.deepEqual({ taken, refused }, { taken: 1, refused: 0 })
    })
  })

  it('are waited for by who goes down', async () => {
    const time = new HeldTime()
    const { keeper, authorize } = create({ time })
    await authorize(alice)
    time.pass(2 * HOUR)
    delay = 300
    const reading = read(keeper)
    while (taken === 0) await sleep(5)
    await keeper.settle()
    assert.equal((await stores.grants.get(SPACE, alice.did))?.seq, 2)
    await reading
    await keeper.settle()
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

/**
 * Opens a page of the host, as a browser does.
 *
 * @param options.late - milliseconds that are over by then, for the host
 * @returns what it sends along with whom it sends back
 */
async function visit(
  url: URL,
  { late = 0 }: { late?: number } = {}
): Promise<URLSearchParams> {
  const { Date } = globalThis
  const now = () => Date.now() + late
  globalThis.Date = class extends Date {
    constructor(...input: unknown[]) {
      super(...((input.length === 0 ? [now()] : input) as [number]))
    }
    static override now = now
  } as DateConstructor
  try {
    const headers = {
      'sec-fetch-dest': 'document',
      'sec-fetch-mode': 'navigate',
      'sec-fetch-site': 'cross-site',
    }
    const [response] = (await once(
      request(url, { headers }).end(),
      'response'
    )) as [IncomingMessage]
    response.resume()
    return new URL(response.headers.location ?? '').searchParams
  } finally {
    globalThis.Date = Date
  }
}

/** The same client after a restart, with other keys. */
function withKeys(
  { metadata }: Awaited<ReturnType<typeof routeClient>>,
  keys: Keyset
) {
  const origin = new URL(metadata.client_id ?? '')
  return { keys, metadata: confidentialMetadata(origin, keys) }
}
