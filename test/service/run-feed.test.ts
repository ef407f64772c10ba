import assert from 'node:assert/strict'
import pino from 'pino'
import type { Time } from '../../src/backup/index.ts'
import { systemTime } from '../../src/node/index.ts'
import {
  createRunFeed,
  type RunFeed,
  type RunFollower,
} from '../../src/service/run-feed.ts'
import {
  openStores,
  type RunStore,
  type Stores,
} from '../../src/stores/index.ts'
import { blockOf, until } from './harness.ts'

const SPACE = 'did:key:space'
const ACCOUNT = 'did:plc:account'

describe('the feed of runs', () => {
  let stores: Stores
  let feed: RunFeed
  let logs: string[]
  let looks: Parameters<RunStore['watched']>[0][]
  let failing: boolean
  const followers: RunFollower[] = []
  let count = 0

  beforeEach(async () => {
    stores = await openStores({ path: ':memory:' })
    logs = []
    looks = []
    failing = false
    const time: Time = {
      now: () => Date.now(),
      sleep: (ms, signal) => systemTime.sleep(ms / 200, signal),
    }
    feed = createRunFeed({
      runs: {
        ...stores.runs,
        watched: (watched) => {
          if (failing) throw new Error('away')
          looks.push(watched)
          return stores.runs.watched(watched)
        },
      },
      time,
      logger: pino({}, { write: (line: string) => void logs.push(line) }),
    })
  })

  afterEach(async () => {
    for (const follower of followers.splice(0)) follower.close()
    await stores[Symbol.asyncDispose]()
  })

  const create = async (space = SPACE, created = Date.now()) => {
    const { cid } = await blockOf({ feed: ++count })
    const { run } = await stores.runs.create({
      id: cid.toString(),
      space,
      account: `${ACCOUNT}${count}`,
      agent: 'did:key:agent',
      include: [],
      authority: new Uint8Array([1]),
      created,
    })
    return run.id
  }

  const finish = async (id: string) => {
    await stores.runs.claim({ owner: id, now: Date.now(), lease: 60_000 })
    await stores.runs.finish(id, id, { state: 'done', now: Date.now() })
  }

  const follow = (
    runs: Parameters<RunFeed['follow']>[0] = { space: SPACE }
  ) => {
    const follower = feed.follow(runs)
    assert.ok(follower)
    followers.push(follower)
    return follower
  }

  /** Takes what there is until a run has ended. */
  const end = async (follower: RunFollower) => {
    for (;;) {
      await follower.next()
      const run = follower.take().find(({ state }) => state === 'done')
      if (run) return run
    }
  }

  it('looks for all who follow together, and for nobody not at all', async () => {
    const id = await create()
    const all = [
      follow(),
      follow(),
      follow({ space: SPACE, run: id }),
      follow({ space: 'did:key:other' }),
    ]
    await until(() => looks.length > 3)
    const { spaces, runs } = looks.at(-1)!
    assert.deepEqual(spaces, [SPACE, 'did:key:other'])
    assert.deepEqual(runs, [id])
    for (const follower of [...all, ...all]) follower.close()
    assert.equal(feed.size, 0)
    const { length } = looks
    await new Promise((resolve) => setTimeout(resolve, 50))
    assert.ok(looks.length <= length + 1)
    // And begins again with who comes then.
    const late = follow()
    await late.next()
    assert.deepEqual(
      late.take().map(({ run }) => run),
      [id]
    )
  })

  it('gives the latest alone to who is slow', async () => {
    const id = await create()
    const slow = follow()
    const fast = follow()
    await fast.next()
    assert.equal(fast.take()[0]?.state, 'queued')
    await finish(id)
    assert.equal((await end(fast)).run, id)
    await slow.next()
    const messages = slow.take()
    assert.deepEqual(
      messages.map(({ run, state }) => [run, state]),
      [[id, 'done']]
    )
  })

  it('tells a run that began and ended between two looks', async () => {
    const follower = follow()
    await until(() => looks.length > 1)
    const id = await create()
    await finish(id)
    assert.equal((await end(follower)).run, id)
  })

  it('tells the end of a run that was asked for long ago', async () => {
    const id = await create(SPACE, Date.now() - 3_600_000)
    const follower = follow()
    await follower.next()
    assert.equal(follower.take()[0]?.state, 'queued')
    await finish(id)
    assert.equal((await end(follower)).run, id)
  })

  it('goes on when the database is back, and misses nothing', async () => {
    const follower = follow()
    await until(() => looks.length > 0)
    failing = true
    await until(() => logs.length > 2)
    assert.match(logs[0]!, /cannot be read; trying again/)
    const id = await create()
    await finish(id)
    failing = false
    await follower.next()
    assert.equal(follower.take()[0]?.run, id)
  })
})
