import { setImmediate as turn } from 'node:timers/promises'
import PQueue from 'p-queue'
import {
  EngineStoppingError,
  JobLostError,
  RetryLaterError,
  TooManyAttemptsError,
} from '../errors.ts'
import type {
  EngineOptions,
  EnginePolicy,
  JobEngine,
  JobHandler,
  NewJob,
  RetryPolicy,
  WorkOptions,
} from './interface.ts'
import { retryWithBackoff } from './policy.ts'
import type { ClaimedJob, JobQueue, Unfinished } from './queue.ts'

/** How many jobs are told to be done at once. */
const DONE_BATCH = 100

const defaultRetryPolicy = retryWithBackoff({
  min: 10_000,
  max: 60 * 60 * 1000,
  attempts: 10,
})

interface Running extends ClaimedJob {
  stop: AbortController
  /** Unix milliseconds at which it was certainly still ours. */
  kept: number
}

/** How a claim ends. */
type Ending = { done: true } | Unfinished

interface Done {
  running: Running
  /** Answers whether the claim was still ours to end. */
  resolve: (held: boolean) => void
}

/** Makes an engine of a queue: the part that is the same on both databases. */
export function createEngine(
  queue: JobQueue,
  { time, logger }: EngineOptions,
  policy: EnginePolicy
): JobEngine {
  const stopping = new AbortController()
  const closed = new AbortController()
  const running = new Set<Running>()
  const done: Done[] = []
  let flushing: Promise<void> | undefined
  let worker: Worker | undefined
  /** Live jobs as they were counted last, with those queued here since. */
  let counted = { at: -Infinity, byHost: new Map<string, number>() }

  interface Worker {
    tasks: PQueue
    kick(): void
    /** Settles once no job is claimed any more. */
    stopped(): Promise<void>
  }

  function startWorker(
    handlers: Record<string, JobHandler>,
    options: WorkOptions
  ): Worker {
    const tasks = new PQueue({ concurrency: options.concurrency })
    let claiming: Promise<void> | undefined
    let again = false

    const claimAll = async () => {
      do {
        again = false
        // Jobs that end together leave room together.
        await turn()
        for (;;) {
          const free = options.concurrency - tasks.pending - tasks.size
          if (free <= 0 || stopping.signal.aborted) break
          const kept = time.now()
          const claimed = await queue.claim(free)
          if (claimed.length === 0) break
          for (const job of claimed) begin(job, kept)
        }
      } while (again)
    }
    const begin = (claimed: ClaimedJob, kept: number) => {
      const one = { ...claimed, stop: new AbortController(), kept }
      if (stopping.signal.aborted) stopRunning(one)
      running.add(one)
      void tasks
        .add(() => execute(one, handlers, options))
        .catch((error: unknown) => {
          // Nobody takes it before its lease is over: no haste.
          logger.error(
            { err: error, job: one.job.id },
            'the job could not be ended'
          )
        })
        .finally(() => {
          running.delete(one)
          kick()
        })
    }
    const kick = () => {
      if (stopping.signal.aborted) return
      again = true
      claiming ??= claimAll()
        .catch((error: unknown) => {
          again = false
          logger.error({ err: error }, 'claiming a job failed')
        })
        .finally(() => {
          claiming = undefined
          // Asked for after the last look.
          if (again) kick()
        })
    }
    const poll = async () => {
      while (!stopping.signal.aborted) {
        kick()
        // Processes that were started together do not look together for ever.
        const wait = policy.poll * (0.75 + Math.random() / 2)
        await time.sleep(wait, stopping.signal).catch(() => {})
      }
    }
    const polling = poll()
    void keepAll()
    return {
      tasks,
      kick,
      async stopped() {
        await polling
        await claiming
      },
    }
  }

  async function execute(
    one: Running,
    handlers: Record<string, JobHandler>,
    options: WorkOptions
  ): Promise<void> {
    const { job } = one
    const log = logger.child({
      job: job.id,
      kind: job.kind,
      key: job.key,
      slot: job.slot,
      attempt: job.attempt,
    })
    const ending = await perform(one, handlers, options).catch(
      (error: unknown) => endFailed(error, one, options)
    )
    if (ending === undefined || !(await end(one, ending))) {
      log.warn('the job was lost to another process')
    } else if ('dead' in ending) {
      log.error({ failure: ending.dead }, 'the job was given up')
    } else if ('retry' in ending) {
      log.info({ wait: ending.retry }, 'the job waits for its next run')
    }
  }

  async function perform(
    one: Running,
    handlers: Record<string, JobHandler>,
    options: WorkOptions
  ): Promise<Ending> {
    const { job, stop } = one
    stop.signal.throwIfAborted()
    if (job.attempt > policy.attempts) {
      return giveUp(
        new TooManyAttemptsError(
          `the job was begun ${policy.attempts} times and never came to its end; the log of who runs the service may have the reason`
        ),
        one,
        options
      )
    }
    const handler = Object.hasOwn(handlers, job.kind)
      ? handlers[job.kind]
      : undefined
    if (!handler) {
      logger.warn(
        { job: job.id, kind: job.kind },
        'no handler is known for the job'
      )
      return { retry: policy.unknownKind, excused: true }
    }
    await handler(job, { signal: stop.signal })
    return { done: true }
  }

  /** @returns nothing when the job is somebody else's now */
  async function endFailed(
    error: unknown,
    one: Running,
    options: WorkOptions
  ): Promise<Ending | undefined> {
    const { job, stop } = one
    if (isLost(one)) return undefined
    if (stop.signal.aborted) return { retry: 0, excused: true }
    if (error instanceof RetryLaterError) {
      const { later } = error
      const wait = 'after' in later ? later.after : later.at - time.now()
      const { isLast } = error
      return { retry: Math.max(0, wait), excused: true, isLast }
    }
    const decide: RetryPolicy = options.retryPolicy ?? defaultRetryPolicy
    const decision = decide(error, job.attempt)
    if ('dead' in decision) return giveUp(error, one, options)
    logger.warn({ err: error, job: job.id, key: job.key }, 'the job failed')
    return { retry: decision.retry, excused: false }
  }

  async function giveUp(
    error: unknown,
    { job }: Running,
    options: WorkOptions
  ): Promise<Ending> {
    try {
      await options.onDead?.(job, error)
    } catch (cause) {
      logger.error(
        { err: cause, job: job.id, key: job.key },
        'what follows from giving the job up failed'
      )
    }
    const { name, message } =
      error instanceof Error ? error : new Error(String(error))
    return { dead: { name, message } }
  }

  /** @returns whether the claim was still ours to end */
  async function end(one: Running, ending: Ending): Promise<boolean> {
    if ('done' in ending) {
      const { promise, resolve } = Promise.withResolvers<boolean>()
      done.push({ running: one, resolve })
      startFlush()
      return promise
    }
    for (;;) {
      try {
        return await queue.settle(one, ending)
      } catch (error) {
        if (!(await mayTryAgain(error)) || isLost(one)) return false
      }
    }
  }

  function startFlush(): void {
    flushing ??= flush().finally(() => {
      flushing = undefined
      // Asked for after the last look.
      if (done.length > 0) startFlush()
    })
  }

  async function flush(): Promise<void> {
    // Jobs that end together are told of together.
    await turn()
    while (done.length > 0) {
      const batch = done.splice(0, DONE_BATCH)
      try {
        const ended = await queue.complete(
          batch.map(({ running }) => running.claim)
        )
        for (const { running, resolve } of batch) {
          resolve(ended.has(running.claim.id))
        }
      } catch (error) {
        const again = await mayTryAgain(error)
        for (const one of batch) {
          if (again && !isLost(one.running)) done.push(one)
          else one.resolve(false)
        }
      }
    }
  }

  /** Waits a little; there is nothing to wait for once the engine is closed. */
  async function mayTryAgain(error: unknown): Promise<boolean> {
    logger.warn({ err: error }, 'the end of a job could not be kept')
    await time.sleep(policy.poll, closed.signal).catch(() => {})
    return !closed.signal.aborted
  }

  /** Tells the queue, while jobs are under way, that they are. */
  async function keepAll(): Promise<void> {
    while (!closed.signal.aborted) {
      await time.sleep(policy.heartbeat, closed.signal).catch(() => {})
      const held = [...running].filter((one) => !isLost(one))
      if (held.length === 0 || closed.signal.aborted) continue
      const now = time.now()
      try {
        const kept = await queue.keep(held.map(({ claim }) => claim))
        for (const one of held) {
          if (kept.has(one.claim.id)) one.kept = now
          // It may have come to its end since.
          else if (running.has(one)) lose(one, 'another process has it')
        }
      } catch (error) {
        logger.warn({ err: error }, 'jobs could not be kept; trying again')
        // The next look may come too late: a lease that is over is taken.
        const deadline = time.now() - policy.lease + policy.heartbeat
        for (const one of held) {
          if (one.kept <= deadline) lose(one, 'it could not be kept in time')
        }
      }
    }
  }

  /** Waits for a promise, but not for ever. */
  async function settled(
    promise: Promise<unknown>,
    timeout: number
  ): Promise<void> {
    const waited = new AbortController()
    await Promise.race([
      promise,
      time.sleep(timeout, waited.signal).catch(() => {}),
    ])
    waited.abort()
  }

  async function drain(timeout: number): Promise<void> {
    stopping.abort()
    if (!worker) return
    await worker.stopped()
    await settled(worker.tasks.onIdle(), timeout)
    for (const one of running) stopRunning(one)
    await settled(worker.tasks.onIdle(), policy.grace)
  }

  return {
    async enqueue(jobs, { transaction } = {}) {
      for (const job of jobs) check(job)
      if (jobs.length === 0) return { enqueued: 0 }
      const enqueued = await queue.insert(jobs, transaction)
      const { byHost } = counted
      for (const { slot } of jobs) {
        const [host = ''] = slot.split('/', 1)
        byHost.set(host, (byHost.get(host) ?? 0) + 1)
      }
      if (!transaction) worker?.kick()
      return { enqueued }
    },

    work(handlers, options) {
      if (worker) throw new TypeError('the engine is at work already')
      worker = startWorker(handlers, options)
    },

    kick: () => worker?.kick(),

    async outstanding({ maxAge = 0 } = {}) {
      const now = time.now()
      if (maxAge === 0 || now - counted.at >= maxAge) {
        counted = { at: now, byHost: await queue.outstanding() }
      }
      return new Map(counted.byHost)
    },

    live: async (keys) => (keys.length === 0 ? new Set() : queue.live(keys)),
    counts: () => queue.counts(),
    deadLetters: (limit) => queue.deadLetters(limit),
    drain,

    async [Symbol.asyncDispose]() {
      await drain(0)
      closed.abort()
      await flushing
      await queue.close()
    },
  }
}

