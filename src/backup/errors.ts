/**
 * What can go wrong while an account is backed up. The message of each says
 * what to do; `cause` has what was underneath.
 *
 * @packageDocumentation
 */

/** Base of the errors that end a run with a name of their own. */
export abstract class BackupError extends Error {
  /** Whether the same run may succeed later without anybody doing anything. */
  readonly retryable: boolean = false
}

/** The handle does not lead to an account. */
export class HandleNotFoundError extends BackupError {
  override readonly name = 'HandleNotFoundError'
}

/** There is no such DID, or its document is not valid. */
export class DidNotFoundError extends BackupError {
  override readonly name = 'DidNotFoundError'
}

/** The DID document names no PDS or no signing key. */
export class NoPdsError extends BackupError {
  override readonly name = 'NoPdsError'
}

/** The directory that knows DIDs or handles does not answer. */
export class IdentityUnavailableError extends BackupError {
  override readonly name = 'IdentityUnavailableError'
  override readonly retryable = true
}

/** The host says that the account is deactivated, taken down or not there. */
export class AccountUnavailableError extends BackupError {
  override readonly name = 'AccountUnavailableError'
}

/** The host did not answer, or not as the protocol says. */
export class HostError extends BackupError {
  override readonly name = 'HostError'
  override readonly retryable = true
}

/** The host is not asked for now, so that it comes to itself again. */
export class HostUnavailableError extends BackupError {
  override readonly name = 'HostUnavailableError'
  override readonly retryable = true
  /** Seconds until it is asked again. */
  readonly retryAfter: number

  constructor(message: string, options: ErrorOptions & { retryAfter: number }) {
    super(message, options)
    this.retryAfter = options.retryAfter
  }
}

/** The address of the host is one we do not go to. */
export class ForbiddenAddressError extends BackupError {
  override readonly name = 'ForbiddenAddressError'
}

/** The host does not have the blob. */
export class BlobNotFoundError extends BackupError {
  override readonly name = 'BlobNotFoundError'
}

/** The host has the blob and does not give it. */
export class BlobTakenDownError extends BackupError {
  override readonly name = 'BlobTakenDownError'
}

/** The owner has not allowed it, or not any more. */
export class PartNotGrantedError extends BackupError {
  override readonly name = 'PartNotGrantedError'
}

/** The host has no such thing. */
export class PartNotOfferedError extends BackupError {
  override readonly name = 'PartNotOfferedError'
}

/** The agent has no authorization for the account, or none that holds. */
export class AgentNotAuthorizedError extends BackupError {
  override readonly name = 'AgentNotAuthorizedError'
}

/** What the host sent is not the repository that the account signed. */
export class InvalidRepoError extends BackupError {
  override readonly name = 'InvalidRepoError'
}

/** Blocks of the repository are missing, although it was read again. */
export class IncompleteRepoError extends BackupError {
  override readonly name = 'IncompleteRepoError'
  override readonly retryable = true
}

/** The upload service does not take anything at the moment. */
export class SpaceUnavailableError extends BackupError {
  override readonly name = 'SpaceUnavailableError'
  override readonly retryable = true
}

/** The Space is full, or nobody pays for it. */
export class SpaceQuotaError extends BackupError {
  override readonly name = 'SpaceQuotaError'
}

/** The delegation does not allow what the run needs. */
export class SpaceUnauthorizedError extends BackupError {
  override readonly name = 'SpaceUnauthorizedError'
}

/** No gateway gave a block that the Space should have. */
export class GatewayError extends BackupError {
  override readonly name = 'GatewayError'
  override readonly retryable = true
  /** Seconds until a gateway wants to be asked again, if one said so. */
  readonly retryAfter: number | undefined

  constructor(
    message: string,
    { retryAfter, ...options }: ErrorOptions & { retryAfter?: number } = {}
  ) {
    super(message, options)
    this.retryAfter = retryAfter
  }
}

/** The clock did not take the event. */
export class ClockError extends BackupError {
  override readonly name = 'ClockError'
  override readonly retryable = true
}
