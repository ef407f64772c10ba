import type { Time } from '../backup/index.ts'

/** Times in milliseconds. */
export interface FairQueueOptions {
  /** Tasks under way at the same time. */
  concurrency: number
  /** Tasks of one key that may wait. */
  perKey: number
  /** Tasks of all keys together that may wait. */
  waiting: number
  /** A place stays taken for so long after its task: bounds the rate. */
  gap: number
  time: Time
}

/** Does tasks for callers that share its places. */
export interface FairQueue {
  /**
   * Waits for a place, and does the task. Keys with waiting tasks take turns:
   * of two keys, neither gets two places while the other waits for one.
   *
   * @throws {@link QueueFullError} at once when too many tasks wait
   */
  run<T>(key: string, task: () => Promise<T>): Promise<T>
}

/** Too many tasks wait already, of the key or of all keys. */
export class QueueFullError extends Error {
  override readonly name = 'QueueFullError'
}

export function createFairQueue({
  concurrency,
  perKey,
  waiting: maxWaiting,
  gap,
  time,
}: FairQueueOptions): FairQueue {
  /** Tasks that wait, by key; the key whose turn is next comes first. */
  const queues = new Map<string, (() => void)[]>()
  let waiting = 0
  let active = 0

  const beginNext = () => {
    for (const [key, queue] of queues) {
      if (active >= concurrency) return
      const begin = queue.shift()
      // Inserted again, the key comes last.
      queues.delete(key)
      if (queue.length > 0) queues.set(key, queue)
      waiting--
      active++
      begin?.()
    }
  }

  return {
    async run(key, task) {
      const queue = queues.get(key) ?? []
      if (queue.length >= perKey || waiting >= maxWaiting) {
        throw new QueueFullError('too many tasks wait')
      }
      const turn = Promise.withResolvers<void>()
      queue.push(turn.resolve)
      queues.set(key, queue)
      waiting++
      beginNext()
      await turn.promise
      try {
        return await task()
      } finally {
        void time
          .sleep(gap)
          .catch(() => {})
          .then(() => {
            active--
            beginNext()
          })
      }
    },
  }
}
