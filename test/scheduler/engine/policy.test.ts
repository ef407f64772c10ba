import assert from 'node:assert/strict'
import { retryWithBackoff } from '../../../src/scheduler/engine/index.ts'

describe('retryWithBackoff', () => {
  const options = { min: 1_000, max: 10_000, attempts: 7 }

  it('doubles the wait up to the longest, and gives up in the end', () => {
    const policy = retryWithBackoff({ ...options, random: () => 1 })
    const decisions = [1, 2, 3, 4, 5, 6, 7, 8].map((attempt) =>
      policy(new Error('failure'), attempt)
    )
    assert.deepEqual(decisions, [
      { retry: 1_000 },
      { retry: 2_000 },
      { retry: 4_000 },
      { retry: 8_000 },
      { retry: 10_000 },
      { retry: 10_000 },
      { dead: true },
      { dead: true },
    ])
  })

  it('waits at least half as long', () => {
    const policy = retryWithBackoff({ ...options, random: () => 0 })
    assert.deepEqual(policy(new Error('failure'), 3), { retry: 2_000 })
  })

  it('spreads those that failed together', () => {
    const policy = retryWithBackoff(options)
    const waits = Array.from({ length: 50 }, () =>
      policy(new Error('failure'), 5)
    )
    assert.ok(new Set(waits.map((wait) => JSON.stringify(wait))).size > 10)
  })
})
