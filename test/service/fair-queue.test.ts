import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { systemTime } from '../../src/node/index.ts'
import {
  createFairQueue,
  QueueFullError,
  type FairQueueOptions,
} from '../../src/service/fair-queue.ts'

describe('fair queue', () => {
  const create = (options: Partial<FairQueueOptions> = {}) =>
    createFairQueue({
      concurrency: 1,
      perKey: 100,
      waiting: 1_000,
      gap: 0,
      time: systemTime,
      ...options,
    })

  it('lets keys take turns, however many tasks one of them has', async () => {
    const queue = create()
    const order: string[] = []
    const add = (key: string) => queue.run(key, async () => order.push(key))
    const mallory = Array.from({ length: 50 }, () => add('mallory'))
    await sleep(1)
    const served = order.length
    await Promise.all([add('alice'), add('bob')])
    assert.ok(order.length - served <= 4, order.join())
    await Promise.all(mallory)
    assert.equal(order.length, 52)
  })

  it('does no more tasks at the same time than it has places', async () => {
    const queue = create({ concurrency: 3 })
    let active = 0
    let most = 0
    await Promise.all(
      Array.from({ length: 20 }, (_, at) =>
        queue.run(`${at}`, async () => {
          most = Math.max(most, ++active)
          await sleep(2)
          active--
        })
      )
    )
    assert.equal(most, 3)
  })

  it('refuses what exceeds the bound of a key, or of all keys', async () => {
    const queue = create({ perKey: 2, waiting: 3 })
    const door = Promise.withResolvers<void>()
    const tasks = ['a', 'a', 'a', 'b'].map((key) =>
      queue.run(key, () => door.promise)
    )
    await assert.rejects(
      queue.run('a', () => door.promise),
      QueueFullError
    )
    await assert.rejects(
      queue.run('c', () => door.promise),
      QueueFullError
    )
    door.resolve()
    await Promise.all(tasks)
    await queue.run('a', async () => {})
  })

  it('frees the place of a task that failed', async () => {
    const queue = create()
    const failing = queue.run('a', async () => {
      throw new TypeError('no')
    })
    await assert.rejects(failing, TypeError)
    assert.equal(await queue.run('a', async () => 'yes'), 'yes')
  })

  it('keeps a place taken for the gap after its task', async () => {
    const queue = create({ gap: 40 })
    const began = performance.now()
    for (let count = 0; count < 3; count++) await queue.run('a', async () => {})
    assert.ok(performance.now() - began >= 75)
  })
})
