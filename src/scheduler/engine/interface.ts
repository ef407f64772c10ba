/**
 * Jobs, worked off by one process or by many. There are two engines, on SQLite
 * and on PostgreSQL; both do what is written here.
 *
 * @packageDocumentation
 */
import type { Kysely } from 'kysely'
import type { Logger } from 'pino'
import type { Time } from '../../backup/interface.ts'
import type { Tables } from '../../stores/index.ts'

export type JSONValue =
  null | boolean | number | string | JSONValue[] | { [name: string]: JSONValue }

/** Something to be done once. */
export interface NewJob {
  /** Which handler does it. */
  kind: string
  /** At most one job with this key is live, which is queued or active. */
  key: string
  /**
   * At most one job with this slot is active. What is before the first `/` is
   * the host that {@link JobEngine.outstanding} counts it for.
   */
  slot: string
  /**
   * Higher goes first, an integer; among equals the older one does. On
   * PostgreSQL those that are 0 or less may overtake each other a little, and
   * take a slot that becomes free at the moment before one above 0 does.
   */
  priority: number
  /** What the handler needs to know. */
  data: JSONValue
  /** Unix milliseconds before which it is not begun; now, if left out. */
  startAfter?: number
}

/** A job that a handler is given. */
export interface Job extends Omit<NewJob, 'startAfter'> {
  id: string
  /** 1 at first. Runs that ended with `RetryLaterError` do not count. */
  attempt: number
}

/** A job that was given up. */
export interface DeadLetter {
  id: string
  kind: string
  key: string
  slot: string
  data: JSONValue
  attempts: number
  /** Why. */
  error: { name: string; message: string }
  /** Unix milliseconds. */
  died: number
}

/**
 * Does a job. Throws `RetryLaterError` to be called again later; any other
 * error is up to the {@link RetryPolicy}.
 *
 * @param context.signal - aborts when the job belongs to somebody else now, or
 *   the engine is going down; the handler then comes to its end at once
 */
export type JobHandler = (
  job: Job,
  context: { signal: AbortSignal }
) => Promise<void>

/** What to do about an attempt that failed: try again in milliseconds, or give up. */
export type RetryDecision = { retry: number } | { dead: true }

export type RetryPolicy = (error: unknown, attempt: number) => RetryDecision

/** How many jobs there are. */
export interface JobCounts {
  /** Never begun. */
  queued: number
  active: number
  /** Begun before, and waiting again. */
  retrying: number
  /** Given up. */
  dead: number
}

export interface WorkOptions {
  /** The most jobs that this engine does at the same time. */
  concurrency: number
  /** {@link retryWithBackoff}, if left out. */
  retryPolicy?: RetryPolicy
  /**
   * Called before a job is given up, and again when the process dies in
   * between. When it throws, the job is given up all the same.
   */
  onDead?: (job: Job, error: unknown) => Promise<void>
}

/** Keeps jobs, and works them off. Every method may throw `StoreUnavailableError`. */
export interface JobEngine extends AsyncDisposable {
  /**
   * Queues jobs in one statement, all or none. Those whose key is live already
   * are left out.
   *
   * @param options.transaction - of the database the engine is on: the jobs
   *   are there once it is committed. On SQLite, a transaction that is open
   *   keeps everybody waiting who does not take part in it
   * @returns how many were queued
   */
  enqueue(
    jobs: NewJob[],
    options?: { transaction?: Kysely<Tables> }
  ): Promise<{ enqueued: number }>

  /**
   * Begins to take jobs. Of the same engine, once.
   *
   * @param handlers - by kind. Jobs of other kinds wait for a process that
   *   knows what to do with them
   */
  work(handlers: Record<string, JobHandler>, options: WorkOptions): void

  /** Tells that there may be something to do, so that nobody waits for the next look. */
  kick(): void

  /**
   * @param options.maxAge - milliseconds. Those that came to their end since
   *   may be counted still, and those that others queued may not be
   * @returns how many jobs are live, by host
   */
  outstanding(options?: { maxAge?: number }): Promise<Map<string, number>>

  /** @returns those of the keys whose job is live */
  live(keys: string[]): Promise<Set<string>>

  counts(): Promise<JobCounts>

  /** @returns jobs that were given up, the newest first */
  deadLetters(limit: number): Promise<DeadLetter[]>

  /**
   * Takes no more jobs and lets those under way finish; aborts what is not
   * done in time and gives it back to the queue, where it keeps its place.
   * A handler that does not heed its signal keeps its job until the lease is
   * over.
   *
   * @param timeout - milliseconds
   */
  drain(timeout: number): Promise<void>
}

/** How jobs are shared out among processes. Times in milliseconds. */
export interface EnginePolicy {
  /** A job is taken over that was not heard of for so long. */
  lease: number
  /** How often a job under way is kept. */
  heartbeat: number
  /** How often to look for jobs, at the latest. */
  poll: number
  /** A job that was begun so often without coming to an end is given up. */
  attempts: number
  /** How long a handler may take to heed its signal. */
  grace: number
  /** How long a job of a kind that nobody here knows waits. */
  unknownKind: number
  /** How long dead letters are kept. */
  deadLetters: number
}

export interface EngineOptions {
  /** The database of the service. */
  database: Kysely<Tables>
  time: Time
  logger: Logger
  /** {@link ENGINE_POLICY} where left out. */
  policy?: Partial<EnginePolicy>
}
