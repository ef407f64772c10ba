import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { systemTime } from '../../../../src/node/index.ts'
import { JobLostError } from '../../../../src/scheduler/errors.ts'
import type { EnginePolicy } from '../../../../src/scheduler/engine/index.ts'
import {
  aborted,
  jobOf,
  jobsOf,
  startWorkerProcess,
  until,
} from '../harness.ts'
import type { Contract, OpenOptions } from '../harness.ts'

/** What becomes of jobs whose process stalls or dies. */
export const leasesContract: Contract = {
  'a job that goes on for long is not taken over': async ({ place, open }) => {
    const { engine } = await open()
    const { engine: other } = await open()
    await engine.enqueue([jobOf('a')])
    const { lease = assert.fail() } = place.policy
    let begun = 0
    const handlers = {
      async test() {
        begun += 1
        await sleep(lease * 1.5)
      },
    }
    engine.work(handlers, { concurrency: 1 })
    other.work(handlers, { concurrency: 1 })
    await until(async () => (await engine.outstanding()).size === 0)
    assert.equal(begun, 1)
  },

  'a job of an engine that stalls is taken over, and what the engine does then is void':
    async ({ place, open }) => {
      const { engine: stalled } = await open(neverKeeping(place.policy))
      const { engine } = await open()
      await stalled.enqueue([jobOf('a', { slot: 'host/1', data: 'data' })])
      const ending = Promise.withResolvers<void>()
      let began = false
      let ended = false
      stalled.work(
        {
          async test() {
            began = true
            await ending.promise
            ended = true
          },
        },
        { concurrency: 1 }
      )
      await until(() => began)
      const taken: unknown[] = []
      const takenEnding = Promise.withResolvers<void>()
      engine.work(
        {
          async test({ key, slot, data, attempt }) {
            taken.push([key, slot, data, attempt])
            await takenEnding.promise
          },
        },
        { concurrency: 1 }
      )
      await until(() => taken.length === 1)
      assert.deepEqual(taken, [['a', 'host/1', 'data', 2]])
      ending.resolve()
      await until(() => ended)
      await stalled.drain(60_000)
      assert.deepEqual(await engine.counts(), {
        queued: 0,
        active: 1,
        retrying: 0,
        dead: 0,
      })
      takenEnding.resolve()
      await until(async () => (await engine.outstanding()).size === 0)
      assert.equal(taken.length, 1)
    },

  'a handler learns that its job was taken over': async ({ place, open }) => {
    const { lease = assert.fail() } = place.policy
    const late = { heartbeat: lease * 1.5 }
    const { engine: stalled } = await open({ policy: late })
    const { engine } = await open()
    await stalled.enqueue([jobOf('a')])
    const reason = Promise.withResolvers<unknown>()
    let began = false
    stalled.work(
      {
        async test(_job, { signal }) {
          began = true
          reason.resolve(await aborted(signal))
          throw signal.reason
        },
      },
      { concurrency: 1, retryPolicy: () => ({ dead: true }) }
    )
    await until(() => began)
    const ending = Promise.withResolvers<void>()
    engine.work({ test: () => ending.promise }, { concurrency: 1 })
    assert.ok((await reason.promise) instanceof JobLostError)
    assert.equal((await engine.counts()).active, 1)
    ending.resolve()
    await until(async () => (await engine.outstanding()).size === 0)
    assert.equal((await engine.counts()).dead, 0)
  },

  'the jobs of killed processes are taken over, and no others are done twice':
    async ({ place, open }) => {
      const { engine } = await open()
      const jobs = jobsOf(10)
      await engine.enqueue(jobs)
      const workers = [1, 2, 3].map(() => startWorkerProcess(place))
      const begun: string[] = []
      for (const { lines } of workers) {
        begun.push((await lines.next()).value, (await lines.next()).value)
      }
      for (const { child } of workers) child.kill('SIGKILL')
      const done: [string, number][] = []
      engine.work(
        {
          async test({ key, attempt }) {
            done.push([key, attempt])
          },
        },
        { concurrency: 2 }
      )
      await until(async () => (await engine.outstanding()).size === 0)
      assert.deepEqual(
        done.toSorted(),
        jobs.map(({ key }) => [key, begun.includes(key) ? 2 : 1]).toSorted()
      )
      assert.equal(new Set(begun).size, 6)
    },
}

/** Time in which the moment to keep jobs never comes. */
function neverKeeping({
  heartbeat,
}: Partial<EnginePolicy>): Pick<OpenOptions, 'time'> {
  return {
    time: {
      now: () => systemTime.now(),
      async sleep(ms, signal) {
        if (ms !== heartbeat) return systemTime.sleep(ms, signal)
        await aborted(signal ?? new AbortController().signal)
      },
    },
  }
}
