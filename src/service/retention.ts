import type { Logger } from 'pino'
import type { Time } from '../backup/index.ts'
import type { EndOfRun, RunStore } from '../stores/index.ts'

/** How runs are forgotten. Times in milliseconds. */
export interface RetentionPolicy {
  /** How often to look for runs that are old. */
  interval: number
  /** Runs that are looked at in one go. */
  batch: number
  /** How long the database is left alone between two of these. */
  pause: number
}

export const RETENTION_POLICY: RetentionPolicy = {
  interval: 60 * 60_000,
  batch: 1_000,
  pause: 100,
}

export interface RetentionOptions {
  runs: Pick<RunStore, 'prune'>
  /** Milliseconds for which runs are kept after their end. */
  keep: number
  time: Time
  logger: Logger
  policy?: RetentionPolicy
}

/**
 * Forgets old runs, a few at a time, until it is stopped. Several processes may
 * do so at the same time: what one has removed the others do not find.
 *
 * @returns stops it, and waits for what is under way
 */
export function startRetention({
  runs,
  keep,
  time,
  logger,
  policy = RETENTION_POLICY,
}: RetentionOptions): () => Promise<void> {
  const stopping = new AbortController()
  const { signal } = stopping

  const pruneAll = async (): Promise<number> => {
    const before = time.now() - keep
    let count = 0
    let after: EndOfRun | undefined
    do {
      const { removed, next } = await runs.prune({
        before,
        limit: policy.batch,
        after,
      })
      count += removed
      // Those that stay are passed over, not looked at again and again.
      after = next
      if (after) await time.sleep(policy.pause, signal).catch(() => {})
    } while (after && !signal.aborted)
    return count
  }

  const pruneForever = async () => {
    while (!signal.aborted) {
      try {
        const removed = await pruneAll()
        if (removed > 0) logger.info({ runs: removed }, 'old runs were removed')
      } catch (error) {
        logger.error({ err: error }, 'old runs could not be removed')
      }
      await time.sleep(policy.interval, signal).catch(() => {})
    }
  }
  const pruning = pruneForever()
  return async () => {
    stopping.abort()
    await pruning
  }
}
