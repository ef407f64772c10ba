import assert from 'node:assert/strict'
import { RetryLaterError } from '../../../../src/scheduler/errors.ts'
import type { Job, NewJob } from '../../../../src/scheduler/engine/index.ts'
import { Witness, aborted, jobOf, jobsOf, until } from '../harness.ts'
import type { Contract } from '../harness.ts'

/** Which jobs are queued, in which order they are begun, and how they end. */
export const queueContract: Contract = {
  'a job is done once, with what it was given': async ({ open }) => {
    const { engine } = await open()
    const jobs: Job[] = []
    const data = { did: 'did:plc:alice', parts: ['repo', 1, null, true] }
    const given = jobOf('a', { slot: 'pds.example/3', priority: 7, data })
    assert.deepEqual(await engine.enqueue([given]), { enqueued: 1 })
    engine.work(
      {
        async test(job) {
          jobs.push(job)
        },
      },
      { concurrency: 2 }
    )
    await until(async () => jobs.length > 0 && (await liveJobs(engine)) === 0)
    const [{ id, ...job } = assert.fail()] = jobs
    assert.deepEqual(job, { ...given, attempt: 1 })
    assert.ok(id.length > 0)
    assert.equal(jobs.length, 1)
    assert.deepEqual(await engine.counts(), {
      queued: 0,
      active: 0,
      retrying: 0,
      dead: 0,
    })
  },

  'nothing to queue queues nothing': async ({ open }) => {
    const { engine } = await open()
    assert.deepEqual(await engine.enqueue([]), { enqueued: 0 })
  },

  'a job whose key is live is left out': async ({ open }) => {
    const { engine } = await open()
    const other = { slot: 'elsewhere', priority: 9 }
    assert.deepEqual(
      await engine.enqueue([jobOf('a'), jobOf('b'), jobOf('a', other)]),
      { enqueued: 2 }
    )
    assert.deepEqual(await engine.enqueue([jobOf('b', other), jobOf('c')]), {
      enqueued: 1,
    })
    const ending = Promise.withResolvers<void>()
    const begun: string[] = []
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
    assert.deepEqual(begun.toSorted(), ['a', 'b', 'c'])
    assert.deepEqual(await engine.enqueue([jobOf('a')]), { enqueued: 0 })
    ending.resolve()
    await until(async () => (await liveJobs(engine)) === 0)
    assert.deepEqual(await engine.enqueue([jobOf('a')]), { enqueued: 1 })
    await until(() => begun.length === 4)
  },

  'ten thousand jobs are queued at once': async ({ open }) => {
    const { engine } = await open()
    const jobs = jobsOf(10_000, (index) => ({ slot: `host-${index % 7}/0` }))
    assert.deepEqual(await engine.enqueue(jobs), { enqueued: 10_000 })
    assert.deepEqual(await engine.enqueue(jobs), { enqueued: 0 })
    assert.equal((await engine.outstanding()).get('host-0'), 1_429)
    assert.equal((await engine.counts()).queued, 10_000)
  },

  'of several who queue the same key at the same time one does': async ({
    open,
  }) => {
    const engines = [await open(), await open(), await open()]
    const answers = await Promise.all(
      engines.map(({ engine }) => engine.enqueue(jobsOf(50)))
    )
    assert.equal(
      answers.reduce((sum, { enqueued }) => sum + enqueued, 0),
      50
    )
  },

  'a count may be as old as is said, and knows what was queued here': async ({
    open,
  }) => {
    const { engine } = await open()
    const { engine: other } = await open()
    const hour = { maxAge: 60 * 60 * 1000 }
    await engine.enqueue([jobOf('a')])
    assert.deepEqual([...(await engine.outstanding(hour))], [['host', 1]])
    await other.enqueue([jobOf('b')])
    await engine.enqueue([jobOf('c')])
    assert.deepEqual([...(await engine.outstanding(hour))], [['host', 2]])
    assert.deepEqual([...(await engine.outstanding())], [['host', 3]])
    assert.deepEqual([...(await engine.outstanding(hour))], [['host', 3]])
  },

  'bad input is refused and nothing is queued': async ({ open }) => {
    const { engine } = await open()
    const bads: Partial<NewJob>[] = [
      { priority: 0.5 },
      { priority: Infinity },
      { startAfter: NaN },
      { slot: '' },
      { key: 'a\0b' },
      { key: 'a\ud800' },
      { data: { list: ['a\0b'] } },
      { data: { 'a\ud800': 1 } },
    ]
    for (const bad of bads) {
      const jobs = [jobOf('good'), jobOf('bad', bad)]
      await assert.rejects(engine.enqueue(jobs), { name: 'TypeError' })
    }
    assert.equal(await liveJobs(engine), 0)
  },

  'jobs queued in a transaction are there once it is committed': async ({
    open,
  }) => {
    const { engine, stores } = await open()
    const { database } = stores
    await assert.rejects(
      database.transaction().execute(async (transaction) => {
        const answer = await engine.enqueue(jobsOf(3), { transaction })
        assert.deepEqual(answer, { enqueued: 3 })
        throw new Error('rolled back')
      }),
      /rolled back/
    )
    assert.equal(await liveJobs(engine), 0)
    await database.transaction().execute(async (transaction) => {
      await engine.enqueue(jobsOf(2), { transaction })
    })
    assert.equal(await liveJobs(engine), 2)
  },

  'higher priority goes first, then age': async ({ open }) => {
    const { engine } = await open()
    const slot = 'host/1'
    for (const job of [
      jobOf('old', { slot }),
      jobOf('low', { priority: -1 }),
      jobOf('new', { slot }),
      jobOf('urgent', { slot, priority: 2 }),
      jobOf('newest'),
      jobOf('high', { slot, priority: 1 }),
    ]) {
      await engine.enqueue([job])
    }
    const witness = new Witness()
    engine.work(
      { test: (job) => witness.during(job, async () => {}) },
      { concurrency: 1 }
    )
    await until(() => witness.begun.length === 6)
    assert.deepEqual(witness.begun, [
      'urgent',
      'high',
      'old',
      'new',
      'newest',
      'low',
    ])
  },

  'urgent jobs of a slot keep their order however many there is room for':
    async ({ open }) => {
      const { engine } = await open()
      const slots = ['a/0', 'b/0', 'c/0']
      const jobs = jobsOf(60, (index) => ({
        slot: slots[(index * 7) % 3] ?? '',
        priority: (index * 23) % 60,
      }))
      await engine.enqueue(jobs)
      const witness = new Witness()
      engine.work(
        { test: (job) => witness.during(job, async () => {}) },
        { concurrency: 20 }
      )
      await until(async () => (await engine.outstanding()).size === 0)
      witness.assertOnceEach(jobs)
      for (const slot of slots) {
        const urgent = jobs
          .filter((job) => job.slot === slot && job.priority > 0)
          .toSorted((one, other) => other.priority - one.priority)
          .map(({ key }) => key)
        assert.deepEqual(
          witness.begun.filter((key) => urgent.includes(key)),
          urgent
        )
      }
    },

  'a job is not begun before its time': async ({ open }) => {
    const { engine } = await open()
    const startAfter = Date.now() + 700
    await engine.enqueue([
      jobOf('later', { startAfter, priority: 5 }),
      jobOf('past', { startAfter: Date.now() - 60_000 }),
      jobOf('now'),
    ])
    const begun = new Map<string, number>()
    engine.work(
      {
        async test({ key }) {
          begun.set(key, Date.now())
        },
      },
      { concurrency: 1 }
    )
    await until(() => begun.size === 3)
    assert.equal([...begun.keys()].at(-1), 'later')
    assert.ok((begun.get('later') ?? 0) >= startAfter)
  },

  'a job that failed is tried again as the policy says': async ({ open }) => {
    const { engine } = await open()
    const asked: unknown[] = []
    const attempts: [number, number][] = []
    engine.work(
      {
        async test({ attempt }) {
          attempts.push([attempt, Date.now()])
          if (attempt < 3) throw new Error(`failure ${attempt}`)
        },
      },
      {
        concurrency: 1,
        retryPolicy: (error, attempt) => {
          asked.push([(error as Error).message, attempt])
          return { retry: 100 * attempt }
        },
      }
    )
    await engine.enqueue([jobOf('a')])
    await until(async () => (await liveJobs(engine)) === 0)
    assert.deepEqual(asked, [
      ['failure 1', 1],
      ['failure 2', 2],
    ])
    assert.deepEqual(
      attempts.map(([attempt]) => attempt),
      [1, 2, 3]
    )
    const [first = 0, second = 0, third = 0] = attempts.map(([, at]) => at)
    assert.ok(second - first >= 100)
    assert.ok(third - second >= 200)
  },

  'a job that cannot be done now is run again then, as the same attempt':
    async ({ open }) => {
      const { engine } = await open()
      const runs: [number, number][] = []
      const at = Date.now() + 600
      engine.work(
        {
          async test({ attempt }) {
            runs.push([attempt, Date.now()])
            if (runs.length === 1) {
              throw new RetryLaterError('the host is down', { after: 50 })
            }
            if (runs.length === 2) {
              throw new RetryLaterError('429 with reset time', { at })
            }
            if (runs.length === 3) throw new Error('a bug')
          },
        },
        { concurrency: 1, retryPolicy: () => ({ retry: 0 }) }
      )
      await engine.enqueue([jobOf('a')])
      await until(async () => (await liveJobs(engine)) === 0)
      assert.deepEqual(
        runs.map(([attempt]) => attempt),
        [1, 1, 1, 2]
      )
      assert.ok((runs[2]?.[1] ?? 0) >= at)
    },

  'a job that waits to be tried again keeps nobody waiting': async ({
    open,
  }) => {
    const { engine } = await open()
    const slot = 'host/1'
    await engine.enqueue([
      jobOf('down', { slot, priority: 1 }),
      jobOf('up', { slot }),
    ])
    const done: string[] = []
    engine.work(
      {
        async test({ key }) {
          if (key === 'down') throw new RetryLaterError('', { after: 60_000 })
          done.push(key)
        },
      },
      { concurrency: 1 }
    )
    await until(() => done.length === 1)
    assert.deepEqual(await engine.enqueue([jobOf('down')]), { enqueued: 0 })
    await until(async () => (await engine.counts()).queued === 0)
    await until(async () => (await engine.counts()).active === 0)
    assert.deepEqual(await engine.counts(), {
      queued: 0,
      active: 0,
      retrying: 1,
      dead: 0,
    })
  },

  'which keys are live is told': async ({ open }) => {
    const { engine } = await open()
    await engine.enqueue([jobOf('queued'), jobOf('active'), jobOf('done')])
    const ending = Promise.withResolvers<void>()
    const ended: string[] = []
    engine.work(
      {
        async test({ key }) {
          if (key === 'queued') throw new RetryLaterError('', { after: 60_000 })
          if (key === 'active') await ending.promise
          ended.push(key)
        },
      },
      { concurrency: 3 }
    )
    const all = ['queued', 'active', 'done', 'nobody', "it's"]
    const live = async () => [...(await engine.live(all))].sort()
    await until(async () => (await live()).length === 2)
    assert.deepEqual(await live(), ['active', 'queued'])
    assert.deepEqual(await engine.live([]), new Set())
    ending.resolve()
    await until(async () => (await live()).length === 1)
    assert.deepEqual(await live(), ['queued'])
    assert.deepEqual(ended.sort(), ['active', 'done'])
  },

  'a job that goes last lets younger ones pass, and comes again': async ({
    open,
  }) => {
    const { engine } = await open()
    await engine.enqueue([jobOf('old')])
    const begun: string[] = []
    let turns = 0
    engine.work(
      {
        async test({ key, attempt }) {
          begun.push(`${key} ${attempt}`)
          if (key === 'old' && turns++ === 0) {
            await engine.enqueue([jobOf('young'), jobOf('younger')])
            throw new RetryLaterError('', { after: 0 }, { isLast: true })
          }
        },
      },
      { concurrency: 1 }
    )
    await until(() => begun.length === 4)
    assert.deepEqual(begun, ['old 1', 'young 1', 'younger 1', 'old 1'])
  },

  'a job that is given up is kept with why, and its key is free': async ({
    open,
  }) => {
    const { engine } = await open()
    const dead: unknown[] = []
    const before = Date.now()
    engine.work(
      {
        async test({ attempt }) {
          throw new RangeError(`failure ${attempt} \0`)
        },
      },
      {
        concurrency: 2,
        retryPolicy: (_error, attempt) =>
          attempt < 3 ? { retry: 10 } : { dead: true },
        async onDead({ key, attempt }, error) {
          dead.push([key, attempt, (error as Error).message])
        },
      }
    )
    const data = { text: 'null \\u0000', list: [1] }
    await engine.enqueue([jobOf('a', { data })])
    await until(async () => (await engine.counts()).dead === 1)
    assert.deepEqual(dead, [['a', 3, 'failure 3 \0']])
    const [{ id, died, ...letter } = assert.fail()] =
      await engine.deadLetters(10)
    assert.ok(id.length > 0)
    assert.ok(died >= before && died <= Date.now())
    assert.deepEqual(letter, {
      kind: 'test',
      key: 'a',
      slot: 'host/a',
      data,
      attempts: 3,
      error: { name: 'RangeError', message: 'failure 3 \0' },
    })
    assert.equal(await liveJobs(engine), 0)
    assert.deepEqual(await engine.enqueue([jobOf('a')]), { enqueued: 1 })
    await until(async () => (await engine.counts()).dead === 2)
    assert.equal((await engine.deadLetters(1)).length, 1)
  },

  'dead letters come newest first': async ({ open }) => {
    const { engine } = await open()
    engine.work(
      {
        async test() {
          // eslint-disable-next-line @typescript-eslint/only-throw-error
          throw 'no error at all'
        },
      },
      { concurrency: 1, retryPolicy: () => ({ dead: true }) }
    )
    for (const [index, key] of ['a', 'b', 'c'].entries()) {
      await engine.enqueue([jobOf(key)])
      await until(async () => (await engine.counts()).dead === index + 1)
    }
    const letters = await engine.deadLetters(2)
    assert.deepEqual(
      letters.map(({ key, error }) => [key, error.message]),
      [
        ['c', 'no error at all'],
        ['b', 'no error at all'],
      ]
    )
  },

  'a job is given up even when what follows from it fails': async ({
    open,
  }) => {
    const { engine } = await open()
    engine.work(
      {
        async test() {
          throw new Error('a bug')
        },
      },
      {
        concurrency: 1,
        retryPolicy: () => ({ dead: true }),
        async onDead() {
          throw new Error('another bug')
        },
      }
    )
    await engine.enqueue([jobOf('a')])
    await until(async () => (await engine.counts()).dead === 1)
    assert.equal((await engine.deadLetters(1))[0]?.error.message, 'a bug')
  },

  'a job that never comes to its end is given up': async ({ open }) => {
    const { engine } = await open({ policy: { attempts: 2 } })
    let runs = 0
    const dead: string[] = []
    engine.work(
      {
        async test() {
          runs += 1
          throw new Error('a bug')
        },
      },
      {
        concurrency: 1,
        retryPolicy: () => ({ retry: 0 }),
        async onDead({ key }) {
          dead.push(key)
        },
      }
    )
    await engine.enqueue([jobOf('a')])
    await until(async () => (await engine.counts()).dead === 1)
    assert.equal(runs, 2)
    assert.deepEqual(dead, ['a'])
    const [letter] = await engine.deadLetters(1)
    assert.equal(letter?.error.name, 'TooManyAttemptsError')
  },

  'a job that nobody here knows waits for somebody who does': async ({
    open,
  }) => {
    const policy = { unknownKind: 50 }
    const { engine: old } = await open({ policy })
    const { engine: young } = await open({ policy })
    await old.enqueue([jobOf('a', { kind: 'toString' })])
    old.work({ async test() {} }, { concurrency: 1 })
    await until(async () => (await old.counts()).retrying === 1)
    const attempts: number[] = []
    young.work(
      {
        async toString({ attempt }: Job) {
          attempts.push(attempt)
        },
      },
      { concurrency: 1 }
    )
    await until(async () => (await old.counts()).retrying === 0)
    await until(async () => (await liveJobs(old)) === 0)
    assert.deepEqual(attempts, [1])
  },

  'jobs are counted by what they do, and by host': async ({ open }) => {
    const { engine } = await open()
    assert.deepEqual(await engine.outstanding(), new Map())
    await engine.enqueue([
      jobOf('a', { slot: 'one.example/0', priority: 1 }),
      jobOf('b', { slot: 'one.example/1' }),
      jobOf('c', { slot: 'one.example/1' }),
      jobOf('d', { slot: 'two.example:3000/0' }),
      jobOf('e', { slot: 'two.example:3000/0/more' }),
      jobOf('f', { slot: 'alone' }),
    ])
    const outstanding = new Map([
      ['one.example', 3],
      ['two.example:3000', 2],
      ['alone', 1],
    ])
    const sorted = async () => [...(await engine.outstanding())].toSorted()
    assert.deepEqual(await sorted(), [...outstanding].toSorted())
    let begun = false
    engine.work(
      {
        async test({ key }, { signal }) {
          begun = true
          assert.equal(key, 'a')
          await aborted(signal)
        },
      },
      { concurrency: 1 }
    )
    await until(() => begun)
    assert.deepEqual(await engine.counts(), {
      queued: 5,
      active: 1,
      retrying: 0,
      dead: 0,
    })
    assert.deepEqual(await sorted(), [...outstanding].toSorted())
  },
}

async function liveJobs(engine: {
  outstanding(): Promise<Map<string, number>>
}): Promise<number> {
  const outstanding = await engine.outstanding()
  return [...outstanding.values()].reduce((sum, jobs) => sum + jobs, 0)
}
