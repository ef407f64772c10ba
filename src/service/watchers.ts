/** Tells those who watch a clock that it was advanced. */
export interface Watchers {
  /** Number of watchers. */
  readonly size: number
  /** Wakes all who wait for this clock. */
  notify(space: string): void
  /**
   * Watches a clock until the returned watcher is closed.
   */
  watch(space: string): Watcher
}

/** One who watches a clock. */
export interface Watcher {
  /** Resolves at the next advance, at once if there was one since the last. */
  next(): Promise<void>
  close(): void
}

export function createWatchers(): Watchers {
  const wake = new Map<string, Set<() => void>>()
  let size = 0
  return {
    get size() {
      return size
    },
    notify(space) {
      for (const each of wake.get(space) ?? []) each()
    },
    watch(space) {
      let advanced = Promise.withResolvers<void>()
      const resolve = () => advanced.resolve()
      const watchers = wake.get(space) ?? new Set()
      wake.set(space, watchers.add(resolve))
      size++
      return {
        async next() {
          await advanced.promise
          advanced = Promise.withResolvers<void>()
        },
        close() {
          if (!watchers.delete(resolve)) return
          size--
          if (watchers.size === 0) wake.delete(space)
        },
      }
    },
  }
}
