/**
 * The little that the service keeps. Spaces, accounts, agents, events and
 * tasks are named by text (DIDs and CIDs); whoever calls has checked them.
 * What a method wrote is durable when it answers. Every method may throw
 * `StoreUnavailableError`.
 *
 * @packageDocumentation
 */

import type { Kysely } from 'kysely'
import type { Tables } from './tables.ts'

export interface Stores extends AsyncDisposable {
  /** What the stores are kept in, for those who share a transaction with them. */
  database: Kysely<Tables>
  clock: ClockStore
  runs: RunStore
  receipts: ReceiptStore
  journal: JournalStore
  revocations: RevocationStore
  spaces: SpaceStore
  schedules: ScheduleStore
  grants: GrantStore
  hosts: HostStore
  service: ServiceStore
  /** Answers when the database does. */
  ping(): Promise<void>
}

/** The Merkle clocks: one for each Space, by the Space's DID. */
export interface ClockStore {
  /** @returns CIDs of the events that no accepted event names as a parent, sorted */
  head(space: string): Promise<string[]>

  /**
   * Accepts events, all or none. Events that are accepted already change
   * nothing.
   *
   * @param events - parents before children
   * @returns the head after the advance, sorted
   * @param options.maxHeads - events that may stand at the head; an advance
   *   that leaves more of them than this, and more than there were, is refused
   * @throws UnknownParentError when a parent is neither accepted nor
   *   among the events before its child
   * @throws TooManyHeadsError
   */
  advance(
    space: string,
    events: ClockEvent[],
    options?: { maxHeads?: number }
  ): Promise<string[]>

  /** @returns those of the events that are not accepted, in their order */
  unknown(space: string, events: string[]): Promise<string[]>

  /** @returns the bytes of an accepted event */
  event(space: string, event: string): Promise<Uint8Array | undefined>
}

/** An event that has been verified, ready to be accepted. */
export interface ClockEvent {
  /** CID of the event. */
  event: string
  /** CIDs of the events it replaces. */
  parents: string[]
  /** The block that the CID is of. */
  bytes: Uint8Array
}

/** Whether Spaces have a storage provider, as the upload service said last. */
export interface SpaceStore {
  put(space: string, known: KnownSpace): Promise<void>
  get(space: string): Promise<KnownSpace | undefined>
}

export interface KnownSpace {
  provisioned: boolean
  /** Unix milliseconds at which the upload service said so. */
  checked: number
}

/** Why a host is left alone: it fails, it asked for it, or one looks how it is. */
export type HostTroubleKind = 'failing' | 'limited' | 'probed'

/** What is kept of a host that is not as it should be. */
export interface HostTrouble {
  kind: HostTroubleKind
  /** Requests that failed since the last one that did not. */
  failures: number
  /** How often it was left alone since it was last as it should be. */
  closures: number
  /** Unix milliseconds until which nobody asks it. */
  until: number
}

/** Hosts that are not as they should be; of all others there is nothing. */
export interface HostStore {
  get(host: string): Promise<HostTrouble | undefined>

  /** @returns hosts that were left alone and are not yet known to be back */
  closed(): Promise<Map<string, HostTrouble>>

  /**
   * Changes what is kept of a host. Nothing else changes it between the look
   * and the decision.
   *
   * @param decide - answers what there shall be, nothing if the host is as it
   *   should be; may be called again, and must not use the stores
   * @returns what there is after it
   */
  change(
    host: string,
    decide: (present: HostTrouble | undefined) => HostTrouble | undefined
  ): Promise<HostTrouble | undefined>

  /**
   * Forgets hosts that nobody has asked for long.
   *
   * @param before - Unix milliseconds; those that were left alone until then
   */
  forget(before: number): Promise<void>
}

/** Whose the database is: delegations and grants in it are for one agent. */
export interface ServiceStore {
  /**
   * Takes the database for an agent, unless it is another's.
   *
   * @param agent - its `did:key`
   * @returns the `did:key` of whose it is now
   */
  claim(agent: string): Promise<string>

  /** @returns false when the database is not the old agent's */
  replace(old: string, agent: string): Promise<boolean>
}

