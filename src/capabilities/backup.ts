/**
 * Capabilities of backups. `with` is the Space that holds them.
 *
 * @packageDocumentation
 */
import type { Failure, Link, ServiceMethod } from '@ucanto/interface'
import { capability, Schema } from '@ucanto/validator'
import type { Outcome, Progress } from '../backup/interface.ts'
import {
  AccountDID,
  and,
  equal,
  equalLink,
  equalWith,
  narrower,
  Parts,
  SpaceDID,
} from './common.ts'
import type { SpaceNotProvisioned, TryLater } from './common.ts'
import type { InsufficientDelegation, ScheduleService } from './schedule.ts'

/**
 * How far a run is, and what it came to: the `ok` of its receipt. They are what
 * the pipeline tells, whoever runs it.
 */
export type { Outcome as RunOutcome, Progress as RunProgress }
export {
  DEFAULT_PARTS,
  PARTS,
  PRIVATE_PARTS,
  type Part,
  type PrivatePart,
} from './common.ts'
export * from './schedule.ts'

/** All of `backup/*`. */
export const backup = capability({
  can: 'backup/*',
  with: SpaceDID,
  derives: equalWith,
})

/**
 * Backs an account up now. The answer comes at once; what becomes of the run
 * is told by `backup/status` and by the receipt of the task that it forks.
 */
export const run = capability({
  can: 'backup/run',
  with: SpaceDID,
  nb: Schema.struct({
    /** The account: a `did:plc` or `did:web`. */
    account: AccountDID,
    /** What to back up beside the repository; see {@link DEFAULT_PARTS}. */
    include: Parts.optional(),
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
      equalLink(claimed.nb.delegation, delegated.nb.delegation, 'delegation')
    ),
})

/** Runs that one `backup/status` answers at most. */
export const MAX_RUNS = 200

/** Tells how far runs are. */
export const status = capability({
  can: 'backup/status',
  with: SpaceDID,
  nb: Schema.struct({
    /** One run; the latest of the Space, if left out. */
    run: Schema.link({ version: 1 }).optional(),
    /** Only runs of this account. */
    account: AccountDID.optional(),
    /** The most runs to answer, up to {@link MAX_RUNS}; a few, if left out. */
    limit: Schema.integer().greaterThan(0).optional(),
  }),
  derives: (claimed, delegated) =>
    and(
      equalWith(claimed, delegated),
      equalLink(claimed.nb.run, delegated.nb.run, 'run'),
      equal(claimed.nb.account, delegated.nb.account, 'account')
    ),
})

/**
 * The task that `backup/run` forks: the service issues it to itself, and its
 * receipt concludes the run. Nobody else can invoke it.
 */
export const perform = capability({
  can: 'backup/perform',
  with: Schema.did(),
  nb: Schema.struct({
    space: SpaceDID,
    account: AccountDID,
    /** The invocation of `backup/run`. */
    cause: Schema.link({ version: 1 }),
  }),
  derives: equalWith,
})

export interface RunSuccess {
  /** The task of the run: ask `backup/status` or `/receipt/:run` for it. */
  run: Link
}

/** More runs wait, in the Space or for the agent, than the service keeps. */
export interface TooManyRuns extends Failure {
  name: 'TooManyRuns'
}

export type RunFailure =
  InsufficientDelegation | SpaceNotProvisioned | TooManyRuns | TryLater

export type RunState = 'queued' | 'running' | 'done' | 'failed'

/** One run. Times in Unix milliseconds, sizes in bytes. */
export interface RunStatus {
  run: Link
  account: string
  state: RunState
  created: number
  started?: number
  finished?: number
  /** How often it was begun. */
  attempts: number
  /** How far it is, or was when it ended. */
  progress?: Progress
  outcome?: Outcome
  error?: {
    name: string
    message: string
    /** Seconds from the end of the run until another is worth it. */
    retryAfter?: number
  }
}

export interface StatusSuccess {
  /** Newest first. */
  runs: RunStatus[]
}

/** There is no such run in this Space. */
export interface RunNotFound extends Failure {
  name: 'RunNotFound'
}

export type StatusFailure = RunNotFound | TryLater

export interface BackupService extends ScheduleService {
  run: ServiceMethod<BackupRun, RunSuccess, RunFailure>
  status: ServiceMethod<BackupStatus, StatusSuccess, StatusFailure>
}

export type BackupRun = ReturnType<typeof run.create>
export type BackupStatus = ReturnType<typeof status.create>
