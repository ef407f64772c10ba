import assert from 'node:assert/strict'
import { shouldYield, yieldToOthers } from '../../src/space/index.ts'

/** Works for a while without an await. */
function work(milliseconds: number): void {
  const end = performance.now() + milliseconds
  while (performance.now() < end);
}

/** The longest that timers had to wait while something ran, in milliseconds. */
async function longestHold(action: () => Promise<unknown>): Promise<number> {
  let longest = 0
  let last = performance.now()
  const look = () => {
    const now = performance.now()
    longest = Math.max(longest, now - last)
    last = now
  }
  const timer = setInterval(look, 1)
  await action()
  look()
  clearInterval(timer)
  return longest
}

describe('yielding', () => {
  it('asks a loop to yield by time, and not again right after it did', async () => {
    await yieldToOthers()
    assert.equal(shouldYield(), false)
    work(12)
    assert.equal(shouldYield(), true)
    await yieldToOthers()
    assert.equal(shouldYield(), false)
  })

  it('lets timers fire that are due before the loop goes on', async () => {
    let fired = false
    setTimeout(() => (fired = true), 1)
    work(5)
    await Promise.resolve()
    assert.equal(fired, false, 'a microtask does not yield')
    await yieldToOthers()
    await yieldToOthers()
    assert.equal(fired, true)
  })

  it('resumes one loop in each round, the longest waiting first', async () => {
    const resumed: number[] = []
    await Promise.all(
      [1, 2, 3].map(async (loop) => {
        await yieldToOthers()
        resumed.push(loop)
      })
    )
    assert.deepEqual(resumed, [1, 2, 3])
  })

  it('keeps the event loop free while many loops run at once', async () => {
    const loops = Array.from({ length: 50 }, async () => {
      for (let step = 0; step < 8; step++) {
        work(1)
        if (shouldYield()) await yieldToOthers()
      }
    })
    const began = performance.now()
    const longest = await longestHold(() => Promise.all(loops))
    const all = performance.now() - began
    // Other processes may hold the machine: a share says more than a time.
    assert(longest < all / 4, `a timer waited for ${longest} of ${all} ms`)
  })
})
