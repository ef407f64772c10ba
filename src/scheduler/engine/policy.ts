import type { EnginePolicy, RetryPolicy } from './interface.ts'

const DAY = 24 * 60 * 60 * 1000

export const ENGINE_POLICY: EnginePolicy = {
  lease: 15_000,
  heartbeat: 4_000,
  poll: 500,
  attempts: 20,
  grace: 5_000,
  unknownKind: 60_000,
  deadLetters: 30 * DAY,
}

export interface BackoffOptions {
  /** Wait after the first attempt, in milliseconds; it doubles with each. */
  min: number
  /** The longest wait, in milliseconds. */
  max: number
  /** The most attempts. */
  attempts: number
  /** At least 0, below 1. */
  random?: () => number
}

/**
 * Waits longer after each attempt, and not as long as others that failed at
 * the same time: between half and the whole of the wait.
 */
export function retryWithBackoff({
  min,
  max,
  attempts,
  random = Math.random,
}: BackoffOptions): RetryPolicy {
  return (_error, attempt) => {
    if (attempt >= attempts) return { dead: true }
    const wait = Math.min(max, min * 2 ** (attempt - 1))
    return { retry: Math.round((wait * (1 + random())) / 2) }
  }
}
