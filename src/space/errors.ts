/**
 * What can go wrong with the state in the Space. Each message names the block
 * and what is wrong with it.
 *
 * @packageDocumentation
 */

/**
 * A block, or a value that was to become one, is not what the schema says.
 * Nothing that would not decode is ever encoded.
 */
export class DecodeError extends Error {
  override readonly name: string = 'DecodeError'
}

/** The block was written by a newer version of the format. */
export class UnknownVersionError extends DecodeError {
  override readonly name = 'UnknownVersionError'
}

/** A block, or a list or map in it, is larger than the format allows. */
export class TooLargeError extends DecodeError {
  override readonly name = 'TooLargeError'
}

/** A block that is linked to could not be read. */
export class MissingBlockError extends Error {
  override readonly name = 'MissingBlockError'
}

/** One of the states to merge could not be read; `cause` says why. */
export class UnreadableStateError extends Error {
  override readonly name = 'UnreadableStateError'
  /** CID of the state. */
  readonly state: string

  constructor(message: string, options: ErrorOptions & { state: string }) {
    super(message, options)
    this.state = options.state
  }
}

/** The state has no such account. */
export class AccountNotFoundError extends Error {
  override readonly name = 'AccountNotFoundError'
}

/** No such agent was ever authorized for the account. */
export class AgentNotFoundError extends Error {
  override readonly name = 'AgentNotFoundError'
}

/** The account has no backup of that time. */
export class BackupNotFoundError extends Error {
  override readonly name = 'BackupNotFoundError'
}

/** The backup is from before the time up to which the account was pruned. */
export class PrunedError extends Error {
  override readonly name = 'PrunedError'
}

/** The backup of that time was removed, which is for ever. */
export class RemovedError extends Error {
  override readonly name = 'RemovedError'
}

/** Somebody else sealed it, or it is not as it was sealed. */
export class UnsealError extends Error {
  override readonly name = 'UnsealError'
}

/** The authorization is older than one that the agent has seen. */
export class ReplayedAuthorizationError extends Error {
  override readonly name = 'ReplayedAuthorizationError'
}

/** The agent's signatures of the same differ, so that no key can be taken from them. */
export class NonDeterministicSignerError extends Error {
  override readonly name = 'NonDeterministicSignerError'
}

/** Nobody can open what is sealed for such a recipient. */
export class InvalidRecipientError extends Error {
  override readonly name = 'InvalidRecipientError'
}
