/**
 * Capabilities of schedules: backups that the service makes again and again,
 * by a delegation that it keeps. They belong to `backup/*`; `with` is the Space
 * that holds the backups, which has one schedule at most for each account.
 *
 * @packageDocumentation
 */
import type { Failure, Link, ServiceMethod } from '@ucanto/interface'
import { capability, Schema } from '@ucanto/validator'
import {
  AccountDID,
  and,
  equal,
  equalLink,
  equalWith,
  narrower,
  Parts,
  SpaceDID,
  textUpTo,
} from './common.ts'
import type { SpaceNotProvisioned, TryLater } from './common.ts'

/** Characters of a cron expression, and of the name of a time zone. */
const MAX_CRON_LENGTH = 500
const MAX_TIMEZONE_LENGTH = 64

/**
 * Backs an account up again and again, from now on. Whoever schedules it again
 * replaces the rhythm and the delegation: that is how a delegation is renewed.
 */
export const schedule = capability({
  can: 'backup/schedule',
  with: SpaceDID,
  nb: Schema.struct({
    /** The account: a `did:plc` or `did:web`. */
    account: AccountDID,
    /** Seconds between two backups; or else `cron`. */
    every: Schema.integer().optional(),
    /** Minute, hour, day of the month, month, day of the week. */
    cron: textUpTo(MAX_CRON_LENGTH).optional(),
    /** Where the clock of `cron` stands, as in `Europe/Berlin`; or else UTC. */
    timezone: textUpTo(MAX_TIMEZONE_LENGTH).optional(),
    /** What to back up beside the repository; all but conversations, if left out. */
    include: Parts.optional(),
    /**
     * What the service may do: `backup/run` and what a run needs in the Space,
     * delegated to the service's `did:key`. Its blocks are attached.
     */
    delegation: Schema.link({ version: 1 }),
  }),
  derives: (claimed, delegated) =>
    and(
      equalWith(claimed, delegated),
      equal(claimed.nb.account, delegated.nb.account, 'account'),
      equal(
        claimed.nb.every?.toString(),
        delegated.nb.every?.toString(),
        'every'
      ),
      equal(claimed.nb.cron, delegated.nb.cron, 'cron'),
      equal(claimed.nb.timezone, delegated.nb.timezone, 'timezone'),
      narrower(claimed.nb.include, delegated.nb.include, 'include'),
      equalLink(claimed.nb.delegation, delegated.nb.delegation, 'delegation')
    ),
})

/** Lists the schedules of the Space. */
export const schedules = capability({
  can: 'backup/schedules',
  with: SpaceDID,
  derives: equalWith,
})

/** Makes no backups of an account for some time, or until it is resumed. */
export const pause = capability({
  can: 'backup/pause',
  with: SpaceDID,
  nb: Schema.struct({
    account: AccountDID,
    /** Unix seconds from which on there are backups again. */
    until: Schema.integer().optional(),
  }),
  derives: (claimed, delegated) =>
    and(
      equalWith(claimed, delegated),
      equal(claimed.nb.account, delegated.nb.account, 'account'),
      equal(
        claimed.nb.until?.toString(),
        delegated.nb.until?.toString(),
        'until'
      )
    ),
})

/** Goes on at the next regular time. */
export const resume = capability({
  can: 'backup/resume',
  with: SpaceDID,
  nb: Schema.struct({ account: AccountDID }),
  derives: (claimed, delegated) =>
    and(
      equalWith(claimed, delegated),
      equal(claimed.nb.account, delegated.nb.account, 'account')
    ),
})

/** Ends a schedule; the service forgets the delegation. */
export const unschedule = capability({
  can: 'backup/unschedule',
  with: SpaceDID,
  nb: Schema.struct({ account: AccountDID }),
  derives: (claimed, delegated) =>
    and(
      equalWith(claimed, delegated),
      equal(claimed.nb.account, delegated.nb.account, 'account')
    ),
})

export type ScheduleState = 'active' | 'paused' | 'stopped'

/** When there are backups: after so many seconds, or by the clock on a wall. */
export type Rhythm =
  | { every: number; cron?: undefined; timezone?: undefined }
  | { every?: undefined; cron: string; timezone: string }

