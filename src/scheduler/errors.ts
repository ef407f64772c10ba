/**
 * What can go wrong with schedules and the jobs they become. The message of
 * each says what happened and what to do; `cause` has what was underneath.
 *
 * @packageDocumentation
 */

/** The times of a schedule cannot be kept. */
export class InvalidRhythmError extends Error {
  override readonly name = 'InvalidRhythmError'
}

/** When to try a job again: in so many milliseconds, or at a Unix time in milliseconds. */
export type Later = { after: number } | { at: number }

/**
 * Thrown by a handler that cannot do its job now, through no fault of the
 * job's: it is run again then, and this run does not count as an attempt.
 */
export class RetryLaterError extends Error {
  override readonly name = 'RetryLaterError'
  readonly later: Later
  /** Whether the job goes behind all others from now on. */
  readonly isLast: boolean

  constructor(
    message: string,
    later: Later,
    options?: ErrorOptions & { isLast?: boolean }
  ) {
    super(message, options)
    this.later = later
    this.isLast = options?.isLast ?? false
  }
}

/** A job was begun too often without coming to an end. */
export class TooManyAttemptsError extends Error {
  override readonly name = 'TooManyAttemptsError'
}

/** A job belongs to another process now: whatever comes of it here is void. */
export class JobLostError extends Error {
  override readonly name = 'JobLostError'
}

/** The engine is going down; the job goes on later, here or elsewhere. */
export class EngineStoppingError extends Error {
  override readonly name = 'EngineStoppingError'
}
