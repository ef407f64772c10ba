/**
 * What can go wrong in a command beside what the parts it uses report. The
 * message says what to do next.
 *
 * @packageDocumentation
 */

/** The command was not called as it can be. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

/** The agent is logged in to no account. */
export class NotLoggedInError extends Error {
  override readonly name = 'NotLoggedInError'
}

/** No Space is chosen, or there is none of that name. */
export class NoSpaceError extends Error {
  override readonly name = 'NoSpaceError'
}

/** The agent may not do that in the Space. */
export class NotAllowedError extends Error {
  override readonly name = 'NotAllowedError'
}

/** The upload service refused, or did not answer. */
export class UploadServiceError extends Error {
  override readonly name = 'UploadServiceError'
}

/** The Space has no such account, or no such backup of it. */
export class NoBackupError extends Error {
  override readonly name = 'NoBackupError'
}

/** An event of the clock that is needed is not to be had. */
export class MissingEventError extends Error {
  override readonly name = 'MissingEventError'
}

/** A private part is sealed, and this agent is not among those it is for. */
export class NotSealedForUsError extends Error {
  override readonly name = 'NotSealedForUsError'
}

/** The folder for an export has something in it. */
export class FolderNotEmptyError extends Error {
  override readonly name = 'FolderNotEmptyError'
}

/** The agent's own file cannot be used. */
export class AgentFileError extends Error {
  override readonly name = 'AgentFileError'
}

/** The backup service refused, or the run it did has failed. */
export class ServiceError extends Error {
  override readonly name: string

  /** @param name - of the failure, as the service gave it */
  constructor(name: string, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = name
  }
}

/** Packages that only some commands need are not there. */
export class MissingPackagesError extends Error {
  override readonly name = 'MissingPackagesError'
}
