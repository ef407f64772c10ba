import assert from 'node:assert/strict'
import { ed25519 } from '@ucanto/principal'
import pino from 'pino'
import { systemTime } from '../../src/node/index.ts'
import {
  createEmbeddedEngine,
  createScheduler,
  SCHEDULER_POLICY,
} from '../../src/scheduler/index.ts'
import { openStores } from '../../src/stores/index.ts'
import { decisionOf } from '../stores/contract/samples.ts'
import { until } from '../service/harness.ts'

const MINUTE = 60_000
const policy = { ...SCHEDULER_POLICY, sweep: 20, moved: 0 }
const space = 'did:key:space'

describe('the sweep of the scheduler', () => {
  it('leaves schedules alone whose host is not asked for now', async () => {
    await using stores = await openStores({ path: ':memory:' })
    const logger = pino({ level: 'silent' })
    await using engine = createEmbeddedEngine({
      database: stores.database,
      time: systemTime,
      logger,
    })
    const due = Date.now() - MINUTE
    for (const host of ['away', 'well', 'back']) {
      for (let i = 0; i < 4; i++) {
        await stores.schedules.decide(
          space,
          `${host} ${i}`,
          () => ({ ...decisionOf(), state: 'active', host, next: due }),
          due
        )
      }
    }
    const back = Date.now() + 10 * MINUTE
    const scheduler = createScheduler({
      stores,
      engine,
      agent: await ed25519.generate(),
      connection: () => assert.fail(),
      decodeDelegations: () => [],
      findHost: () => assert.fail(),
      hosts: {
        unavailable: async () =>
          new Map([
            ['away', back],
            ['back', due],
          ]),
        unavailableUntil: () => assert.fail(),
      },
      time: systemTime,
      logger,
      policy,
    })
    scheduler.sweep()
    const claimed = await until(async () => {
      const jobs = await engine.outstanding()
      return jobs.size > 0 && jobs
    })
    await scheduler.drain(0)
    // One goes to see whether the host is back.
    assert.deepEqual([...claimed].sort(), [
      ['back', 1],
      ['well', 4],
    ])
    const schedules = await stores.schedules.list(space)
    const isDue = (next: number | undefined) =>
      next !== undefined && next <= Date.now()
    for (const { account, host, next, owner, state } of schedules) {
      assert.equal(state, 'active')
      if (host === 'well') continue
      const isClaimed = owner !== undefined
      if (host === 'away') {
        assert.ok(!isClaimed, account)
        assert.ok(next! >= back && next! <= back + policy.busy, account)
      } else if (!isClaimed) assert.ok(!isDue(next), account)
    }
  })

  it('stops a schedule that makes no job, and queues the others of its batch', async () => {
    await using stores = await openStores({ path: ':memory:' })
    const logger = pino({ level: 'silent' })
    await using engine = createEmbeddedEngine({
      database: stores.database,
      time: systemTime,
      logger,
    })
    const due = Date.now() - MINUTE
    const well = Array.from({ length: 20 }, (_, at) => `did:plc:account${at}`)
    const poison = ['did:plc:\0', `did:plc:${'a'.repeat(2_600)}`]
    for (const [at, account] of [...well, ...poison].entries()) {
      await stores.schedules.decide(
        space,
        account,
        () => ({ ...decisionOf(), state: 'active', next: due - at }),
        due
      )
    }
    let broken = 'did:plc:account7'
    const scheduler = createScheduler({
      stores,
      engine: {
        ...engine,
        // As a database does that cannot take one of the jobs.
        enqueue: async (jobs, options) => {
          const names = jobs.map(({ data }) => JSON.stringify(data))
          for (const account of [...poison, broken]) {
            const text = JSON.stringify(account).slice(1, -1)
            if (names.some((name) => name.includes(`${text}"`))) {
              throw new Error('a row that the database does not take')
            }
          }
          return engine.enqueue(jobs, options)
        },
      },
      agent: await ed25519.generate(),
      connection: () => assert.fail(),
      decodeDelegations: () => [],
      findHost: () => assert.fail(),
      hosts: {
        unavailable: async () => new Map(),
        unavailableUntil: () => assert.fail(),
      },
      time: systemTime,
      logger,
      policy: { ...policy, busy: 100 },
    })
    scheduler.sweep()
    const schedules = () => stores.schedules.list(space)
    await until(async () => {
      const claimed = (await schedules()).filter(({ owner }) => owner)
      return claimed.length === well.length - 1
    })
    const stateOf = async (account: string) =>
      (await stores.schedules.get(space, account))?.state
    for (const account of poison) {
      assert.equal(await stateOf(account), 'stopped')
      const { reason } = (await stores.schedules.get(space, account))!
      assert.equal(reason?.name, 'InvalidAccount')
    }
    // A valid one may have failed with the queue: it is tried again.
    assert.equal(await stateOf(broken), 'active')
    broken = 'none'
    await until(async () => {
      const claimed = (await schedules()).filter(({ owner }) => owner)
      return claimed.length === well.length
    })
    await scheduler.drain(0)
  })
})
