import assert from 'node:assert/strict'
import { mock } from 'node:test'
import {
  createHostBudget,
  type HostBudget,
} from '../../src/service/host-budget.ts'

const host = 'pds.example'

describe('budget of a host', () => {
  beforeEach(() =>
    mock.timers.enable({ apis: ['Date'], now: 1_742_140_800_000 })
  )
  afterEach(() => mock.timers.reset())

  /** Makes as many requests as there are now. */
  const spend = async (budget: HostBudget, of = host) => {
    for (let made = 0; ; made++) {
      const wait = await budget.take(of)
      if (wait > 0) return { made, wait }
    }
  }

  it('has so many requests in a time, and then again', async () => {
    const budget = createHostBudget({ rate: 480, period: 15 })
    assert.deepEqual(await spend(budget), { made: 120, wait: 15_000 })
    mock.timers.tick(14_999)
    assert.deepEqual(await spend(budget), { made: 0, wait: 1 })
    mock.timers.tick(1)
    assert.deepEqual(await spend(budget), { made: 120, wait: 15_000 })
  })

  it('is one for each host', async () => {
    const budget = createHostBudget({ rate: 480, period: 15 })
    await spend(budget)
    assert.equal((await spend(budget, 'b.example')).made, 120)
  })

  it('stays below what hosts permit, in any five minutes', async () => {
    const budget = createHostBudget({ rate: 480, period: 15 })
    const requests: number[] = []
    // As fast as possible, and with a break when it hurts most.
    for (let second = 0; second < 1_200; second++) {
      const isBreak = second > 400 && second < 414
      if (!isBreak) {
        const { made } = await spend(budget)
        requests.push(...Array<number>(made).fill(second))
      }
      mock.timers.tick(1_000)
    }
    const most = Math.max(
      ...requests.map(
        (from) => requests.filter((at) => at >= from && at < from + 300).length
      )
    )
    assert.ok(most <= 2_520, `${most} requests`)
    assert.ok(most >= 2_400, `${most} requests`)
  })

  it('does not give out later what was not used in its time', async () => {
    const budget = createHostBudget({ rate: 480, period: 15 })
    assert.equal(await budget.take(host), 0)
    mock.timers.tick(15_000)
    assert.equal((await spend(budget)).made, 120)
  })

  it('shares what there is among many at the same time', async () => {
    const budget = createHostBudget({ rate: 480, period: 15 })
    const waits = await Promise.all(
      Array.from({ length: 500 }, () => budget.take(host))
    )
    assert.equal(waits.filter((wait) => wait === 0).length, 120)
  })

  it('may be very small', async () => {
    for (const rate of [1, 2, 7, 59, 60]) {
      const budget = createHostBudget({ rate, period: 15 })
      let made = 0
      for (let second = 0; second < 60; second++) {
        made += (await spend(budget)).made
        mock.timers.tick(1_000)
      }
      assert.equal(made, rate)
    }
  })

  it('may be left open', async () => {
    const budget = createHostBudget({ rate: 0, period: 15 })
    for (let i = 0; i < 5_000; i++) assert.equal(await budget.take(host), 0)
    assert.equal(budget.remaining(host), undefined)
  })

  it('tells what is left, and where nothing is', async () => {
    const budget = createHostBudget({ rate: 480, period: 15 })
    assert.equal(budget.remaining(host), 120)
    await budget.take(host)
    assert.equal(budget.remaining(host), 119)
    assert.deepEqual(budget.spent(), new Map())
    await spend(budget)
    assert.equal(budget.remaining(host), 0)
    assert.deepEqual(budget.spent(), new Map([[host, Date.now() + 15_000]]))
    mock.timers.tick(15_000)
    assert.equal(budget.remaining(host), 120)
    assert.deepEqual(budget.spent(), new Map())
  })
})
