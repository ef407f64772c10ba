import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Time } from '../../../src/backup/interface.ts'
import { JobLostError } from '../../../src/scheduler/errors.ts'
import { leasesContract } from './contract/leases.ts'
import { queueContract } from './contract/queue.ts'
import { sharingContract } from './contract/sharing.ts'
import { aborted, bind, jobOf, openEngine, until } from './harness.ts'
import type { TestPlace } from './harness.ts'

async function createFile(): Promise<TestPlace> {
  const folder = await mkdtemp(join(tmpdir(), 'engine-'))
  const policy = { lease: 1_500, heartbeat: 201, poll: 20, grace: 2_000 }
  return {
    place: { path: join(folder, 'service.sqlite'), policy },
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true }),
  }
}

describe('embedded job engine', () => {
  describe('queue', () => bind(queueContract, createFile))
  describe('sharing', () => bind(sharingContract, createFile))
  describe('leases', () => bind(leasesContract, createFile))

  it('keeps to the time it is given', async () => {
    await using file = await createFile()
    const time = new HeldTime()
    await using opened = await openEngine(file.place, { time })
    const { engine } = opened
    const day = 24 * 60 * 60 * 1000
    const begun: string[] = []
    engine.work(
      {
        async test({ key, attempt }) {
          begun.push(key)
          if (attempt === 1) throw new Error('a bug')
        },
      },
      { concurrency: 1, retryPolicy: () => ({ retry: day }) }
    )
    const pass = async (ms: number) => {
      time.pass(ms)
      engine.kick()
      for (let turns = 0; turns < 50; turns += 1) {
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
    await engine.enqueue([jobOf('a', { startAfter: time.now() + day })])
    await pass(day - 1)
    assert.deepEqual(begun, [])
    await pass(1)
    await until(async () => (await engine.counts()).retrying === 1)
    await pass(day - 1)
    assert.deepEqual(begun, ['a'])
    await pass(1)
    await until(async () => (await engine.outstanding()).size === 0)
    assert.deepEqual(begun, ['a', 'a'])
  })

  it('tells a handler whose job cannot be kept in time', async () => {
    await using file = await createFile()
    await using opened = await openEngine(file.place)
    const { engine, stores } = opened
    const reason = Promise.withResolvers<unknown>()
    const begun = Promise.withResolvers<void>()
    engine.work(
      {
        async test(_job, { signal }) {
          begun.resolve()
          reason.resolve(await aborted(signal))
        },
      },
      { concurrency: 1 }
    )
    await engine.enqueue([jobOf('a')])
    await begun.promise
    await stores.database.destroy()
    assert.ok((await reason.promise) instanceof JobLostError)
    await using other = await openEngine(file.place)
    assert.equal((await other.engine.counts()).active, 1)
  })

  it('forgets dead letters after a while', async () => {
    await using file = await createFile()
    const time = new HeldTime()
    const policy = { deadLetters: 1_000 }
    await using opened = await openEngine(file.place, { time, policy })
    const { engine } = opened
    engine.work(
      {
        async test() {
          throw new Error('a bug')
        },
      },
      { concurrency: 1, retryPolicy: () => ({ dead: true }) }
    )
    const die = async (key: string) => {
      await engine.enqueue([jobOf(key)])
      await until(async () => (await engine.outstanding()).size === 0)
      const letters = await engine.deadLetters(10)
      return letters.map((letter) => letter.key)
    }
    assert.deepEqual(await die('a'), ['a'])
    time.pass(1_000)
    assert.deepEqual(await die('b'), ['b', 'a'])
    time.pass(1)
    assert.deepEqual(await die('c'), ['c', 'b'])
  })
})

/** Time that passes when it is told to. */
class HeldTime implements Time {
  #now = Date.UTC(2026, 0, 1)
  readonly #sleepers = new Set<{ until: number; wake: () => void }>()

  now(): number {
    return this.#now
  }

  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted()
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const sleeper = { until: this.#now + ms, wake: resolve }
    this.#sleepers.add(sleeper)
    signal?.addEventListener('abort', () => reject(signal.reason as Error), {
      once: true,
    })
    await promise.finally(() => this.#sleepers.delete(sleeper))
  }

  /** @param ms - milliseconds */
  pass(ms: number): void {
    this.#now += ms
    for (const { until, wake } of [...this.#sleepers]) {
      if (until <= this.#now) wake()
    }
  }
}
