import { setTimeout } from 'node:timers/promises'
import type { Time } from '../backup/interface.ts'

/** The time of this machine. */
export const systemTime: Time = {
  now: () => Date.now(),
  sleep: (ms, signal) =>
    setTimeout(ms, undefined, signal ? { signal } : undefined),
}