/** Somebody took a delegation back. */
export interface Revocation {
  /** CID of the delegation. */
  delegation: string
  /** DID of who revoked it. */
  revoker: string
  /** CAR of the invocation that revoked it. */
  cause: Uint8Array
  /** Unix milliseconds. */
  created: number
}

/** Revocations. They are only ever added: what is revoked stays revoked. */
export interface RevocationStore {
  add(revocation: Revocation): Promise<void>

  /**
   * @param delegations - CIDs
   * @returns the revocations of these, in no order
   */
  find(
    delegations: string[]
  ): Promise<Pick<Revocation, 'delegation' | 'revoker'>[]>
}

/** What somebody asked to be backed up. */
export interface RunRequest {
  /** CID of the task. */
  id: string
  /** DID of the Space that the backup goes to. */
  space: string
  /** DID of the account that is backed up. */
  account: string
  /** DID of the agent that issued the invocation. */
  agent: string
  /** Names of the parts to back up. */
  include: string[]
  /** CAR of the invocation with its proofs; empty when the run has ended. */
  authority: Uint8Array
  /** A schedule asks for it: nobody waits, and it lets others go first. */
  scheduled?: boolean
  /** Unix milliseconds. */
  created: number
}

export type RunState = 'queued' | 'running' | 'done' | 'failed'

/** One backup run. */
export interface Run extends RunRequest {
  scheduled: boolean
  /** Where the account is, as far as is known; or was, when it was last run. */
  host?: string
  state: RunState
  /** How far the run is, any JSON value. */
  progress?: unknown
  /** What came of it, any JSON value. */
  outcome?: unknown
  /** Why it failed. */
  error?: RunError
  /** Unix milliseconds of the last change. */
  updated: number
  /** Unix milliseconds of the first claim. */
  started?: number
  /** Unix milliseconds. */
  finished?: number
  /** How often it was claimed. */
  attempts: number
  /** Who works on it while it is running. */
  owner?: string
  /** Unix milliseconds from which on anybody may claim it. */
  leaseExpiration?: number
}

export interface RunError {
  name: string
  message: string
  /** Seconds from the end of the run until another is worth it. */
  retryAfter?: number
}

/** A run without what it acts upon. */
export type WatchedRun = Omit<Run, 'authority'>

/** How a run ended. */
export interface RunResult {
  state: 'done' | 'failed'
  /** How far it came, any JSON value; left out, what was told before stays. */
  progress?: unknown
  outcome?: unknown
  error?: RunError
  /** It made an event: it is kept as long as it is the last that did. */
  eventful?: boolean
  /** The receipt of the task, kept along with the result. */
  receipt?: Uint8Array
  /** Unix milliseconds. */
  now: number
}

/**
 * Backup runs. At most one run of an account into a Space is queued or running
 * at any time, and at most one owner works on a run until its lease expires.
 */
export interface RunStore {
  /**
   * Queues a run. Answers the run that is there already when the task is known,
   * or when a run of the same account into the same Space has not ended.
   *
   * @returns `created` tells whether the request became a run
   */
  create(request: RunRequest): Promise<{ run: Run; created: boolean }>

  get(id: string): Promise<Run | undefined>

  /**
   * @param options.limit - the most runs to answer
   * @param options.account - only those of this account
   * @returns runs into the Space, newest first
   */
  list(
    space: string,
    options: { limit: number; account?: string }
  ): Promise<Run[]>

  /**
   * Looks after runs that somebody watches. What it takes depends on what is
   * asked for, not on how many runs there are.
   *
   * @param watched.runs - of these runs
   * @param watched.spaces - of these Spaces, the runs that have not ended and
   *   those that were asked for since
   * @param watched.since - Unix milliseconds
   * @param watched.limit - the most runs that have not ended, and the most that
   *   are new, of all Spaces together; of these the newest
   * @returns the runs, in no order
   */
  watched(watched: {
    runs: string[]
    spaces: string[]
    since: number
    limit: number
  }): Promise<WatchedRun[]>

