import type { Failure, Link, Result, Unit } from '@ucanto/interface'
import { fail, Schema } from '@ucanto/validator'

/** A Space: always a `did:key`. */
export const SpaceDID = Schema.did({ method: 'key' })

/** An account of ATProto. */
export const AccountDID = Schema.did().refine({
  read: (did) =>
    /^did:(plc|web):./.test(did)
      ? { ok: did }
      : fail(`an account is a did:plc or a did:web, not ${did}`),
})

/** Parts that only the owner may read: by a grant, and sealed in the Space. */
export const PRIVATE_PARTS = [
  'preferences',
  'mutes',
  'muted-lists',
  'blocked-lists',
  'bookmarks',
  'notification-preferences',
  'drafts',
  'conversations',
] as const
export type PrivatePart = (typeof PRIVATE_PARTS)[number]

/** Parts of a backup beside the repository, which every backup has. */
export const PARTS = ['blobs', ...PRIVATE_PARTS] as const
export type Part = (typeof PARTS)[number]

/** What is backed up where nothing is said: conversations only by name. */
export const DEFAULT_PARTS: readonly Part[] = PARTS.filter(
  (part) => part !== 'conversations'
)

/**
 * The Space has no storage provider, as far as the service can find out. The
 * message says what to do: provision the Space, or let the service ask.
 */
export interface SpaceNotProvisioned extends Failure {
  name: 'SpaceNotProvisioned'
}

/** The service could not do it just now; the same call may succeed later. */
export interface ServiceUnavailable extends Failure {
  name: 'ServiceUnavailable'
}

/** More invocations than the service takes for now. */
export interface RateLimited extends Failure {
  name: 'RateLimited'
  /** Seconds until the next one is welcome. */
  retryAfter: number
}

/** Nobody can tell just now whether a proof was revoked, and the service asks. */
export interface RevocationsUnavailable extends Failure {
  name: 'RevocationsUnavailable'
}

/** Failures that pass with time, of every capability. */
export type TryLater = ServiceUnavailable | RateLimited | RevocationsUnavailable

type Verdict = Result<Unit, Failure>

/** Requires all of the given rules. */
export function and(...results: Verdict[]): Verdict {
  return results.find((result) => result.error) ?? { ok: {} }
}

/** A delegation for one Space says nothing about another. */
export function equalWith(
  claimed: { with: string },
  delegated: { with: string }
): Verdict {
  return claimed.with === delegated.with
    ? { ok: {} }
    : fail(`cannot derive ${claimed.with} from ${delegated.with}`)
}

/** What the delegation names must be the same; what it leaves open is free. */
export function equal(
  claimed: string | undefined,
  delegated: string | undefined,
  field: string
): Verdict {
  return delegated === undefined || claimed === delegated
    ? { ok: {} }
    : fail(
        `the delegation is for ${field} ${delegated}, not ${claimed ?? 'for all'}`
      )
}

/** Like {@link equal}, for links. */
export function equalLink(
  claimed: Link | undefined,
  delegated: Link | undefined,
  field: string
): Verdict {
  return equal(claimed?.toString(), delegated?.toString(), field)
}

/** A list may be made shorter on the way, never longer. */
export function narrower(
  claimed: readonly string[] | undefined,
  delegated: readonly string[] | undefined,
  field: string
): Verdict {
  if (delegated === undefined) return { ok: {} }
  if (claimed === undefined) {
    return fail(
      `the delegation limits ${field} to [${delegated.join(', ')}]; say which of them`
    )
  }
  const more = claimed.find((item) => !delegated.includes(item))
  return more === undefined
    ? { ok: {} }
    : fail(
        `the delegation limits ${field} to [${delegated.join(', ')}], without ${more}`
      )
}
