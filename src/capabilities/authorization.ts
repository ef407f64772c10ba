/**
 * Capabilities of authorizations: the service's grants of the accounts that it
 * backs up. `with` is the Space that holds the backups; one grant at most is
 * for an account in it.
 *
 * @packageDocumentation
 */
import type { Failure, Link, ServiceMethod } from '@ucanto/interface'
import { capability, fail, Schema } from '@ucanto/validator'
import {
  and,
  AccountDID,
  equal,
  equalLink,
  equalWith,
  narrower,
  isAccountDID,
  Parts,
  quoted,
  SpaceDID,
  textUpTo,
} from './common.ts'
import type { SpaceNotProvisioned, TryLater } from './common.ts'
import type { InsufficientDelegation } from './schedule.ts'

/** A hostname of at least two labels, up to 253 characters. */
const HANDLE_SYNTAX =
  /^(?=.{3,253}$)([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)+[a-zA-Z]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$/

/** Characters of the address that a user returns to. */
const MAX_RETURN_LENGTH = 2048

/** ISO 8601, as the Space has the times of backups. */
const TIME_SYNTAX = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/

/**
 * An account of ATProto by its DID or by its handle.
 *
 * @see https://atproto.com/specs/handle
 */
const AccountName = Schema.string().refine({
  read: (name: string) =>
    isAccountDID(name) || HANDLE_SYNTAX.test(name)
      ? { ok: name }
      : fail(
          `an account is a handle, a did:plc or a did:web, not ${quoted(name)}`
        ),
})

/** The time of a backup: UTC with milliseconds. */
const Timestamp = Schema.string().refine({
  read: (time: string) =>
    TIME_SYNTAX.test(time)
      ? { ok: time }
      : fail(`a time is like 2025-03-12T15:13:59.958Z, not ${quoted(time)}`),
})

/** All of `authorization/*`. */
export const authorization = capability({
  can: 'authorization/*',
  with: SpaceDID,
  derives: equalWith,
})

/**
 * Begins the way of the service into an account: answers with the address where
 * the user signs in and consents. What becomes of it is told by the receipt of
 * the task that it forks, and by the state in the Space.
 */
export const request = capability({
  can: 'authorization/request',
  with: SpaceDID,
  nb: Schema.struct({
    /** The account: a handle, a `did:plc` or a `did:web`. */
    account: AccountName,
    /** Parts of backups that it is for; all but `conversations`, if left out. */
    include: Parts.optional(),
    /** Where the user may go when it is done: an address on the web. */
    returnTo: textUpTo(MAX_RETURN_LENGTH).optional(),
    /**
     * What the service may do in the Space: a delegation to the service's
     * `did:key`, whose blocks are attached. Left out where the proofs of the
     * invocation allow it themselves.
     */
    delegation: Schema.link({ version: 1 }).optional(),
  }),
  derives: (claimed, delegated) =>
    and(
      equalWith(claimed, delegated),
      equal(claimed.nb.account, delegated.nb.account, 'account'),
      narrower(claimed.nb.include, delegated.nb.include, 'include'),
      equal(claimed.nb.returnTo, delegated.nb.returnTo, 'returnTo'),
      equalLink(claimed.nb.delegation, delegated.nb.delegation, 'delegation')
    ),
})

/** Lists the grants that the service has for the Space. */
export const list = capability({
  can: 'authorization/list',
  with: SpaceDID,
  derives: equalWith,
})

/** Gives a grant back to the host of the account, and forgets it. */
export const revoke = capability({
  can: 'authorization/revoke',
  with: SpaceDID,
  nb: Schema.struct({
    /** The account: a `did:plc` or `did:web`. */
    account: AccountDID,
  }),
  derives: (claimed, delegated) =>
    and(
      equalWith(claimed, delegated),
      equal(claimed.nb.account, delegated.nb.account, 'account')
    ),
})

/**
 * Seals the keys of private parts that the service can open for another agent,
 * so that it opens backups from before it was there: from the latest on, as
 * many as one call does. Whoever asks goes on where the answer says.
 */
export const share = capability({
  can: 'authorization/share',
  with: SpaceDID,
  nb: Schema.struct({
    /** The account: a `did:plc` or `did:web`. */
    account: AccountDID,
    /**
     * The agent that gets the keys, by its `did:key`. What is sealed for it
     * is in its authorization for the account, in the Space.
     */
    agent: Schema.did({ method: 'key' }),
    /** Only backups from before this time, as the last answer has it. */
    before: Timestamp.optional(),
    /**
     * What the service may do in the Space: a delegation to the service's
     * `did:key`, whose blocks are attached. Left out where the proofs of the
     * invocation allow it themselves.
     */
    delegation: Schema.link({ version: 1 }).optional(),
  }),
  derives: (claimed, delegated) =>
    and(
      equalWith(claimed, delegated),
      equal(claimed.nb.account, delegated.nb.account, 'account'),
      equal(claimed.nb.agent, delegated.nb.agent, 'agent'),
      equal(claimed.nb.before, delegated.nb.before, 'before'),
      equalLink(claimed.nb.delegation, delegated.nb.delegation, 'delegation')
    ),
})

/**
 * The task that `authorization/request` forks: the service issues it to itself,
 * and its receipt concludes the request. Nobody else can invoke it.
 */
export const complete = capability({
  can: 'authorization/complete',
  with: Schema.did(),
  nb: Schema.struct({
    space: SpaceDID,
    account: AccountDID,
    /** The invocation of `authorization/request`. */
    cause: Schema.link({ version: 1 }),
  }),
  derives: equalWith,
})

export interface RequestSuccess {
  /** Where the user signs in and consents. */
  url: string
  /** Unix seconds until which it can be used. */
  expiration: number
  /** DID of the account. */
  account: string
  /** The task that its receipt concludes: ask `/receipt/:task` for it. */
  task: Link
}

/** What the user has granted; the `ok` of the task's receipt. */
export interface Granted {
  account: string
  /** DID of the agent that has the grant now. */
  agent: string
  /** Parts of backups that it allows. */
  parts: string[]
  /** Parts that were asked for as well, and that the host does not grant. */
  missing: string[]
  /** Unix seconds until which there has to be another, however it is used. */
  expiration: number
}

/**
 * `active`: it is used. `ended`: the host takes it no more, and the user has to
 * authorize again.
 */
export type GrantState = 'active' | 'ended'

/** A grant of the service, as it stands. */
export interface Grant {
  account: string
  /** DID of the agent that has it. */
  agent: string
  state: GrantState
  /** Why it has ended. */
  reason?: { name: string; message: string }
  /** Parts of backups that it allows. */
  parts: string[]
  /** Parts that were asked for as well, and that the host does not grant. */
  missing: string[]
  /** What the host has granted, as OAuth has it. */
  scope: string
  /** Grows when other scopes are asked for than before. */
  scopeVersion: number
  /** Unix milliseconds. */
  created: number
  /** Unix milliseconds of the last refresh. */
  refreshed: number
  /** Unix seconds until which there has to be another, however it is used. */
  expiration: number
}

export interface ListSuccess {
  /** In the order of their accounts. */
  authorizations: Grant[]
}

export interface RevokeSuccess {
  /** Whether there was one. */
  revoked: boolean
  /**
   * Whether the host of the account has confirmed that it takes nothing of it
   * any more. Where it has not, the service tells it again until it has.
   */
  confirmed: boolean
}

/** What one call has shared. */
export interface ShareSuccess {
  /** Backups that the agent can open now and could not before. */
  backups: number
  /** Backups with parts that the service cannot open itself. */
  closed: number
  /** Backups that could not be read. */
  unreadable: number
  /** There are more: ask again for those from before this time. */
  before?: string
}

/** There is no such account, or its handle points elsewhere. */
export interface AccountNotFound extends Failure {
  name: 'AccountNotFound'
}

/** The host of the account does not take part in it. */
export interface HostRefused extends Failure {
  name: 'HostRefused'
}

/** The host of the account does not answer for now. */
export interface HostUnavailable extends Failure {
  name: 'HostUnavailable'
}

/** `returnTo` is no address on the web. */
export interface InvalidReturn extends Failure {
  name: 'InvalidReturn'
}

/** More requests that nobody has concluded than the service keeps. */
export interface TooManyRequests extends Failure {
  name: 'TooManyRequests'
}

/** The agent is not authorized for the account, or not any more. */
export interface AgentNotAuthorized extends Failure {
  name: 'AgentNotAuthorized'
}

/** The Space does not answer, or takes nothing; the message says why. */
export interface SpaceUnavailable extends Failure {
  name: 'SpaceUnavailable'
}

export type RequestFailure =
  | AccountNotFound
  | HostRefused
  | HostUnavailable
  | InvalidReturn
  | TooManyRequests
  | InsufficientDelegation
  | SpaceNotProvisioned
  | TryLater

export type ShareFailure =
  | AccountNotFound
  | AgentNotAuthorized
  | SpaceUnavailable
  | InsufficientDelegation
  | SpaceNotProvisioned
  | TryLater

export interface AuthorizationService {
  request: ServiceMethod<AuthorizationRequest, RequestSuccess, RequestFailure>
  list: ServiceMethod<AuthorizationList, ListSuccess, TryLater>
  revoke: ServiceMethod<
    AuthorizationRevoke,
    RevokeSuccess,
    SpaceUnavailable | TryLater
  >
  share: ServiceMethod<AuthorizationShare, ShareSuccess, ShareFailure>
}

export type AuthorizationRequest = ReturnType<typeof request.create>
export type AuthorizationList = ReturnType<typeof list.create>
export type AuthorizationRevoke = ReturnType<typeof revoke.create>
export type AuthorizationShare = ReturnType<typeof share.create>
