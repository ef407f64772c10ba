/**
 * What can go wrong with the service itself. The message of each says what to
 * do; `cause` has what was underneath.
 *
 * @packageDocumentation
 */

/** A request body that must not be looked at any further. */
export class InvalidBodyError extends Error {
  override readonly name = 'InvalidBodyError'
}

/** The folder of the service cannot be made. */
export class DataFolderError extends Error {
  override readonly name = 'DataFolderError'
}

/** The key of the service is not the one that the database belongs to. */
export class KeyMismatchError extends Error {
  override readonly name = 'KeyMismatchError'
}

/** The service cannot listen where it is told to. */
export class ListenError extends Error {
  override readonly name = 'ListenError'
}

/** Checking the proofs of a request takes more work than is done for one. */
export class TooManySignaturesError extends Error {
  override readonly name = 'TooManySignaturesError'
}

/** Somebody invokes more often than the service allows. */
export class RateLimitedError extends Error {
  override readonly name = 'RateLimitedError'
  /** Seconds until the next invocation is welcome. */
  readonly retryAfter: number

  constructor(message: string, retryAfter: number) {
    super(message)
    this.retryAfter = retryAfter
  }
}
