import { HostRefusedError, REQUEST_EXPIRED } from '../atproto/oauth/index.ts'
import { ForbiddenAddressError, HostError } from '../backup/index.ts'
import type { DID } from '../space/index.ts'

export type GrantRequestFailure =
  | 'AuthorizationRefused'
  | 'WrongAccount'
  | 'AuthorizationExpired'
  | 'HostRefused'
  | 'HostUnavailable'
  | 'TooManyRequests'
  | 'InternalError'

/** A request that a user came back from, as far as others are told of it. */
export interface KnownRequest {
  space: DID
  account: DID
  delegation: Uint8Array
  returnTo?: URL | undefined
}

/** Why a user has not let us in. */
export class GrantRequestError extends Error {
  override readonly name: GrantRequestFailure
  /** What was asked for, where that is known. */
  readonly request: KnownRequest | undefined

  constructor(
    name: GrantRequestFailure,
    message: string,
    options: ErrorOptions & { request?: KnownRequest } = {}
  ) {
    super(message, options)
    this.name = name
    this.request = options.request
  }
}

/** There was a grant, and it has ended: the user has to authorize again. */
export class ReauthorizeError extends Error {
  override readonly name = 'ReauthorizeError'
}

/** What the Space has of a grant cannot be read for now. */
export class SpaceUnreadableError extends Error {
  override readonly name = 'SpaceUnreadableError'
}

/** What became of the way into an account, for its user. */
export function asRequestError(
  error: unknown,
  request: KnownRequest
): GrantRequestError {
  const options = { request, cause: error }
  if (error instanceof GrantRequestError) return error
  if (error instanceof HostRefusedError && error.code === REQUEST_EXPIRED) {
    return new GrantRequestError('AuthorizationExpired', error.message, options)
  }
  if (error instanceof HostRefusedError) {
    return error.code === 'access_denied'
      ? new GrantRequestError(
          'AuthorizationRefused',
          'You said no at the host of your account, and nothing was kept. What is public is backed up all the same.',
          options
        )
      : new GrantRequestError('HostRefused', error.message, options)
  }
  if (error instanceof ForbiddenAddressError) {
    return new GrantRequestError('HostRefused', error.message, options)
  }
  if (error instanceof HostError) {
    return new GrantRequestError('HostUnavailable', error.message, options)
  }
  return new GrantRequestError(
    'InternalError',
    'Something failed here, and the log has the reason. Nothing was kept. Start again later.',
    options
  )
}
