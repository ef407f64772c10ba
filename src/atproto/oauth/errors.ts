import { BackupError } from '../../backup/errors.ts'

/** The host takes the grant no more: the user has to authorize again. */
export class GrantEndedError extends Error {
  override readonly name = 'GrantEndedError'
}

/** The host of the account does not take part in it, or the user said no. */
export class HostRefusedError extends Error {
  override readonly name = 'HostRefusedError'
  /** What the host calls it, in words of OAuth. */
  readonly code: string | undefined

  constructor(message: string, options?: ErrorOptions & { code?: string }) {
    super(message, options)
    this.code = options?.code
  }
}

/** Code of a request that the host takes no more; OAuth has no word for it. */
export const REQUEST_EXPIRED = 'request_expired'

/** The trouble that a host had, among the causes of an error. */
export function hostErrorIn(error: unknown): BackupError | undefined {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof BackupError) return cause
  }
  return undefined
}
