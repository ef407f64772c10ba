import assert from 'node:assert/strict'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Signer } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import { HostError } from '../../src/backup/index.ts'
import { GRANT_POLICY, type GrantKeeper } from '../../src/service/grants.ts'
import type { DID } from '../../src/space/index.ts'
import {
  openStores,
  StoreUnavailableError,
  type GrantStore,
  type Stores,
} from '../../src/stores/index.ts'
import { consent } from '../network/consent.ts'
import { startNetwork, type Account, type Network } from '../network/index.ts'
import { openLoopbackServer } from '../network/loopback-server.ts'
import {
  createTestGrants,
  HeldTime,
  isRefresh,
  requestFor,
  SPACE,
  type TestGrantsOptions,
} from './grants-harness.ts'
import { createFolder } from './harness.ts'
import { MemorySpace } from './test-space.ts'

const HOUR = 60 * 60_000
const PREFERENCES = '/xrpc/app.bsky.actor.getPreferences'

describe('grants', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let agent: Signer
  let stores: Stores
  let alice: Account
  let accounts = 0

  before(async () => {
    network = resources.use(await startNetwork())
    agent = await ed25519.generate()
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    stores = await openStores({ path: ':memory:' })
    alice = await network.pds.createAccount({
      handle: `alice${accounts++}.test`,
    })
  })

  afterEach(() => stores[Symbol.asyncDispose]())

  const create = (options: Partial<TestGrantsOptions> = {}) =>
    createTestGrants({ network, agent, store: stores.grants, ...options })

  const open = (keeper: GrantKeeper) => keeper.open(SPACE, alice.did as DID)

  const read = async (keeper: GrantKeeper, path = PREFERENCES) => {
    const session = await open(keeper)
    assert.ok(session)
    const response = await session.fetch(path)
    const text = await response.text()
    assert.equal(response.status, 200, text)
    return text
  }

  it('are none before anybody consents', async () => {
    const { keeper } = create()
    assert.equal(await open(keeper), undefined)
    assert.equal(await keeper.pending(SPACE, alice.did as DID), undefined)
    assert.deepEqual(await keeper.list(SPACE), [])
    assert.deepEqual(await keeper.revoke(SPACE, alice.did as DID), {
      revoked: false,
      confirmed: true,
    })
  })

  it('are not begun by who takes too long', async () => {
    const time = new HeldTime()
    const { keeper } = create({ time })
    const { url, expiration } = await keeper.request(requestFor(alice))
    const back = await consent(url, {
      username: alice.handle,
      password: alice.password,
    })
    time.pass(expiration * 1000 - time.now() + 1000)
    await assert.rejects(keeper.conclude(back.searchParams), {
      name: 'AuthorizationExpired',
    })
    assert.equal(await open(keeper), undefined)
  })

  it('open what only the owner may read, and no more than was granted', async () => {
    await alice.agent.app.bsky.actor.putPreferences({
      preferences: [
        { $type: 'app.bsky.actor.defs#adultContentPref', enabled: true },
      ],
    })
    const { keeper, authorize } = create()
    await authorize(alice, ['preferences'])
    const session = await open(keeper)
    assert.deepEqual(session?.parts, ['preferences'])
    assert.match(await read(keeper), /adultContentPref/)
    const refused = await session.fetch('/xrpc/app.bsky.graph.getMutes')
    assert.equal(refused.status, 403)
    await refused.body?.cancel()
  })

  for (const path of ['/oauth/par', '/xrpc/par']) {
    it(`take no large answer from ${path} of a host that names its endpoints so`, async () => {
      await using server = await openLoopbackServer()
      let sent = 0
      server.serve(async (_request, response) => {
        response.on('error', () => {})
        response.writeHead(201, { 'content-type': 'application/json' })
        const part = Buffer.alloc(64 * 1024, ' ')
        for (
          ;
          sent < 64 * 1024 ** 2 && !response.destroyed;
          sent += part.length
        )
          if (!response.write(part)) await sleep(1)
        response.end()
      })
      const known = await fetch(
        new URL('/.well-known/oauth-authorization-server', network.pds.url)
      )
      const metadata = (await known.json()) as Record<string, unknown>
      const { keeper } = create({
        answer: (url) =>
          url.pathname === '/.well-known/oauth-authorization-server'
            ? Response.json({
                ...metadata,
                pushed_authorization_request_endpoint: server.url + path,
              })
            : undefined,
      })
      await assert.rejects(keeper.request(requestFor(alice)))
      assert.ok(sent > 0, 'the host was asked there')
      assert.ok(sent < 32 * 1024 ** 2, `${sent} bytes were taken`)
    })
  }

  it('ask for more of a host that knows no scopes by name', async () => {
    const asked: string[] = []
    const { keeper, authorize } = create({
      // The real host knows them: here it plays one that is older.
      answer: (url, body) => {
        if (url.pathname !== '/oauth/par') return undefined
        const scope = new URLSearchParams(body).get('scope') ?? ''
        asked.push(scope)
        return scope.includes('rpc:')
          ? Response.json({ error: 'invalid_scope' }, { status: 400 })
          : undefined
      },
    })
    await authorize(alice, ['preferences', 'conversations'])
    assert.match(asked[0] ?? '', /^atproto rpc:/)
    assert.equal(
      asked.at(-1),
      'atproto transition:generic transition:chat.bsky'
    )
    const session = await open(keeper)
    assert.ok(session)
    assert.ok(session.parts.includes('preferences'))
    assert.ok(session.parts.includes('conversations'))
    await read(keeper)
  })

  it('are asked for once more of a host that leaves out without a word what it does not know', async () => {
    let asked = 0
    const revoked: string[] = []
    const { keeper, authorize } = create({
      onRequest: (url, body) => {
        if (url.pathname === '/oauth/revoke') revoked.push(body)
      },
      // The real host knows them: here it plays one that is older.
      change: async (url, response) => {
        if (url.pathname !== '/oauth/token' || !response.ok) return response
        return asked++ > 0
          ? response
          : Response.json(
              { ...((await response.json()) as object), scope: 'atproto' },
              response
            )
      },
    })
    const { again } = await authorize(alice, ['preferences', 'conversations'])
    assert.ok(again)
    assert.deepEqual(await keeper.list(SPACE), [])
    assert.equal(revoked.length, 1)

    const { handle: username, password } = alice
    const back = await consent(again, { username, password })
    const granted = await keeper.conclude(back.searchParams)
    assert.ok(!granted.again)
    assert.deepEqual(granted.missing, [])
    assert.ok(granted.parts.includes('conversations'))
    const [listed] = await keeper.list(SPACE)
    assert.match(listed?.scope ?? '', /transition:generic/)
    await read(keeper)
  })

  it('name what was asked for and is not granted', async () => {
    const { keeper, authorize } = create({
      change: async (url, response) => {
        if (url.pathname !== '/oauth/token' || !response.ok) return response
        const token = (await response.json()) as { scope: string }
        const scope = token.scope
          .split(' ')
          .filter((each) => !each.includes('getMutes'))
          .join(' ')
        return Response.json({ ...token, scope }, response)
      },
    })
    const granted = await authorize(alice, ['preferences', 'mutes'])
    assert.ok(!granted.again)
    assert.deepEqual(granted.parts, ['preferences'])
    assert.deepEqual(granted.missing, ['mutes'])
    const [listed] = await keeper.list(SPACE)
    assert.deepEqual(listed?.missing, ['mutes'])
    assert.equal(listed.scopeVersion, 1)
  })

  it('are pending until the clock has them, and come back from the Space', async () => {
    const { keeper, authorize, publish, space } = create()
    await authorize(alice)
    const pending = await keeper.pending(SPACE, alice.did as DID)
    assert.equal(pending?.authorization.seq, 1)
    assert.equal(pending.agent, agent.did())
    await publish(alice)
    assert.equal(await keeper.pending(SPACE, alice.did as DID), undefined)
    assert.equal((await stores.grants.get(SPACE, alice.did))?.sealed, undefined)
    await read(keeper)

    // A service that has lost its database, and has its key.
    await using empty = await openStores({ path: ':memory:' })
    const another = create({ store: empty.grants, space })
    await read(another.keeper)
    const [listed] = await another.keeper.list(SPACE)
    assert.equal(listed?.state, 'active')

    // Another agent cannot open it.
    await using none = await openStores({ path: ':memory:' })
    const mallory = create({
      store: none.grants,
      space,
      agent: await ed25519.generate(),
    })
    await assert.rejects(open(mallory.keeper), {
      name: 'ReauthorizeError',
      message: /not ours/,
    })
  })

  it('are not taken from a Space that has an older one, until it has the newest', async () => {
    const time = new HeldTime()
    const space = new MemorySpace(agent)
    const { keeper, authorize, publish } = create({ time, space })
    await authorize(alice)
    await publish(alice)
    const first = space.state
    time.pass(2 * HOUR)
    await read(keeper)
    await publish(alice)
    const second = space.state
    assert.equal((await space.read(alice.did as DID))?.seq, 2)
    for (const [state, why] of [
      [first, /from before/],
      [undefined, /not in the Space any more/],
    ] as const) {
      space.state = state
      await assert.rejects(open(keeper), {
        name: 'ReauthorizeError',
        message: why,
      })
      const [listed] = await keeper.list(SPACE)
      assert.equal(listed?.state, 'ended')
      assert.match(listed.reason?.message ?? '', why)
      space.state = second
      await read(keeper)
      assert.equal((await keeper.list(SPACE))[0]?.state, 'active')
    }
  })

  for (const [which, isPending, isRefreshed] of [
    ['that is in the Space', false, false],
    ['on its way into the Space, which is given back', true, false],
    ['that is due to be refreshed, which is given back', true, true],
  ] as const) {
    it(`end when another agent lets theirs go, one ${which}`, async () => {
      const time = new HeldTime()
      const space = new MemorySpace(agent)
      const did = alice.did as DID
      let returned = 0
      let refreshes = 0
      const { keeper, authorize, publish } = create({
        time,
        space,
        onRequest: (_url, body) => {
          if (new URLSearchParams(body).has('token')) returned++
          if (isRefresh(body)) refreshes++
        },
      })
      await authorize(alice)
      await publish(alice)
      if (isPending) {
        time.pass(2 * HOUR)
        await read(keeper)
      }
      await space.letGo(did)
      if (isRefreshed) time.pass(2 * HOUR)
      else assert.equal(await publish(alice), true)
      for (let time = 0; time < 2; time++) {
        await assert.rejects(open(keeper), {
          name: 'ReauthorizeError',
          message: /another agent of the Space has let this one go/,
        })
      }
      assert.equal(returned, isPending ? 1 : 0)
      assert.equal(refreshes, isPending ? 1 : 0)
      const [listed] = await keeper.list(SPACE)
      assert.equal(listed?.state, 'ended')
      assert.equal(await keeper.pending(SPACE, did), undefined)
      assert.equal((await space.read(did))?.expiration, 0)

      await authorize(alice)
      await publish(alice)
      await read(keeper)
      assert.equal((await keeper.list(SPACE))[0]?.state, 'active')
      assert.ok((await space.read(did))!.expiration > 0)
    })
  }

  it('end when the host takes them no more, which is not asked again', async () => {
    const time = new HeldTime()
    let asked = 0
    const { keeper, authorize, space, publish } = create({
      time,
      onRequest: (_url, body) => {
        if (isRefresh(body)) asked++
      },
    })
    await authorize(alice)
    await publish(alice)
    // Somebody who has the same key uses the session up.
    await using empty = await openStores({ path: ':memory:' })
    const thief = create({ time, space, store: empty.grants })
    time.pass(2 * HOUR)
    await read(thief.keeper)

    await assert.rejects(open(keeper), {
      name: 'ReauthorizeError',
      message: /authorize again/,
    })
    assert.equal(asked, 1)
    await assert.rejects(open(keeper), { name: 'ReauthorizeError' })
    assert.equal(asked, 1)
    const [listed] = await keeper.list(SPACE)
    assert.equal(listed?.state, 'ended')
    assert.equal(listed.reason?.name, 'GrantEndedError')
    assert.ok(!/ref-|eyJ/.test(JSON.stringify(listed)))
  })

  it('do not end when the host does not answer for a while', async () => {
    const time = new HeldTime()
    let isDown = false
    const { keeper, authorize } = create({
      time,
      onRequest: (_url, body) => {
        if (isDown && isRefresh(body)) throw new HostError('it is down')
      },
    })
    await authorize(alice)
    time.pass(2 * HOUR)
    isDown = true
    await assert.rejects(open(keeper), HostError)
    assert.equal((await keeper.list(SPACE))[0]?.state, 'active')
    isDown = false
    await read(keeper)
  })

  it('are not lost when the database fails after the host has answered', async () => {
    const time = new HeldTime({ sleeps: true })
    let failures = 0
    const store: GrantStore = {
      ...stores.grants,
      async put(...input) {
        if (failures-- > 0) throw new StoreUnavailableError('it is away')
        return stores.grants.put(...input)
      },
    }
    const asked: string[] = []
    const { keeper, authorize } = create({
      time,
      store,
      onRequest: (url, body) => {
        if (isRefresh(body) || url.pathname.endsWith('revoke')) {
          asked.push(url.pathname)
        }
      },
    })
    await authorize(alice)
    // For a while.
    time.pass(2 * HOUR)
    failures = 3
    await read(keeper)
    assert.equal((await stores.grants.get(SPACE, alice.did))?.seq, 2)

    // For longer than a user would wait: it is tried until it is back.
    time.pass(2 * HOUR)
    failures = Infinity
    const began = time.now()
    const reading = read(keeper)
    while (time.now() < began + 2 * GRANT_POLICY.keep) await sleep(5)
    await assert.rejects(open(keeper), StoreUnavailableError)
    failures = 0
    await reading
    assert.equal((await stores.grants.get(SPACE, alice.did))?.seq, 3)
    assert.deepEqual(asked, ['/oauth/token', '/oauth/token'])
  })

  it('are refreshed once, however many want them', async () => {
    const time = new HeldTime()
    let refreshes = 0
    const options = {
      time,
      onRequest: (_url: URL, body: string) => {
        if (isRefresh(body)) refreshes++
      },
    }
    const one = create(options)
    const two = create(options)
    await one.authorize(alice)
    for (let round = 1; round <= 5; round++) {
      time.pass(2 * HOUR)
      await Promise.all(
        Array.from({ length: 8 }, (_, at) =>
          read((at % 2 === 0 ? one : two).keeper)
        )
      )
      assert.equal(refreshes, round)
    }
  })

  it('are put in the place of those before, which are given back', async () => {
    const revoked: string[] = []
    const { keeper, authorize } = create({
      onRequest: (url, body) => {
        if (url.pathname === '/oauth/revoke') revoked.push(body)
      },
    })
    await authorize(alice, ['preferences'])
    await authorize(alice, ['preferences', 'mutes'])
    assert.equal(revoked.length, 1)
    const [listed, ...others] = await keeper.list(SPACE)
    assert.deepEqual(others, [])
    assert.deepEqual(listed?.parts, ['preferences', 'mutes'])
    await read(keeper)

    assert.deepEqual(await keeper.revoke(SPACE, alice.did as DID), {
      revoked: true,
      confirmed: true,
    })
    assert.equal(revoked.length, 2)
    assert.equal(await open(keeper), undefined)
    assert.deepEqual(await keeper.list(SPACE), [])
  })

  it('are no secret in the database', async () => {
    await using folder = await createFolder()
    const path = join(folder.path, 'grants.sqlite')
    const secrets: string[] = []
    {
      await using stores = await openStores({ path })
      const time = new HeldTime()
      const { keeper, authorize, oauth } = create({
        store: stores.grants,
        time,
      })
      const refresh = oauth.refresh.bind(oauth)
      oauth.refresh = (session, { before, save }) =>
        refresh(session, {
          before,
          save: async (next) => {
            const { dpopJwk, tokenSet } = JSON.parse(next.session) as {
              dpopJwk: { d: string }
              tokenSet: { access_token: string; refresh_token: string }
            }
            secrets.push(
              dpopJwk.d,
              tokenSet.access_token,
              tokenSet.refresh_token
            )
            await save(next)
          },
        })
      await keeper.request(requestFor(alice))
      await authorize(alice)
      time.pass(2 * HOUR)
      await read(keeper)
    }
    assert.equal(secrets.length, 3)
    for (const name of await readdir(folder.path)) {
      const bytes = await readFile(join(folder.path, name))
      for (const secret of secrets) assert.ok(!bytes.includes(secret))
      assert.ok(
        !/refresh_token|dpopJwk|verifier/.test(bytes.toString('latin1'))
      )
    }
  })
})
