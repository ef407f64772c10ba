import type { Failure, Link, Result, Unit } from '@ucanto/interface'
import { fail, Schema } from '@ucanto/validator'

/** A Space: always a `did:key`. */
export const SpaceDID = Schema.did({ method: 'key' })

/** Characters of the DID of an account, at most. The specification allows 2,048. */
const MAX_ACCOUNT_LENGTH = 256

/** `did:plc` or `did:web`, in the syntax of ATProto. */
const ACCOUNT_SYNTAX = /^did:(plc|web):[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]$/

/**
 * Whether a text is the DID of an account.
 *
 * @see https://atproto.com/specs/did
 */
export function isAccountDID(text: string): boolean {
  return text.length <= MAX_ACCOUNT_LENGTH && ACCOUNT_SYNTAX.test(text)
}

/** An account of ATProto. */
export const AccountDID = Schema.did().refine({
  read: (did) =>
    isAccountDID(did)
      ? { ok: did }
      : fail(
          `an account is a did:plc or a did:web of at most ${MAX_ACCOUNT_LENGTH} characters, not ${quoted(did)}`
        ),
})

/**
 * A text that is no longer than a bound.
 *
 * @param maximum - UTF-16 units
 */
export function textUpTo(maximum: number) {
  return Schema.string().refine({
    read: (text: string) =>
      text.length <= maximum
        ? { ok: text }
        : fail(
            `a text here has at most ${maximum} characters, and ${quoted(text)} has ${text.length}`
          ),
  })
}

/** The start of a text, for a message. */
export function quoted(text: string): string {
  return JSON.stringify(text.slice(0, 64))
}

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

/** Parts by name: each once. */
export const Parts = Schema.enum([...PARTS])
  .array()
  .refine({
    read: (parts: Part[]) =>
      new Set(parts).size === parts.length
        ? { ok: parts }
        : fail('a list of parts names each part once'),
  })

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
