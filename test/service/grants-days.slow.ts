import assert from 'node:assert/strict'
import { ed25519 } from '@ucanto/principal'
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
        Math.abs(lasts - (kind === 'public' ? 14 : 365.25 / 4) * DAY) < DAY
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
})
