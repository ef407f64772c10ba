/**
 * What can go wrong with a store. The message of each says what to do; `cause`
 * has what was underneath.
 *
 * @packageDocumentation
 */

/** The database cannot be opened, reached or locked. */
export class StoreUnavailableError extends Error {
  override readonly name = 'StoreUnavailableError'
}

/** An event names a parent that the clock has not accepted. */
export class UnknownParentError extends Error {
  override readonly name = 'UnknownParentError'
}

/** The database was migrated by a newer version of this software. */
export class NewerSchemaError extends Error {
  override readonly name = 'NewerSchemaError'
}

/** The head of a clock would grow beyond its limit. */
export class TooManyHeadsError extends Error {
  override readonly name = 'TooManyHeadsError'
}
