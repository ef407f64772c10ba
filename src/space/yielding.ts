/** How long tasks work before they yield, in milliseconds. */
const MAX_STRETCH_MS = 10

/** When the event loop last went round, as far as is known. */
let roundBegan = performance.now()

/** Tasks that wait for their turn, the longest first. */
const waiting: (() => void)[] = []

/**
 * Whether a long loop should let other tasks run. Loops over data that others
 * wrote ask before each step:
 *
 * ```js
 * if (shouldYield()) await yieldToOthers()
 * ```
 *
 * It counts time and not steps, because others decide what a step costs. All
 * loops share one clock: a hundred of them, run by turns, hold the event loop
 * no longer than one does. A loop that starts after an idle time yields once
 * too often, which costs a tenth of a millisecond.
 *
 * An `await` alone does not yield: a promise that is settled already goes on in
 * a microtask, before any timer or request.
 */
export function shouldYield(): boolean {
  return performance.now() - roundBegan >= MAX_STRETCH_MS
}

/**
 * Waits until the event loop has gone round: timers, requests and other tasks
 * get their turn. In each round one of the loops that wait here goes on.
 */
export function yieldToOthers(): Promise<void> {
  return new Promise((resolve) => {
    waiting.push(resolve)
    if (waiting.length === 1) resumeSoon()
  })
}

/**
 * Resumes the first loop of those that wait, in a task of its own. A channel
 * serves once: messages of one that stays open may all be handled in the same
 * round. A timer would do, but browsers slow down the timers of tabs in the
 * background to one a second.
 */
function resumeSoon(): void {
  const { port1, port2 } = new MessageChannel()
  port1.onmessage = () => {
    port1.close()
    roundBegan = performance.now()
    waiting.shift()?.()
    if (waiting.length > 0) resumeSoon()
  }
  port2.postMessage(undefined)
}
