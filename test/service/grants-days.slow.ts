import assert from 'node:assert/strict'
import { ed25519 } from '@ucanto/principal'
import pino from 'pino'
import type { GrantKeeper } from '../../src/service/grants.ts'
import type { DID } from '../../src/space/index.ts'
import { openStores } from '../../src/stores/index.ts'
import { startNetwork } from '../network/index.ts'
import {
  createTestGrants,
  HeldTime,
  isRefresh,
  routeClient,
  SPACE,
} from './grants-harness.ts'
import { createFolder } from './harness.ts'

const HOUR = 60 * 60_000
const DAY = 24 * HOUR
/** What a confidential client is let in for: idle, and in all. */
const QUARTER = (365.25 / 4) * DAY
const TWO_YEARS = 2 * 365.25 * DAY
const PREFERENCES = '/xrpc/app.bsky.actor.getPreferences'

/**
 * Our time is held; the real PDS lives in the real one. Its sessions have the
 * lengths that it gives them, and how long a grant lasts is for us to know.
 */
describe('grants in held time', () => {
  for (const kind of ['public', 'confidential'] as const) {
    const days = 30
    it(`of a ${kind} client are refreshed for ${days} days, as long as they last`, async () => {
      const time = new HeldTime()
      await using network = await startNetwork()
      await using stores = await openStores({ path: ':memory:' })
      const alice = await network.pds.createAccount({ handle: 'alice.test' })
      await using folder = await createFolder()
      await using client =
        kind === 'public' ? undefined : await routeClient(folder.path)
      let refreshes = 0
      const { keeper, authorize, publish } = createTestGrants({
        network,
        agent: await ed25519.generate(),
        store: stores.grants,
        time,
        ...(client ? { oauth: client } : {}),
        onRequest: (_url, body) => {
          if (isRefresh(body)) refreshes++
        },
      })
      const open = () => keeper.open(SPACE, alice.did as DID)
      const read = async () => {
        const session = await open()
        const response = await session?.fetch(PREFERENCES)
        assert.equal(response?.status, 200)
        await response.body?.cancel()
      }
      await authorize(alice)
      const start = time.now()
      const [granted] = await keeper.list(SPACE)
      const lasts = granted!.expiration * 1000 - start
      assert.ok(
        Math.abs(lasts - (kind === 'public' ? 14 * DAY : QUARTER)) < DAY
      )
      let seq = 1
      let ended = 0
      for (let hour = 1; hour <= days * 24; hour++) {
        time.pass(HOUR)
        try {
          await read()
          seq++
        } catch (error) {
          assert.equal((error as Error).name, 'ReauthorizeError')
          ended ||= time.now()
          continue
        }
        const stored = await stores.grants.get(SPACE, alice.did)
        assert.equal(stored?.seq, seq)
        if (hour % 7 === 0) await publish(alice)
      }
      const [listed] = await keeper.list(SPACE)
      if (kind === 'confidential') {
        assert.equal(ended, 0)
        assert.equal(refreshes, days * 24)
        assert.equal(listed?.state, 'active')
        // From now on, three months.
        assert.ok(listed.expiration * 1000 - time.now() > 90 * DAY)
        return
      }
      assert.ok(Math.abs(ended - start - 14 * DAY) <= HOUR)
      assert.equal(listed?.state, 'ended')
      assert.match(listed.reason?.message ?? '', /was good until/)
      // The host is not asked any more.
      const before = refreshes
      await assert.rejects(open(), { name: 'ReauthorizeError' })
      assert.equal(refreshes, before)
      await authorize(alice)
      await read()
      assert.equal((await keeper.list(SPACE))[0]?.state, 'active')
    })
  }

  describe('of a confidential client', () => {
    let resources: AsyncDisposableStack
    let time: HeldTime
    let refreshes: number
    /** Times at which it was said that a grant has ended. */
    let said: number[]
    let keeper: GrantKeeper
    let authorize: () => Promise<unknown>
    let publish: () => Promise<unknown>
    let account: DID

    beforeEach(async () => {
      resources = new AsyncDisposableStack()
      time = new HeldTime()
      refreshes = 0
      said = []
      const network = resources.use(await startNetwork())
      const stores = resources.use(await openStores({ path: ':memory:' }))
      const folder = resources.use(await createFolder())
      const client = resources.use(await routeClient(folder.path))
      const alice = await network.pds.createAccount({ handle: 'alice.test' })
      const grants = createTestGrants({
        network,
        agent: await ed25519.generate(),
        store: stores.grants,
        time,
        oauth: client,
        logger: pino(
          {},
          {
            write(line: string) {
              const { msg } = JSON.parse(line) as { msg: string }
              if (msg === 'a grant has ended') said.push(time.now())
            },
          }
        ),
        onRequest: (_url, body) => {
          if (isRefresh(body)) refreshes++
        },
      })
      ;({ keeper } = grants)
      account = alice.did as DID
      authorize = () => grants.authorize(alice)
      publish = () => grants.publish(alice)
      await authorize()
    })

    afterEach(() => resources.disposeAsync())

    const read = async () => {
      const session = await keeper.open(SPACE, account)
      const response = await session?.fetch(PREFERENCES)
      assert.equal(response?.status, 200)
      await response.body?.cancel()
    }

    const listed = async () => {
      const [grant] = await keeper.list(SPACE)
      assert.ok(grant)
      return grant
    }

    /** It has ended, which is said once, and the host is not asked. */
    const assertEnded = async (end: number) => {
      const before = refreshes
      const until = new Date(Math.floor(end / 1000) * 1000).toISOString()
      for (let look = 0; look < 3; look++) {
        await assert.rejects(read(), {
          name: 'ReauthorizeError',
          message: new RegExp(`the grant was good until ${until}`),
        })
        time.pass(HOUR)
      }
      const { state, reason } = await listed()
      assert.equal(state, 'ended')
      assert.equal(reason?.name, 'GrantEndedError')
      assert.match(reason.message, new RegExp(until))
      assert.equal(said.length, 1)
      assert.equal(refreshes, before)
    }

    const assertComesBack = async () => {
      await authorize()
      const { state, reason, created } = await listed()
      assert.equal(state, 'active')
      assert.equal(reason, undefined)
      assert.equal(created, time.now())
      const before = refreshes
      time.pass(30 * DAY)
      await read()
      assert.equal(refreshes, before + 1)
      assert.equal((await listed()).state, 'active')
      assert.equal(said.length, 1)
    }

    it('end when they are not used for three months, and come back by consent', async () => {
      time.pass(91 * DAY)
      await read()
      await publish()
      const used = time.now()
      assert.equal(refreshes, 1)
      time.pass(91 * DAY)
      assert.equal((await listed()).state, 'active')
      time.pass(DAY)
      await assertEnded(used + QUARTER)
      await assertComesBack()
    })

    it('end two years after the consent, however they are used, and come back by consent', async () => {
      const end = time.now() + TWO_YEARS
      for (let day = 30; day <= 720; day += 30) {
        time.pass(30 * DAY)
        await read()
        await publish()
        const { state, expiration } = await listed()
        assert.equal(state, 'active')
        const due = Math.min(time.now() + QUARTER, end)
        assert.equal(expiration, Math.floor(due / 1000))
      }
      time.pass(end - time.now() - HOUR)
      await read()
      assert.equal(refreshes, 25)
      time.pass(HOUR)
      await assertEnded(end)
      await assertComesBack()
    })
  })
})
