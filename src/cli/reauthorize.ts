import { formatExpiration, printable } from './format.ts'

/** Milliseconds before its end from which on something is to be renewed. */
const RENEWAL_WINDOW = 7 * 24 * 60 * 60 * 1000

/** A grant, as far as it says whether there has to be another. */
export interface Renewable {
  account: string
  state: 'active' | 'ended'
  reason?: { name: string; message: string }
  /** Unix seconds until which there has to be another. */
  expiration: number
}

/** @param end - Unix seconds, or `Infinity` */
export function isSoon(end: number): boolean {
  return end * 1000 - Date.now() <= RENEWAL_WINDOW
}

/**
 * The command that lets somebody in again, if what there is has ended or is
 * about to.
 *
 * @param options.here - whether it is this agent's grant, not the service's
 */
export function renewalOf(
  { account, state, expiration }: Renewable,
  { here = false }: { here?: boolean } = {}
): string | undefined {
  const isEnding = state === 'ended' || isSoon(expiration)
  return isEnding
    ? `bluesky-backups authorize ${printable(account)}${here ? ' --here' : ''}`
    : undefined
}

/** What should not go unseen, in a line; nothing as long as all is well. */
export function reauthorizeNote(
  grant: Renewable,
  { here = false }: { here?: boolean } = {}
): string[] {
  const command = renewalOf(grant, { here })
  if (command === undefined) return []
  const { account, state, reason, expiration } = grant
  const why = reason ? ` (${reason.message.replace(/\s+/g, ' ')})` : ''
  const how =
    state === 'ended'
      ? `has ended${why}; only what is public is backed up`
      : `ends on ${formatExpiration(expiration)}`
  return [
    printable(
      `RE-AUTHORIZE: what ${here ? 'this agent' : 'the service'} was granted for ${account} ${how}; renew it with \`${command}\``
    ),
  ]
}