  /**
   * Takes a run that is queued, or running with an expired lease: first those
   * that somebody waits for, then those of schedules; of these the oldest.
   *
   * @param options.without - hosts whose runs are passed over
   * @param options.owner - no two claims that may be at work at the same time
   *   have the same
   * @param options.now - Unix milliseconds
   * @param options.lease - milliseconds until somebody else may take the run
   */
  claim(options: {
    owner: string
    now: number
    lease: number
    without?: string[]
  }): Promise<Run | undefined>

  /**
   * Tells on which host the account of a claimed run is. The next run of the
   * account begins with that.
   *
   * @returns false when the run is not the owner's any more
   */
  locate(id: string, owner: string, host: string): Promise<boolean>

  /**
   * Gives back a claimed run that was not begun, since its host has enough of
   * them; the claim does not count.
   *
   * @returns false when the run is not the owner's any more
   */
  defer(id: string, owner: string, host: string): Promise<boolean>

  /**
   * Keeps a claimed run, and tells how far it is.
   *
   * @param update.leaseExpiration - Unix milliseconds
   * @param update.progress - any JSON value
   * @param update.now - Unix milliseconds
   * @returns false when the run is not the owner's any more
   */
  heartbeat(
    id: string,
    owner: string,
    update: { leaseExpiration: number; progress: unknown; now: number }
  ): Promise<boolean>

  /**
   * Gives a claimed run back to the queue, where it keeps its place.
   *
   * @returns false when the run is not the owner's any more
   */
  release(id: string, owner: string): Promise<boolean>

  /**
   * Ends a claimed run and keeps its receipt, both or none. What it acted upon
   * is forgotten.
   *
   * @returns false when the run is not the owner's any more
   */
  finish(id: string, owner: string, result: RunResult): Promise<boolean>

  /**
   * Removes runs that ended long ago, and their receipts. Of each account in a
   * Space the last run that ended stays, and the last that made an event.
   *
   * @param options.before - Unix milliseconds until which they ended
   * @param options.limit - the most runs to look at
   * @param options.after - where an earlier call has stopped
   * @returns how many were removed, and where to go on, if there is more
   */
  prune(options: {
    before: number
    limit: number
    after?: EndOfRun | undefined
  }): Promise<{ removed: number; next?: EndOfRun }>
}

/** The place of a run among those that have ended. */
export interface EndOfRun {
  /** Unix milliseconds. */
  finished: number
  id: string
}

/** Receipts of tasks. What is there never changes. */
export interface ReceiptStore {
  /** Keeps a receipt, unless the task has one. */
  put(task: string, bytes: Uint8Array): Promise<void>
  get(task: string): Promise<Uint8Array | undefined>
}

/** What interrupted runs have uploaded, for each account and Space. */
export interface JournalStore {
  /** @returns the entries in the order they were appended */
  load(space: string, account: string): Promise<Uint8Array[]>

  /** Appends an entry, unless there is one with the same key. */
  append(
    space: string,
    account: string,
    key: string,
    bytes: Uint8Array
  ): Promise<void>

  clear(space: string, account: string): Promise<void>
}

export type ScheduleState = 'active' | 'paused' | 'stopped'

/** When there are runs: after so many seconds, or by the clock on a wall. */
export type Rhythm = { every: number } | { cron: string; timezone: string }

/** What somebody decides of a schedule. */
export interface ScheduleDecision {
  rhythm: Rhythm
  /** Unix milliseconds that the times of `every` are counted from. */
  anchor: number
  /** Names of the parts to back up; all there are, if left out. */
  include?: string[] | undefined
  /** Left out, the delegation there is stays. */
  delegation?: StoredDelegation
  /** Host of the account, once it is known. */
  host?: string | undefined
  state: ScheduleState
  /** Why it is paused or stopped, where nobody asked for it. */
  reason?: RunError | undefined
  /** Unix milliseconds from which on a pause is over. */
  pausedUntil?: number | undefined
  /**
   * Unix milliseconds at which the schedule is due, also if it is paused. Never
   * due if left out, as one that is stopped.
   */
  next?: number | undefined
  /** Whether it is taken from whoever has claimed it. */
  unclaims?: boolean
}

/** A delegation as it was given. */
export interface StoredDelegation {
  /** CID of the delegation. */
  cid: string
  /** CAR with all of its proofs. */
  bytes: Uint8Array
  /** Unix milliseconds; the earliest in its chain of proofs. */
  expiration?: number | undefined
}