/** A schedule as it stands. Times in Unix milliseconds, unless said otherwise. */
export type Schedule = Rhythm & {
  account: string
  /** Parts beside the repository; all there are, if left out. */
  include?: string[]
  state: ScheduleState
  /** Why it is paused or stopped, where nobody asked for it. */
  reason?: { name: string; message: string }
  /** When it is paused for some time: until then. */
  pausedUntil?: number
  /** When there is the next backup; none is known while it waits for somebody. */
  next?: number
  lastRun?: LastRun
  /** What the service was granted for what only the owner may read, if it was. */
  authorization?: {
    state: 'active' | 'ended'
    /** Why it has ended. */
    reason?: { name: string; message: string }
    /** Unix seconds until which there has to be another. */
    expiration: number
  }
  delegation: {
    cid: Link
    /** Unix seconds; the earliest in the chain of proofs, if there is any. */
    expiration?: number
  }
  created: number
}

/** What came of a schedule's latest run. */
export interface LastRun {
  run: Link
  /** Unix milliseconds. */
  finished: number
  outcome: 'first' | 'incremental' | 'unchanged' | 'failed'
  error?: { name: string; message: string }
}

export interface ScheduleSuccess {
  schedule: Schedule
}

export interface SchedulesSuccess {
  /** In the order of their accounts. */
  schedules: Schedule[]
}

export interface UnscheduleSuccess {
  /** What there was, if there was one. */
  schedule?: Schedule
}

/** The times cannot be kept: both kinds or none, too often, never, no zone. */
export interface InvalidRhythm extends Failure {
  name: 'InvalidRhythm'
}

/** Something that a run needs is not delegated; the message says what. */
export interface InsufficientDelegation extends Failure {
  name: 'InsufficientDelegation'
}

/** The delegation is for somebody else than the service's `did:key`. */
export interface DelegationAudienceMismatch extends Failure {
  name: 'DelegationAudienceMismatch'
}

/** The delegation is for another Space. */
export interface DelegationSpaceMismatch extends Failure {
  name: 'DelegationSpaceMismatch'
}

/** The delegation allows backups of another account. */
export interface DelegationAccountMismatch extends Failure {
  name: 'DelegationAccountMismatch'
}

/** The delegation, or a proof of it, holds no more. */
export interface DelegationExpired extends Failure {
  name: 'DelegationExpired'
}

/** The delegation, or a proof of it, ends before there is a first backup. */
export interface DelegationEndsTooSoon extends Failure {
  name: 'DelegationEndsTooSoon'
}

/** The delegation, or a proof of it, was taken back. */
export interface DelegationRevoked extends Failure {
  name: 'DelegationRevoked'
}

/** More schedules in one Space than the service keeps. */
export interface TooManySchedules extends Failure {
  name: 'TooManySchedules'
}

/** The Space has no schedule of the account. */
export interface ScheduleNotFound extends Failure {
  name: 'ScheduleNotFound'
}

/** The end of a pause is over already, or too far away. */
export interface InvalidPause extends Failure {
  name: 'InvalidPause'
}

/** Why a delegation does not do for a schedule. */
export type DelegationFailure =
  | InsufficientDelegation
  | DelegationAudienceMismatch
  | DelegationSpaceMismatch
  | DelegationAccountMismatch
  | DelegationExpired
  | DelegationEndsTooSoon
  | DelegationRevoked

export type ScheduleFailure =
  | InvalidRhythm
  | DelegationFailure
  | SpaceNotProvisioned
  | TooManySchedules
  | TryLater
export type SchedulesFailure = TryLater
export type PauseFailure = ScheduleNotFound | InvalidPause | TryLater
export type ResumeFailure =
  ScheduleNotFound | DelegationFailure | SpaceNotProvisioned | TryLater
export type UnscheduleFailure = TryLater

export interface ScheduleService {
  schedule: ServiceMethod<BackupSchedule, ScheduleSuccess, ScheduleFailure>
  schedules: ServiceMethod<BackupSchedules, SchedulesSuccess, SchedulesFailure>
  pause: ServiceMethod<BackupPause, ScheduleSuccess, PauseFailure>
  resume: ServiceMethod<BackupResume, ScheduleSuccess, ResumeFailure>
  unschedule: ServiceMethod<
    BackupUnschedule,
    UnscheduleSuccess,
    UnscheduleFailure
  >
}

export type BackupSchedule = ReturnType<typeof schedule.create>
export type BackupSchedules = ReturnType<typeof schedules.create>
export type BackupPause = ReturnType<typeof pause.create>
export type BackupResume = ReturnType<typeof resume.create>
export type BackupUnschedule = ReturnType<typeof unschedule.create>
