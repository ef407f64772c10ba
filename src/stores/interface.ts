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
  /** CAR of the invocation with its proofs. */
  authority: Uint8Array
  /** Unix milliseconds. */
  created: number
}

export type RunState = 'queued' | 'running' | 'done' | 'failed'

/** One backup run. */
export interface Run extends RunRequest {
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
}

/** How a run ended. */
export interface RunResult {
  state: 'done' | 'failed'
  outcome?: unknown
  error?: RunError
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
   * @returns runs into the Space, newest first
   */
  list(space: string, options: { limit: number }): Promise<Run[]>

  /**
   * Takes the oldest run that is queued, or running with an expired lease.
   *
   * @param options.owner - no two claims that may be at work at the same time
   *   have the same
   * @param options.now - Unix milliseconds
   * @param options.lease - milliseconds until somebody else may take the run
   */
  claim(options: {
    owner: string
    now: number
    lease: number
  }): Promise<Run | undefined>

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
   * Ends a claimed run and keeps its receipt, both or none.
   *
   * @returns false when the run is not the owner's any more
   */
  finish(id: string, owner: string, result: RunResult): Promise<boolean>
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