/** One schedule, without the bytes of its delegation. */
export interface Schedule extends Omit<
  ScheduleDecision,
  'delegation' | 'unclaims'
> {
  space: string
  account: string
  delegation: Omit<StoredDelegation, 'bytes'>
  lastRun?: LastRun | undefined
  /** Unix milliseconds. */
  created: number
  /** Unix milliseconds of the last decision or run. */
  updated: number
  /** Who has claimed it. */
  owner?: string | undefined
  /** Unix milliseconds from which on the claim may be released by others. */
  leaseExpiration?: number | undefined
  /** Unix milliseconds at which somebody began with what is claimed. */
  begun?: number | undefined
}

/** A schedule that somebody has claimed. */
export interface ScheduleClaim {
  space: string
  account: string
  owner: string
}

/** What came of the latest run of a schedule. */
export interface LastRun {
  /** CID of the task. */
  run: string
  /** Unix milliseconds. */
  finished: number
  outcome: 'first' | 'incremental' | 'unchanged' | 'failed'
  error?: RunError
}

/** How a claimed schedule goes on. */
export interface ScheduleSettlement extends Pick<
  ScheduleDecision,
  'state' | 'reason' | 'next' | 'host'
> {
  /** Left out, the run before stays the last. */
  lastRun?: LastRun | undefined
  /** Unix milliseconds. */
  now: number
}

/** A schedule that is due, and that nobody wants to begin with now. */
export interface ScheduleDeferral {
  space: string
  account: string
  /** Unix milliseconds. */
  next: number
}

/** What operators should know about all schedules. */
export interface ScheduleFigures {
  /** Schedules that are due, and that nobody has begun with. */
  due: number
  /** Unix milliseconds since which the first of them is due. */
  oldest?: number | undefined
  /** Delegations about to end, for each time that was asked for. */
  ending: number[]
}

/**
 * Schedules: at most one of an account into a Space. A schedule that is due is
 * claimed by one owner and not claimed again before it is settled or the claim
 * was released. What is decided while it is claimed stands: settling it then
 * changes neither its state nor its next time.
 */
export interface ScheduleStore {
  /**
   * Makes a schedule or changes it. Nothing else changes it between the look
   * and the decision.
   *
   * @param decide - answers what there shall be, or nothing to leave all as it
   *   is; must not use the stores
   * @param now - Unix milliseconds
   * @returns what there is after it
   */
  decide(
    space: string,
    account: string,
    decide: (present: Schedule | undefined) => ScheduleDecision | undefined,
    now: number
  ): Promise<Schedule | undefined>

  get(space: string, account: string): Promise<Schedule | undefined>

  /** @returns the delegation of a schedule, whole */
  delegation(
    space: string,
    account: string
  ): Promise<StoredDelegation | undefined>

  /** @returns schedules of the Space, in the order of their accounts */
  list(space: string): Promise<Schedule[]>

  count(space: string): Promise<number>

  /**
   * Counts what operators should know about all schedules, in a time that does
   * not depend on how many there are.
   *
   * @param options.now - Unix milliseconds
   * @param options.ending - Unix milliseconds; for each the delegations that
   *   end until then and have not ended, of schedules that have not stopped
   * @param options.limit - where counting stops
   */
  figures(options: {
    now: number
    ending: number[]
    limit: number
  }): Promise<ScheduleFigures>

  /**
   * Forgets a schedule and its delegation.
   *
   * @returns what there was
   */
  remove(space: string, account: string): Promise<Schedule | undefined>

  /**
   * Claims schedules that are due and not claimed, those first that are due the
   * longest. A pause that was to end by then has ended: it is active again.
   *
   * @param options.now - Unix milliseconds
   * @param options.limit - the most schedules to claim
   * @param options.owner - who claims them; each time another
   * @param options.lease - milliseconds until others may release them
   * @param inTransaction - called with what was claimed, if anything was, in
   *   the transaction that claims it: all or nothing. Must not use the stores.
   *   Answers which of them are not claimed after all, and due later: `next`
   *   in Unix milliseconds
   * @returns the schedules; `next` of each is when it was due
   */
  claimDue(
    options: { now: number; limit: number; owner: string; lease: number },
    inTransaction?: (
      schedules: Schedule[],
      transaction: Kysely<Tables>
    ) => Promise<ScheduleDeferral[] | void>
  ): Promise<Schedule[]>

