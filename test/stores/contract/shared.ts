import type { Stores } from '../../../src/stores/index.ts'
import type { SharedContract } from './contract.ts'
import {
  account,
  alice,
  bytesOf,
  decisionOf,
  eventOf,
  headOf,
  randomEvents,
  requestOf,
  withAncestors,
} from './samples.ts'

const now = 1_742_140_800_000
const lease = 30_000

export const sharedStoresContract: SharedContract = {
  'many may open the same new database at the same time': async (
    assert,
    open
  ) => {
    const stores = await Promise.all(Array.from({ length: 4 }, open))
    await Promise.all(stores.map((each) => each.ping()))
    await stores[0]?.clock.advance(alice, [eventOf('a')])
    assert.deepEqual(await stores[3]?.clock.head(alice), ['a'])
  },

  'what was written is there when the database is opened again': async (
    assert,
    open
  ) => {
    {
      await using stores = await open()
      await stores.clock.advance(alice, [eventOf('a')])
      await stores.runs.create(requestOf('run'))
      await stores.receipts.put('task', bytesOf('receipt'))
      await stores.journal.append(alice, account, 'key', bytesOf('entry'))
      await stores.schedules.decide(alice, account, () => decisionOf(), now)
    }
    const stores = await open()
    assert.deepEqual(await stores.clock.head(alice), ['a'])
    assert.equal((await stores.runs.get('run'))?.state, 'queued')
    assert.equal(await stores.schedules.count(alice), 1)
    assert.deepEqual(await stores.receipts.get('task'), bytesOf('receipt'))
    assert.deepEqual(await stores.journal.load(alice, account), [
      bytesOf('entry'),
    ])
  },

  'a clock that two advance at once accepts everything': async (
    assert,
    open
  ) => {
    const [one, two] = [await open(), await open()]
    const events = randomEvents(200, 2)
    const advances = events.flatMap((event) => [
      one.clock.advance(alice, withAncestors(events, event)),
      two.clock.advance(alice, withAncestors(events, event)),
    ])
    await Promise.all(advances)
    assert.deepEqual(await one.clock.head(alice), headOf(events))
    assert.deepEqual(await two.clock.head(alice), headOf(events))
    const names = events.map(({ event }) => event)
    assert.deepEqual(await two.clock.unknown(alice, names), [])
  },

  'two that advance different events at once lose neither': async (
    assert,
    open
  ) => {
    const [one, two] = [await open(), await open()]
    const root = eventOf('root')
    await one.clock.advance(alice, [root])
    const children = Array.from({ length: 200 }, (_, index) => [
      eventOf(`one-${index}`, 'root'),
      eventOf(`two-${index}`, 'root'),
    ])
    await Promise.all(
      children.flatMap(([ones, twos]) => [
        one.clock.advance(alice, [ones!]),
        two.clock.advance(alice, [twos!]),
      ])
    )
    assert.deepEqual(
      await one.clock.head(alice),
      headOf([root, ...children.flat()])
    )
  },

  'no run is claimed twice': async (assert, open) => {
    const [one, two] = [await open(), await open()]
    const ids = Array.from({ length: 60 }, (_, index) => `run-${index}`)
    await Promise.all(
      ids.map((id) => one.runs.create(requestOf(id, { account: id })))
    )
    const claimed = await Promise.all(
      [one, two].flatMap(({ runs }, at) =>
        Array.from({ length: 4 }, async (_, worker) => {
          const mine: string[] = []
          const owner = `${at}-${worker}`
          for (;;) {
            const run = await runs.claim({ owner, now, lease })
            if (!run) return mine
            assert.equal(run.owner, owner)
            assert.equal(run.attempts, 1)
            mine.push(run.id)
          }
        })
      )
    )
    assert.deepEqual(claimed.flat().sort(), ids.sort())
  },

  'a run whose lease expired goes to one of those who want it': async (
    assert,
    open
  ) => {
    const stores = [await open(), await open()]
    await stores[0]?.runs.create(requestOf('a'))
    for (let round = 1; round <= 20; round += 1) {
      const claims = await Promise.all(
        stores.flatMap(({ runs }, at) =>
          ['x', 'y', 'z'].map((worker) =>
            runs.claim({
              owner: `${at}-${worker}-${round}`,
              now: now + round * lease,
              lease,
            })
          )
        )
      )
      const given = claims.filter((run) => run !== undefined)
      assert.equal(given.length, 1)
      assert.equal(given[0]?.attempts, round)
    }
  },

  'of many requests for an account at once, one becomes a run': async (
    assert,
    open
  ) => {
    const [one, two] = [await open(), await open()]
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, index) =>
        requestOf(`run-${index}`)
      ).flatMap((request) => [
        one.runs.create(request),
        two.runs.create(request),
      ])
    )
    const created = answers.filter((answer) => answer.created)
    assert.equal(created.length, 1)
    for (const answer of answers) {
      assert.equal(answer.run.id, created[0]?.run.id)
    }
  },

  'requests that come while runs end are all answered': async (
    assert,
    open
  ) => {
    const [one, two] = [await open(), await open()]
    let requesting = true
    const worker = (async () => {
      while (requesting) {
        const run = await one.runs.claim({ owner: 'one', now, lease })
        if (run) await one.runs.finish(run.id, 'one', { state: 'done', now })
        await new Promise((resolve) => setImmediate(resolve))
      }
    })()
    const answers = []
    for (let index = 0; index < 100; index += 1) {
      answers.push(await two.runs.create(requestOf(`run-${index}`)))
      await new Promise((resolve) => setImmediate(resolve))
    }
    requesting = false
    await worker
    assert.equal(answers.length, 100)
    assert.ok(answers.filter(({ created }) => created).length > 1)
  },

  'receipts and entries that two write at once are the first of them': async (
    assert,
    open
  ) => {
    const [one, two] = [await open(), await open()]
    const keys = Array.from({ length: 30 }, (_, index) => `key-${index}`)
    await Promise.all(
      keys.flatMap((key) =>
        [one, two].flatMap(({ receipts, journal }, at) => [
          receipts.put(key, bytesOf(`${at}`)),
          journal.append(alice, account, key, bytesOf(key)),
        ])
      )
    )
    for (const key of keys) {
      assert.deepEqual(await one.receipts.get(key), await two.receipts.get(key))
    }
    const entries = await one.journal.load(alice, account)
    const texts = entries.map((entry) => new TextDecoder().decode(entry))
    assert.deepEqual(texts.toSorted(), keys.sort())
    assert.deepEqual(await two.journal.load(alice, account), entries)
  },

  'of many who claim at once, each schedule has one owner': async (
    assert,
    open
  ) => {
    const stores = [await open(), await open()]
    const accounts = Array.from(
      { length: 40 },
      (_, index) => `did:plc:${index}`
    )
    for (const each of accounts) {
      await stores[0]?.schedules.decide(alice, each, () => decisionOf(), now)
    }
    const claims = await Promise.all(
      stores.flatMap(({ schedules }, at) =>
        ['x', 'y', 'z'].map(async (worker) => {
          const mine: string[] = []
          const owner = `${at}-${worker}`
          for (;;) {
            const batch = await schedules.claimDue({
              owner,
              now,
              lease,
              limit: 3,
            })
            // Rows that others are about to claim are skipped.
            if (batch.length === 0) return mine
            for (const schedule of batch) {
              assert.equal(schedule.owner, owner)
              mine.push(schedule.account)
            }
          }
        })
      )
    )
    const claimed = claims.flat()
    assert.equal(new Set(claimed).size, claimed.length)
    assert.deepEqual(claimed.sort(), accounts.sort())
  },

  'decisions that come at once follow one another': async (assert, open) => {
    const [one, two] = [await open(), await open()]
    const count = ({ schedules }: Stores) =>
      schedules.decide(
        alice,
        account,
        (present) => decisionOf({ anchor: (present?.anchor ?? 0) + 1 }),
        now
      )
    await Promise.all(
      Array.from({ length: 10 }).flatMap(() => [count(one), count(two)])
    )
    assert.equal((await one.schedules.get(alice, account))?.anchor, 20)
  },
}
