/**
 * Schedules at a service: backups that it makes again and again.
 *
 * @packageDocumentation
 */
import type { Delegation } from '@ucanto/interface'
import { Backup } from '../capabilities/index.ts'
import { attachmentsOf } from './attach.ts'
import {
  commonOf,
  type InvocationConfig,
  type InvocationOptions,
} from './connection.ts'

/** DID of an account. */
type AccountDID = `did:${string}:${string}`

/** When to back up: every so many seconds, or by the clock on a wall. */
export type RhythmInput =
  | { every: number; cron?: undefined; timezone?: undefined }
  | { every?: undefined; cron: string; timezone?: string | undefined }

/** What to back up, when, and by what right. */
export type ScheduleInput = RhythmInput & {
  /** DID of the account. */
  account: AccountDID
  /** What to back up beside the repository; all but conversations, if left out. */
  include?: Backup.Part[] | undefined
  /**
   * What the service may do: `backup/run` and what a run needs in the Space.
   * Its audience is the `did:key` of the service.
   */
  delegation: Delegation
}

/**
 * Has an account backed up again and again. Done once more, it replaces the
 * rhythm and the delegation. Answers with the schedule and its next time.
 *
 * @example
 * ```ts
 * const { ok, error } = await Backup.schedule(
 *   { issuer: agent, with: space, proofs },
 *   { account: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz', every: 3600, delegation },
 *   { connection }
 * )
 * ```
 */
export async function schedule(
  config: InvocationConfig,
  { account, every, cron, timezone, include, delegation }: ScheduleInput,
  options: InvocationOptions
) {
  const attachments = await attachmentsOf(config, options, { delegation })
  const invocation = Backup.schedule.invoke({
    ...commonOf(config, options),
    nb: {
      account,
      ...(every === undefined ? {} : { every }),
      ...(cron === undefined ? {} : { cron }),
      ...(timezone === undefined ? {} : { timezone }),
      ...(include ? { include } : {}),
      delegation: delegation.cid,
    },
    facts: attachments.facts,
  })
  attachments.attachTo(invocation)
  return (await invocation.execute(options.connection)).out
}

/** Lists the schedules of the Space. */
export async function schedules(
  config: InvocationConfig,
  options: InvocationOptions
) {
  const invocation = Backup.schedules.invoke(commonOf(config, options))
  return (await invocation.execute(options.connection)).out
}

/**
 * Pauses a schedule.
 *
 * @param input.until - Unix seconds from which on there are backups again; for
 *   as long as nobody resumes it, if left out
 */
export async function pause(
  config: InvocationConfig,
  { account, until }: { account: AccountDID; until?: number | undefined },
  options: InvocationOptions
) {
  const invocation = Backup.pause.invoke({
    ...commonOf(config, options),
    nb: { account, ...(until === undefined ? {} : { until }) },
  })
  return (await invocation.execute(options.connection)).out
}

/** Goes on with a schedule, at its next regular time. */
export async function resume(
  config: InvocationConfig,
  { account }: { account: AccountDID },
  options: InvocationOptions
) {
  const attachments = await attachmentsOf(config, options)
  const invocation = Backup.resume.invoke({
    ...commonOf(config, options),
    nb: { account },
    facts: attachments.facts,
  })
  attachments.attachTo(invocation)
  return (await invocation.execute(options.connection)).out
}

/** Ends a schedule. Answers with what there was, if there was one. */
export async function unschedule(
  config: InvocationConfig,
  { account }: { account: AccountDID },
  options: InvocationOptions
) {
  const invocation = Backup.unschedule.invoke({
    ...commonOf(config, options),
    nb: { account },
  })
  return (await invocation.execute(options.connection)).out
}