function stopRunning({ stop }: Running): void {
  stop.abort(new EngineStoppingError('the service is going down'))
}

function lose({ stop }: Running, why: string): void {
  stop.abort(new JobLostError(why))
}

function isLost({ stop }: Running): boolean {
  return stop.signal.reason instanceof JobLostError
}

/** PostgreSQL refuses some text that SQLite takes; here nobody does. */
function check({ kind, key, slot, priority, data, startAfter = 0 }: NewJob) {
  if (!Number.isInteger(priority) || Math.abs(priority) > 1_000_000) {
    throw new TypeError(`the priority of a job is a whole number: ${priority}`)
  }
  if (!Number.isFinite(startAfter)) {
    throw new TypeError(`a job starts after Unix milliseconds: ${startAfter}`)
  }
  if (![kind, key, slot].every((text) => text !== '' && isPlain(text))) {
    throw new TypeError(
      'kind, key and slot of a job are text, not empty, without zeros and halves of characters'
    )
  }
  JSON.stringify(data, (name, value: unknown) => {
    if (isPlain(name) && (typeof value !== 'string' || isPlain(value))) {
      return value
    }
    throw new TypeError(
      'the data of a job has text with zeros or halves of characters'
    )
  })
}

function isPlain(text: string): boolean {
  return !text.includes('\0') && text.isWellFormed()
}