  /**
   * Begins, or goes on, with what is claimed.
   *
   * @param options.leaseExpiration - Unix milliseconds
   * @param options.now - Unix milliseconds
   * @returns the schedule; nothing when it is not the owner's any more
   */
  begin(
    space: string,
    account: string,
    owner: string,
    options: { leaseExpiration: number; now: number }
  ): Promise<Schedule | undefined>

  /**
   * @param leaseExpiration - Unix milliseconds
   * @returns false when the schedule is not the owner's any more
   */
  renewLease(
    space: string,
    account: string,
    owner: string,
    leaseExpiration: number
  ): Promise<boolean>

  /**
   * Ends a claim.
   *
   * @returns false when the schedule is not the owner's any more
   */
  settle(
    space: string,
    account: string,
    owner: string,
    settlement: ScheduleSettlement
  ): Promise<boolean>

  /**
   * @param options.now - Unix milliseconds
   * @param options.limit - the most claims to answer
   * @returns claims whose lease has expired, those first that expired first
   */
  expired(options: { now: number; limit: number }): Promise<ScheduleClaim[]>

  /**
   * Releases a claim whose lease has expired; what was due is due again.
   *
   * @param now - Unix milliseconds
   * @returns false when it is somebody else's, or its lease has not expired
   */
  release(
    space: string,
    account: string,
    owner: string,
    now: number
  ): Promise<boolean>
}

/** A request that a user has to conclude at the host of an account. */
export interface GrantRequest {
  /** SHA-256, in hex, of what the host sends back. */
  state: string
  space: string
  account: string
  /** All that is secret about it, sealed by who asked. */
  sealed: Uint8Array
  /** CAR of what it was asked with. */
  delegation: Uint8Array
  /** Unix milliseconds. */
  expires: number
}

/**
 * `active`: it is used. `ended`: the host takes it no more. `revoked`: it was
 * given back.
 */
export type GrantState = 'active' | 'ended' | 'revoked'

/** A newer state of what a host has granted. */
export interface GrantUpdate {
  space: string
  account: string
  /** Greater than that of the state before. */
  seq: number
  /** For the Space, and sealed by the agent that has it. */
  sealed: Uint8Array
  /** Unix seconds until which there has to be another. */
  expiration: number
  /** Age recipient for private parts. */
  recipient?: string | undefined
  /** As OAuth has it. */
  scope: string
  /** Of the scopes that were asked for. */
  scopeVersion: number
  /** Names of the parts that were asked for. */
  asked: string[]
  /** Names of the parts that it allows. */
  parts: string[]
  state: GrantState
  /** CAR of what allows to write it into the Space. */
  delegation: Uint8Array
  /** Unix milliseconds of the user's consent. */
  created: number
  /** Unix milliseconds of the last refresh. */
  refreshed: number
}

/** What is kept of a grant. */
export interface StoredGrant extends Omit<GrantUpdate, 'sealed'> {
  /** Nothing, once the clock has it. */
  sealed?: Uint8Array | undefined
  /** Why it has ended. */
  reason?: RunError | undefined
  /** The `seq` that the clock has; 0 if it has none. */
  published: number
  /** Unix milliseconds of the last change. */
  updated: number
  /**
   * Unix milliseconds of a refresh that is under way, or whose refresher was
   * killed, or has an answer that it cannot keep yet.
   */
  refreshing?: number | undefined
  /**
   * What the host has answered to a refresh whose refresher was killed, sealed
   * for the agent.
   */
  answer?: Uint8Array | undefined
}

/**
 * A session that is worth nothing to us any more, and still good for who has
 * it, until the host takes it back.
 */
export interface GrantReturn {
  /** No two have the same. */
  id: string
  space: string
  account: string
  /** Number of the grant that it was of. */
  seq: number
  /** Sealed by the agent that had it. */
  sealed: Uint8Array
  /** Unix seconds from which on the host has forgotten it by itself. */
  expiration: number
}

