import type { EndOfRun } from '../../../src/stores/index.ts'
import type { Contract } from './contract.ts'
import {
  account,
  alice,
  bob,
  bytesOf,
  decisionOf,
  requestOf,
} from './samples.ts'

const now = 1_742_140_800_000
const lease = 30_000

export const runStoreContract: Contract = {
  'a request becomes a queued run': async (assert, { runs }) => {
    const request = requestOf('a')
    const { run, created } = await runs.create(request)
    assert.ok(created)
    assert.deepEqual(run, {
      ...request,
      scheduled: false,
      host: undefined,
      state: 'queued',
      progress: undefined,
      outcome: undefined,
      error: undefined,
      updated: request.created,
      started: undefined,
      finished: undefined,
      attempts: 0,
      owner: undefined,
      leaseExpiration: undefined,
    })
    assert.deepEqual(await runs.get('a'), run)
    assert.equal(await runs.get('b'), undefined)
  },

  'the same task is the same run, even when it has ended': async (
    assert,
    { runs }
  ) => {
    await runs.create(requestOf('a'))
    const again = await runs.create(requestOf('a', { created: now }))
    assert.equal(again.created, false)
    assert.equal(again.run.created, requestOf('a').created)

    await runs.claim({ owner: 'one', now, lease })
    await runs.finish('a', 'one', { state: 'done', now })
    await runs.create(requestOf('b'))
    const late = await runs.create(requestOf('a'))
    assert.equal(late.created, false)
    assert.equal(late.run.id, 'a')
    assert.equal(late.run.state, 'done')
  },

  'an account has one run that has not ended': async (assert, { runs }) => {
    await runs.create(requestOf('a'))
    assert.equal((await runs.create(requestOf('b'))).run.id, 'a')
    await runs.claim({ owner: 'one', now, lease })
    assert.equal((await runs.create(requestOf('b'))).run.id, 'a')
    assert.equal(await runs.get('b'), undefined)

    await runs.finish('a', 'one', { state: 'failed', now })
    const { run, created } = await runs.create(requestOf('b'))
    assert.ok(created)
    assert.equal(run.id, 'b')
  },

  'other accounts and other Spaces have runs of their own': async (
    assert,
    { runs }
  ) => {
    const requests = [
      requestOf('a'),
      requestOf('b', { account: 'did:plc:other' }),
      requestOf('c', { space: bob }),
    ]
    for (const request of requests) {
      assert.ok((await runs.create(request)).created)
    }
  },

  'runs of one account are listed by themselves': async (assert, { runs }) => {
    for (const [index, id] of ['a', 'b', 'c', 'd'].entries()) {
      await runs.create(
        requestOf(id, {
          account: id === 'b' ? 'did:plc:other' : account,
          created: now + index,
        })
      )
      await runs.claim({ owner: id, now, lease })
      await runs.finish(id, id, { state: 'done', now })
    }
    const listed = async (options: { limit: number; account?: string }) =>
      (await runs.list(alice, options)).map(({ id }) => id)
    assert.deepEqual(await listed({ limit: 2, account }), ['d', 'c'])
    assert.deepEqual(await listed({ limit: 9, account }), ['d', 'c', 'a'])
    assert.deepEqual(await listed({ limit: 9, account: 'did:plc:other' }), [
      'b',
    ])
    assert.deepEqual(await listed({ limit: 9, account: 'did:plc:none' }), [])
  },

  'runs that are watched are those named, not ended, or new': async (
    assert,
    { runs }
  ) => {
    const asked = [
      ['old', alice, now - 2],
      ['going', alice, now - 1],
      ['new', alice, now],
      ['elsewhere', bob, now + 1],
    ] as const
    for (const [id, space, created] of asked) {
      await runs.create(
        requestOf(id, { space, account: `${account}-${id}`, created })
      )
    }
    for (const id of ['old', 'going', 'new']) {
      await runs.claim({ owner: id, now, lease })
      if (id === 'going') continue
      await runs.finish(id, id, { state: 'done', now })
    }
    const watched = async (options: object) =>
      (
        await runs.watched({
          runs: [],
          spaces: [],
          since: now,
          limit: 9,
          ...options,
        })
      )
        .map(({ id }) => id)
        .sort()
    assert.deepEqual(await watched({}), [])
    assert.deepEqual(await watched({ runs: ['old', 'none'] }), ['old'])
    assert.deepEqual(await watched({ spaces: [alice] }), ['going', 'new'])
    assert.deepEqual(await watched({ spaces: [alice], since: now + 1 }), [
      'going',
    ])
    assert.deepEqual(
      await watched({ runs: ['old', 'new'], spaces: [alice, bob] }),
      ['elsewhere', 'going', 'new', 'old']
    )
    assert.deepEqual(await watched({ spaces: [alice], limit: 1 }), [
      'going',
      'new',
    ])
    const limited = await watched({ spaces: [alice], since: 0, limit: 1 })
    assert.deepEqual(limited, ['going', 'new'])
    const [old] = await runs.watched({
      runs: ['old'],
      spaces: [],
      since: 0,
      limit: 1,
    })
    const { authority, ...run } = (await runs.get('old'))!
    assert.ok(authority)
    assert.deepEqual(old, run)
  },

  'a run keeps how far it was when it ended': async (assert, { runs }) => {
    await runs.create(requestOf('a'))
    await runs.claim({ owner: 'one', now, lease })
    const leaseExpiration = now + lease
    const first = { progress: { blobs: 1 }, leaseExpiration, now }
    await runs.heartbeat('a', 'one', first)
    const last = { blobs: 2 }
    await runs.finish('a', 'one', { state: 'failed', progress: last, now })
    assert.deepEqual((await runs.get('a'))?.progress, last)

    await runs.create(requestOf('b'))
    await runs.claim({ owner: 'two', now, lease })
    await runs.heartbeat('b', 'two', first)
    await runs.finish('b', 'two', { state: 'done', now })
    assert.deepEqual((await runs.get('b'))?.progress, first.progress)
  },

  'runs into a Space are listed newest first': async (assert, { runs }) => {
    for (const [index, id] of ['a', 'b', 'c'].entries()) {
      await runs.create(
        requestOf(id, { account: `${account}-${id}`, created: now + index })
      )
    }
    await runs.create(requestOf('d', { space: bob }))
    const list = async (limit: number) =>
      (await runs.list(alice, { limit })).map(({ id }) => id)
    assert.deepEqual(await list(10), ['c', 'b', 'a'])
    assert.deepEqual(await list(2), ['c', 'b'])
    assert.deepEqual(await runs.list('did:key:nobody', { limit: 10 }), [])
  },

  'a claim takes the oldest run': async (assert, { runs }) => {
    await runs.create(requestOf('young', { account: '1', created: now - 1 }))
    await runs.create(requestOf('old', { account: '2', created: now - 2 }))
    const run = await runs.claim({ owner: 'one', now, lease })
    assert.equal(run?.id, 'old')
    assert.equal(run?.state, 'running')
    assert.equal(run?.owner, 'one')
    assert.equal(run?.attempts, 1)
    assert.equal(run?.started, now)
    assert.equal(run?.updated, now)
    assert.equal(run?.leaseExpiration, now + lease)
    assert.deepEqual(await runs.get('old'), run)
    const next = await runs.claim({ owner: 'two', now, lease })
    assert.equal(next?.id, 'young')
    assert.equal(await runs.claim({ owner: 'two', now, lease }), undefined)
  },

  'runs that somebody waits for go before those of schedules': async (
    assert,
    { runs }
  ) => {
    for (const [index, id] of ['a', 'b', 'c', 'd'].entries()) {
      await runs.create(
        requestOf(id, {
          account: id,
          scheduled: id < 'c',
          created: now + index,
        })
      )
    }
    const claimed = []
    for (let run; (run = await runs.claim({ owner: 'one', now, lease }));) {
      claimed.push([run.id, run.scheduled])
    }
    assert.deepEqual(claimed, [
      ['c', false],
      ['d', false],
      ['a', true],
      ['b', true],
    ])
  },

  'runs of hosts that have enough are passed over': async (
    assert,
    { runs }
  ) => {
    const hosts = { a: 'one.test', b: 'two.test', c: undefined, d: 'one.test' }
    for (const [id, host] of Object.entries(hosts)) {
      await runs.create(requestOf(id, { account: id }))
      await runs.claim({ owner: id, now, lease })
      if (host) await runs.locate(id, id, host)
    }
    for (const id of Object.keys(hosts)) await runs.release(id, id)
    const claim = async (...without: string[]) =>
      (await runs.claim({ owner: 'one', now, lease, without }))?.id
    assert.equal(await claim('one.test'), 'b')
    assert.equal(await claim('one.test', 'two.test', 'x.test'), 'c')
    assert.equal(await claim('one.test'), undefined)
    assert.equal(await claim('two.test'), 'a')
    assert.equal(await claim(), 'd')
  },

  'a run is on the host of its schedule, or of the last run': async (
    assert,
    { runs, schedules }
  ) => {
    await runs.create(requestOf('a'))
    await runs.claim({ owner: 'one', now, lease })
    assert.equal((await runs.get('a'))?.host, undefined)
    assert.equal(await runs.locate('a', 'two', 'other.test'), false)
    assert.equal(await runs.locate('a', 'one', 'one.test'), true)
    assert.equal((await runs.get('a'))?.host, 'one.test')
    await runs.finish('a', 'one', { state: 'failed', now })

    const next = async (id: string, changes = {}) => {
      const { run } = await runs.create(
        requestOf(id, { created: now, ...changes })
      )
      await runs.claim({ owner: 'one', now, lease })
      await runs.finish(id, 'one', { state: 'done', now })
      return run.host
    }
    assert.equal(await next('b'), 'one.test')
    assert.equal(await next('c', { space: bob }), undefined)
    assert.equal(await next('d', { account: 'did:plc:other' }), undefined)
    const decision = decisionOf({ host: 'two.test' })
    await schedules.decide(alice, account, () => decision, now)
    assert.equal(await next('e'), 'two.test')
  },

  'a run that is deferred was not begun': async (assert, { runs }) => {
    await runs.create(requestOf('a'))
    assert.equal(await runs.defer('a', 'one', 'one.test'), false)
    for (const attempts of [1, 1, 1]) {
      const run = await runs.claim({ owner: 'one', now, lease })
      assert.equal(run?.attempts, attempts)
      assert.equal(await runs.defer('a', 'two', 'two.test'), false)
      assert.equal(await runs.defer('a', 'one', 'one.test'), true)
    }
    const run = await runs.get('a')
    assert.equal(run?.state, 'queued')
    assert.equal(run?.attempts, 0)
    assert.equal(run?.host, 'one.test')
    assert.equal(run?.owner, undefined)
    assert.equal(run?.leaseExpiration, undefined)
  },

  'a run is claimed again when its lease has expired': async (
    assert,
    { runs }
  ) => {
    await runs.create(requestOf('a'))
    await runs.claim({ owner: 'one', now, lease })
    const later = now + lease
    assert.equal(
      await runs.claim({ owner: 'two', now: later - 1, lease }),
      undefined
    )
    const run = await runs.claim({ owner: 'two', now: later, lease })
    assert.equal(run?.owner, 'two')
    assert.equal(run?.attempts, 2)
    assert.equal(run?.started, now)
    assert.equal(run?.leaseExpiration, later + lease)
  },

  'a heartbeat keeps the run and its progress': async (assert, { runs }) => {
    await runs.create(requestOf('a'))
    await runs.claim({ owner: 'one', now, lease })
    const progress = { stage: 'blobs', blobsDone: 3, text: 'é\0\ud800' }
    const later = now + lease
    assert.equal(
      await runs.heartbeat('a', 'one', {
        leaseExpiration: later + 1,
        progress,
        now: later,
      }),
      true
    )
    assert.equal(
      await runs.claim({ owner: 'two', now: later, lease }),
      undefined
    )
    const run = await runs.get('a')
    assert.deepEqual(run?.progress, progress)
    assert.equal(run?.updated, later)
  },

  'who has lost the lease can change nothing': async (
    assert,
    { runs, receipts }
  ) => {
    await runs.create(requestOf('a'))
    await runs.claim({ owner: 'one', now, lease })
    const run = await runs.claim({ owner: 'two', now: now + lease, lease })
    const update = { leaseExpiration: now * 2, progress: 'mine', now }
    assert.equal(await runs.heartbeat('a', 'one', update), false)
    assert.equal(await runs.release('a', 'one'), false)
    assert.equal(
      await runs.finish('a', 'one', {
        state: 'done',
        receipt: bytesOf('mine'),
        now,
      }),
      false
    )
    assert.deepEqual(await runs.get('a'), run)
    assert.equal(await receipts.get('a'), undefined)
  },

  'nobody keeps, releases or ends a run that is not running': async (
    assert,
    { runs }
  ) => {
    const update = { leaseExpiration: now * 2, progress: 0, now }
    const attempts = async () => [
      await runs.heartbeat('a', 'one', update),
      await runs.release('a', 'one'),
      await runs.finish('a', 'one', { state: 'failed', now }),
    ]
    assert.deepEqual(await attempts(), [false, false, false])
    const { run } = await runs.create(requestOf('a'))
    assert.deepEqual(await attempts(), [false, false, false])
    assert.deepEqual(await runs.get('a'), run)
    await runs.claim({ owner: 'one', now, lease })
    await runs.finish('a', 'one', { state: 'done', now })
    assert.deepEqual(await attempts(), [false, false, false])
    assert.equal((await runs.get('a'))?.state, 'done')
  },

  'a released run is the next to be claimed': async (assert, { runs }) => {
    await runs.create(requestOf('a', { created: now - 2 }))
    await runs.create(requestOf('b', { account: '2', created: now - 1 }))
    await runs.claim({ owner: 'one', now, lease })
    await runs.heartbeat('a', 'one', {
      leaseExpiration: now + lease,
      progress: 1,
      now,
    })
    assert.equal(await runs.release('a', 'one'), true)
    const parked = await runs.get('a')
    assert.equal(parked?.state, 'queued')
    assert.equal(parked?.owner, undefined)
    assert.equal(parked?.leaseExpiration, undefined)
    assert.equal(parked?.progress, 1)
    const run = await runs.claim({ owner: 'two', now: now + 1, lease })
    assert.equal(run?.id, 'a')
    assert.equal(run?.attempts, 2)
  },

  'a run is done along with its receipt': async (
    assert,
    { runs, receipts }
  ) => {
    await runs.create(requestOf('a'))
    await runs.claim({ owner: 'one', now, lease })
    const outcome = { event: 'bafy', missing: [] }
    assert.equal(
      await runs.finish('a', 'one', {
        state: 'done',
        outcome,
        receipt: bytesOf('receipt'),
        now: now + 5,
      }),
      true
    )
    const run = await runs.get('a')
    assert.equal(run?.state, 'done')
    assert.deepEqual(run?.outcome, outcome)
    assert.equal(run?.error, undefined)
    assert.equal(run?.finished, now + 5)
    assert.equal(run?.updated, now + 5)
    assert.equal(run?.owner, undefined)
    assert.deepEqual(await receipts.get('a'), bytesOf('receipt'))
    assert.equal(
      await runs.claim({ owner: 'two', now: now * 2, lease }),
      undefined
    )
  },

  'what a run acts upon is kept until it has ended': async (
    assert,
    { runs }
  ) => {
    for (const state of ['done', 'failed'] as const) {
      const { authority } = requestOf(state)
      await runs.create(requestOf(state))
      for (const owner of ['one', 'two']) {
        const run = await runs.claim({ owner, now, lease })
        assert.deepEqual(run?.authority, authority)
        if (owner === 'one') await runs.release(state, owner)
      }
      assert.deepEqual((await runs.get(state))?.authority, authority)
      await runs.finish(state, 'one', { state, now })
      assert.deepEqual((await runs.get(state))?.authority, authority)
      await runs.finish(state, 'two', { state, now })
      assert.deepEqual((await runs.get(state))?.authority, new Uint8Array())
    }
  },

  'a failed run tells why': async (assert, { runs, receipts }) => {
    await runs.create(requestOf('a'))
    await runs.claim({ owner: 'one', now, lease })
    const error = { name: 'HostError', message: 'no answer\0' }
    await runs.finish('a', 'one', { state: 'failed', error, now })
    const run = await runs.get('a')
    assert.equal(run?.state, 'failed')
    assert.deepEqual(run?.error, error)
    assert.equal(await receipts.get('a'), undefined)
  },

  'a result that cannot be kept leaves the run as it was': async (
    assert,
    { runs, receipts }
  ) => {
    await runs.create(requestOf('a'))
    const run = await runs.claim({ owner: 'one', now, lease })
    // Neither driver takes this for bytes.
    const receipt = {
      toPostgres() {
        throw new TypeError('not bytes')
      },
    } as unknown as Uint8Array
    await assert.rejects(
      runs.finish('a', 'one', { state: 'done', receipt, now }),
      { name: 'TypeError' }
    )
    assert.deepEqual(await runs.get('a'), run)
    assert.equal(await receipts.get('a'), undefined)
  },

  'old runs are removed, but for the last of an account and its last event':
    async (assert, { runs, receipts }) => {
      const ended = [
        ['first', 1, alice, true],
        ['unchanged', 2, alice, false],
        ['event', 3, alice, true],
        ['failed', 4, alice, false],
        ['last', 5, alice, false],
        ['only', 1, bob, true],
        ['young', 9, 'did:key:carol', false],
        ['old', 2, 'did:key:carol', true],
        ['event of two', 5, 'did:key:dan', true],
        ['late', 7, 'did:key:dan', false],
      ] as const
      for (const [id, at, space, eventful] of ended.toSorted(
        ([, one], [, other]) => one - other
      )) {
        await runs.create(requestOf(id, { space, created: now + at }))
        await runs.claim({ owner: id, now, lease })
        const state = id === 'failed' ? 'failed' : 'done'
        const receipt = bytesOf(id)
        const end = { state, eventful, receipt, now: now + at } as const
        await runs.finish(id, id, end)
      }
      await runs.create(requestOf('queued', { created: now + 6 }))
      await receipts.put('other task', bytesOf('other'))
      const left = async () => {
        const names = []
        for (const [id] of ended) {
          const run = await runs.get(id)
          const receipt = await receipts.get(id)
          assert.equal(run === undefined, receipt === undefined)
          if (run) names.push(id)
        }
        return names
      }
      const prune = (before: number, limit = 99, after?: EndOfRun) =>
        runs.prune({ before: now + before, limit, after })

      assert.deepEqual(await prune(0), { removed: 0 })
      assert.equal((await left()).length, ended.length)
      // A step at a time, past those that stay.
      let removed = 0
      let steps = 0
      for (let after: EndOfRun | undefined; ; steps++) {
        const step = await prune(6, 2, after)
        assert.ok(step.removed <= 2)
        removed += step.removed
        after = step.next
        if (!after) break
      }
      assert.equal(steps, 4)
      assert.equal(removed, 3)
      const stay = [
        'event',
        'last',
        'only',
        'young',
        'old',
        'event of two',
        'late',
      ]
      assert.deepEqual(await left(), stay)
      assert.deepEqual(await prune(99), { removed: 0 })
      assert.deepEqual(await left(), stay)
      assert.equal((await runs.get('queued'))?.state, 'queued')
      assert.deepEqual(await receipts.get('other task'), bytesOf('other'))

      await runs.claim({ owner: 'one', now, lease })
      const end = { state: 'done', eventful: true, now: now + 10 } as const
      await runs.finish('queued', 'one', end)
      assert.equal((await prune(9)).removed, 2)
      assert.deepEqual(await left(), stay.slice(2))
    },
}
