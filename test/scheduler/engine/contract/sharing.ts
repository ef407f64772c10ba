import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { EngineStoppingError } from '../../../../src/scheduler/errors.ts'
import { Witness, aborted, jobOf, jobsOf, until } from '../harness.ts'
import type { Contract } from '../harness.ts'

/** How jobs are shared out within an engine and among several. */
export const sharingContract: Contract = {
  'of a slot one job is active at a time, of several slots several': async ({
    open,
  }) => {
    const engines = [await open(), await open(), await open()]
    const jobs = jobsOf(60, (index) => ({ slot: `host/${index % 3}` }))
    const witness = new Witness()
    for (const { engine } of engines) {
      engine.work(
        {
          test: (job) => witness.during(job, () => sleep(Math.random() * 10)),
        },
        { concurrency: 4 }
      )
    }
    await engines[0]?.engine.enqueue(jobs)
    await until(() => witness.begun.length >= jobs.length)
    await until(async () => (await engines[0]?.engine.counts())?.active === 0)
    witness.assertOnceEach(jobs)
    assert.ok(witness.mostActive > 1)
  },

  'a slot whose job goes on keeps no other slot waiting': async ({ open }) => {
    const { engine } = await open()
    const slot = 'slow/0'
    await engine.enqueue([
      ...jobsOf(20, () => ({ slot, priority: 1 })),
      jobOf('fast'),
    ])
    const begun: string[] = []
    engine.work(
      {
        async test({ key }, { signal }) {
          begun.push(key)
          if (key !== 'fast') await aborted(signal)
        },
      },
      { concurrency: 3 }
    )
    await until(() => begun.includes('fast'))
    assert.equal(begun.length, 2)
  },

  'a thousand jobs are done once each': async ({ open }) => {
    const { engine } = await open()
    const jobs = jobsOf(1_000)
    const witness = new Witness()
    engine.work(
      { test: (job) => witness.during(job, async () => {}) },
      { concurrency: 8 }
    )
    assert.deepEqual(await engine.enqueue(jobs), { enqueued: 1_000 })
    await until(() => witness.begun.length >= jobs.length)
    await until(async () => (await engine.outstanding()).size === 0)
    witness.assertOnceEach(jobs)
    assert.ok(witness.mostActive <= 8)
  },

  'engines share the work': async ({ open }) => {
    const count = 4
    const engines = await Promise.all(
      Array.from({ length: count }, () => open())
    )
    const jobs = jobsOf(40)
    const witness = new Witness()
    const all = Promise.withResolvers<void>()
    const atWork = new Set<number>()
    for (const [index, { engine }] of engines.entries()) {
      engine.work(
        {
          test: (job) =>
            witness.during(job, async () => {
              atWork.add(index)
              if (atWork.size === count) all.resolve()
              await all.promise
            }),
        },
        { concurrency: 2 }
      )
    }
    await engines[0]?.engine.enqueue(jobs)
    await until(
      async () => (await engines[0]?.engine.outstanding())?.size === 0
    )
    witness.assertOnceEach(jobs)
  },

  'no more jobs are begun than there is room for': async ({ open }) => {
    const { engine } = await open()
    await engine.enqueue(jobsOf(10))
    const begun: string[] = []
    const ending = Promise.withResolvers<void>()
    engine.work(
      {
        async test({ key }) {
          begun.push(key)
          await ending.promise
        },
      },
      { concurrency: 3 }
    )
    await until(() => begun.length === 3)
    engine.kick()
    assert.equal((await engine.counts()).queued, 7)
    assert.equal(begun.length, 3)
    ending.resolve()
    await until(() => begun.length === 10)
  },

  'an engine is put to work once': async ({ open }) => {
    const { engine } = await open()
    engine.work({}, { concurrency: 1 })
    assert.throws(() => engine.work({}, { concurrency: 1 }), {
      name: 'TypeError',
    })
  },

  'an engine that drains lets its jobs finish and begins no others': async ({
    open,
  }) => {
    const { engine } = await open()
    await engine.enqueue(jobsOf(5))
    const ending = Promise.withResolvers<void>()
    const begun: string[] = []
    engine.work(
      {
        async test({ key }) {
          begun.push(key)
          await ending.promise
        },
      },
      { concurrency: 2 }
    )
    await until(() => begun.length === 2)
    const drained = engine.drain(60_000)
    engine.kick()
    ending.resolve()
    await drained
    assert.equal(begun.length, 2)
    assert.deepEqual(await engine.counts(), {
      queued: 3,
      active: 0,
      retrying: 0,
      dead: 0,
    })
  },

  'an engine that drains gives back what is not done in time': async ({
    open,
  }) => {
    const { engine } = await open()
    const { engine: other } = await open()
    await engine.enqueue([jobOf('a', { data: 'given back' }), jobOf('b')])
    const reasons: unknown[] = []
    let begun = 0
    engine.work(
      {
        async test({ key }, { signal }) {
          begun += 1
          reasons.push(await aborted(signal))
          // A handler may tell of its end, or come to it after all.
          if (key === 'a') throw signal.reason
        },
      },
      { concurrency: 2, retryPolicy: () => ({ dead: true }) }
    )
    await until(() => begun === 2)
    await engine.drain(10)
    assert.ok(reasons.every((reason) => reason instanceof EngineStoppingError))
    assert.equal(reasons.length, 2)
    assert.deepEqual(await engine.counts(), {
      queued: 0,
      active: 0,
      retrying: 1,
      dead: 0,
    })
    const resumed: unknown[] = []
    other.work(
      {
        async test({ key, data, attempt }) {
          resumed.push([key, data, attempt])
        },
      },
      { concurrency: 2 }
    )
    await until(async () => (await other.outstanding()).size === 0)
    assert.deepEqual(resumed, [['a', 'given back', 1]])
  },

  'an engine that is not at work drains at once': async ({ open }) => {
    const { engine } = await open()
    await engine.drain(60_000)
    await engine.enqueue([jobOf('a')])
    assert.equal((await engine.counts()).queued, 1)
  },
}