/**
 * What hosts have granted: at most one grant for an account in a Space. The
 * sealed form is kept until the clock has it, and never goes back to an
 * earlier one.
 */
export interface GrantStore {
  /** Keeps a request; forgets those that have expired by `now`. */
  addRequest(request: GrantRequest, now: number): Promise<void>

  /** @returns the request, which is still there */
  getRequest(state: string): Promise<GrantRequest | undefined>

  /** @returns the request, which nobody gets again */
  takeRequest(state: string): Promise<GrantRequest | undefined>

  /** @returns how many requests of the Space have not expired by `now` */
  countRequests(space: string, now: number): Promise<number>

  get(space: string, account: string): Promise<StoredGrant | undefined>

  /** @returns grants of the Space, in the order of their accounts */
  list(space: string): Promise<StoredGrant[]>

  /**
   * Keeps a newer state. Ends a refresh that is under way.
   *
   * @param now - Unix milliseconds
   * @param options.giveBack - what is to be given back for it, which is kept
   *   along with it or not at all
   * @param options.after - `seq` of the only state in whose place it is kept
   * @returns false when there is one that is as new, or another than that; it
   *   stays
   */
  put(
    update: GrantUpdate,
    now: number,
    options?: { giveBack?: GrantReturn | undefined; after?: number | undefined }
  ): Promise<boolean>

  /**
   * Notes that a grant has ended, unless there is a newer one.
   *
   * @param end.seq - of the grant that has
   */
  end(
    space: string,
    account: string,
    end: { seq: number; reason: RunError; now: number }
  ): Promise<void>

  /** Notes that a grant which had ended is good after all. */
  resume(
    space: string,
    account: string,
    resumption: { seq: number; now: number }
  ): Promise<void>

  /**
   * Takes a grant to refresh it, unless somebody else has it.
   *
   * @param options.owner - no two that may be at work have the same
   * @param options.now - Unix milliseconds
   * @param options.lease - milliseconds until somebody else may take it
   * @returns whether it was taken
   */
  lease(
    space: string,
    account: string,
    options: { owner: string; now: number; lease: number }
  ): Promise<boolean>

  /**
   * Notes that the request to refresh is about to be sent. From now on the
   * lease lasts as long as if it were taken now.
   *
   * @returns false when the grant is not the owner's any more
   */
  refreshing(
    space: string,
    account: string,
    options: { owner: string; now: number; lease: number }
  ): Promise<boolean>

  /**
   * Keeps what the host has answered to a refresh whose refresher was killed,
   * until the grant is at its next state.
   *
   * @param answer.seq - of the grant that is refreshed
   * @param answer.sealed - for the agent that has the grant
   * @returns false when the grant is at another state by now
   */
  answered(
    space: string,
    account: string,
    answer: { seq: number; sealed: Uint8Array }
  ): Promise<boolean>

  /** Gives the lease back; how a refresh has ended is known. */
  release(space: string, account: string, owner: string): Promise<void>

  /**
   * @param options.before - Unix milliseconds
   * @returns grants that the clock does not have, and that have neither changed
   *   nor been attempted since then: first those that were not attempted for
   *   the longest, so that none is in the way of others
   */
  pending(options: {
    before: number
    limit: number
  }): Promise<{ space: string; account: string }[]>

  /** Notes that it was tried to have the clock have it. */
  attempted(space: string, account: string, now: number): Promise<void>

  /** Notes that the clock has it; the sealed form is forgotten. */
  published(space: string, account: string, seq: number): Promise<void>

  /** Keeps a session that is to be given back. */
  addReturn(giveBack: GrantReturn): Promise<void>

  /** @returns what is to be given back of one account */
  returnsOf(space: string, account: string): Promise<GrantReturn[]>

  /**
   * What is to be given back, and was not attempted since `before`; first what
   * was not attempted for the longest. Forgets what has expired by `now`.
   */
  returns(options: {
    before: number
    now: number
    limit: number
  }): Promise<GrantReturn[]>

  /** Notes that a host was told, and has not confirmed. */
  attemptedReturn(id: string, now: number): Promise<void>

  /** Forgets what was given back. */
  removeReturn(id: string): Promise<void>
}
