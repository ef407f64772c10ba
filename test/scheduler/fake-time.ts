import { mock } from 'node:test'
import type { Time } from '../../src/backup/interface.ts'

/** Turns of the event loop in which nothing is under way any more. */
const QUIET_TURNS = 6

interface Sleeper {
  until: number
  wake: () => void
}

/**
 * Time that passes when it is told to: it goes from one sleeper to the next,
 * and not on before everybody sleeps. The dates of this process follow it, so
 * that what a delegation is valid for is the same time. Disposing of it gives
 * the dates back.
 */
export class FakeTime implements Time, Disposable {
  /** What takes time of the machine; fake time stands still meanwhile. */
  readonly #busy = new Set<object>()
  readonly #sleepers = new Set<Sleeper>()
  #now: number

  /** @param start - Unix milliseconds */
  constructor(start: number) {
    this.#now = start
    mock.timers.enable({ apis: ['Date'], now: start })
  }

  now(): number {
    return this.#now
  }

  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted()
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const sleeper = { until: this.#now + Math.max(0, ms), wake: resolve }
    const abort = () => reject(signal?.reason as Error)
    this.#sleepers.add(sleeper)
    signal?.addEventListener('abort', abort, { once: true })
    try {
      await promise
    } finally {
      this.#sleepers.delete(sleeper)
      signal?.removeEventListener('abort', abort)
    }
  }

  /** Time of a process, which can be killed: whoever sleeps never wakes up. */
  process(): { time: Time; kill: () => void } {
    const own = new Set<Sleeper>()
    let killed = false
    const sleep = async (ms: number, signal?: AbortSignal) => {
      if (killed) await new Promise(() => {})
      const before = new Set(this.#sleepers)
      const sleeping = this.sleep(ms, signal)
      const [sleeper] = this.#sleepers.difference(before)
      if (sleeper) own.add(sleeper)
      try {
        await sleeping
      } finally {
        if (sleeper) own.delete(sleeper)
      }
    }
    return {
      time: { now: () => this.now(), sleep },
      kill: () => {
        killed = true
        for (const sleeper of own) this.#sleepers.delete(sleeper)
      },
    }
  }

  /** Has fake time stand still until something has come to its end. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    const one = {}
    this.#busy.add(one)
    try {
      return await work()
    } finally {
      this.#busy.delete(one)
    }
  }

  /** @param ms - milliseconds */
  async pass(ms: number): Promise<void> {
    const end = this.#now + ms
    for (;;) {
      await this.quiet()
      const next = this.#first()
      if (!next || next.until > end) break
      this.#set(Math.max(this.#now, next.until))
      next.wake()
    }
    this.#set(end)
    await this.quiet()
  }

  /** Waits until everybody sleeps. */
  async quiet(): Promise<void> {
    for (let turns = 0; turns < QUIET_TURNS; turns += 1) {
      await new Promise((resolve) => setImmediate(resolve))
      if (this.#busy.size > 0) turns = 0
    }
  }

  [Symbol.dispose](): void {
    mock.timers.reset()
  }

  #first(): Sleeper | undefined {
    let first: Sleeper | undefined
    for (const sleeper of this.#sleepers) {
      if (!first || sleeper.until < first.until) first = sleeper
    }
    return first
  }

  #set(now: number): void {
    this.#now = now
    mock.timers.setTime(now)
  }
}
