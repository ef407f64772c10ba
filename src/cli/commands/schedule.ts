import { delegate, DID } from '@ucanto/core'
import type { Delegation } from '@ucanto/interface'
import type { Command } from 'commander'
import type { Backup as Protocol } from '../../capabilities/index.ts'
import { SCHEDULE_ABILITIES } from '../../capabilities/index.ts'
import { Backup } from '../../client/index.ts'
import type { RhythmInput } from '../../client/schedule.ts'
import { expirationOf, proofsFor, serviceAuthority } from '../authority.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { UsageError } from '../errors.ts'
import {
  formatDuration,
  formatExpiration,
  formatFields,
  formatTable,
  parseDuration,
  printable,
} from '../format.ts'
import { readDelegation } from '../given-delegation.ts'
import { createIssuedDelegations, issuedFolder } from '../issued.ts'
import { readExpiration, type Flags } from '../options.ts'
import { INCLUDE_HELP, readParts } from '../parts.ts'
import { isSoon, reauthorizeNote } from '../reauthorize.ts'
import { askService } from '../service.ts'
import type { Session } from '../session.ts'
import { resolveAccount } from '../target.ts'

const DEFAULT_LIFETIME = '365d'

type AccountDID = `did:${string}:${string}`

/** `schedule` and what belongs to it: backups that the service makes by itself. */
export function createScheduleCommands(
  program: Command,
  context: CommandContext
): void {
  createScheduleCommand(program, context)
  createSchedulesCommand(program, context)
  createPauseCommand(program, context)
  createResumeCommand(program, context)
  createUnscheduleCommand(program, context)
}

function createScheduleCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('schedule')
    .description(
      'have the service back an account up again and again; once more, to change the times or to renew the delegation'
    )
    .argument('<account>', 'handle or DID')
    .option('--every <DURATION>', 'time between backups, as in 1h or 1d')
    .option(
      '--cron <EXPRESSION>',
      'minute, hour, day of the month, month, day of the week'
    )
    .option(
      '--timezone <NAME>',
      'where the clock of --cron stands, as in Europe/Berlin (default: UTC)'
    )
    .option('--include <PARTS>', INCLUDE_HELP)
    .option(
      '--delegation <FILE>',
      'what the service may do, made elsewhere: a file with it, or itself in base64 (default: a new one, as small as can be)'
    )
    .option(
      '--expires-in <DURATION>',
      `for how long the new delegation is, as in 24h or 365d, or never (default: ${DEFAULT_LIFETIME})`
    )
  agentCommand<[string]>(
    command,
    context,
    "bluesky-backups schedule alice.bsky.social --every 1h\nbluesky-backups schedule alice.bsky.social --cron '0 4 * * *' --timezone Europe/Berlin\nbluesky-backups schedule alice.bsky.social --every 1d --delegation grant.car",
    async ({ session, flags, io }, word) => {
      const rhythm = readRhythm(flags)
      const include = readParts(flags['include'] as string | undefined)
      const given = flags['delegation'] as string | undefined
      if (given !== undefined && flags['expiresIn'] !== undefined) {
        throw new UsageError(
          '--expires-in is for a new delegation; leave it out, or --delegation'
        )
      }
      const expiration = readExpiration(
        (flags['expiresIn'] as string | undefined) ?? DEFAULT_LIFETIME
      )
      const ready =
        given === undefined
          ? undefined
          : await readDelegation(given, '--delegation')
      const account = await resolveAccount(session, word, io.signal)
      // So that the backups go on where the agent's own clock stands.
      await session.clock()
      const { connection } = await session.service()
      const config = await serviceAuthority(session, ['backup/schedule'])
      const delegation =
        ready ??
        (await createDelegation(session, { account, include, expiration }))
      const { schedule } = await askService(() =>
        Backup.schedule(
          config,
          { ...rhythm, account, include, delegation },
          { connection, nonce: crypto.randomUUID() }
        )
      )
      const end = expirationOf(delegation)
      if (!ready && end < expiration && isSoon(end)) {
        session.warn(
          `what allows this agent itself to act in the Space ends on ${formatExpiration(end)}; log in again with \`bluesky-backups login EMAIL\`, and then schedule again`
        )
      }
      return showSchedule(schedule)
    }
  )
}

function createSchedulesCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('schedules')
    .description(
      'list what the service backs up by itself: when, how it went, and until when it may'
    )
  agentCommand(
    command,
    context,
    'bluesky-backups schedules --service https://backups.example',
    async ({ session, flags }) => {
      const { connection } = await session.service()
      const config = await serviceAuthority(session, ['backup/schedules'])
      const { schedules } = await askService(() =>
        Backup.schedules(config, { connection })
      )
      const renewals = schedules.map((schedule) => renewalOf(schedule, flags))
      return {
        json: {
          space: session.space(),
          schedules: schedules.map((schedule, at) => ({
            ...plain(schedule),
            renew: renewals[at]?.command ?? null,
          })),
        },
        text:
          schedules.length === 0
            ? 'no schedules yet; make one with `bluesky-backups schedule HANDLE --every 1h`'
            : [
                tableOf(schedules),
                ...schedules.flatMap((schedule, at) =>
                  notesOn(schedule, renewals[at])
                ),
              ].join('\n'),
      }
    }
  )
}

function createPauseCommand(program: Command, context: CommandContext): void {
  const command = program
    .command('pause')
    .description('make no backups of an account, until it is resumed')
    .argument('<account>', 'handle or DID')
    .option('--for <DURATION>', 'for some time only, as in 8h')
  agentCommand<[string]>(
    command,
    context,
    'bluesky-backups pause alice.bsky.social --for 8h',
    async ({ session, flags, io }, word) => {
      const until = readPause(flags['for'] as string | undefined)
      const account = await resolveAccount(session, word, io.signal)
      const { connection } = await session.service()
      const config = await serviceAuthority(session, ['backup/pause'])
      const { schedule } = await askService(() =>
        Backup.pause(
          config,
          { account, until },
          { connection, nonce: crypto.randomUUID() }
        )
      )
      return showSchedule(schedule)
    }
  )
}

function createResumeCommand(program: Command, context: CommandContext): void {
  const command = program
    .command('resume')
    .description('go on with the backups of an account, at the next time')
    .argument('<account>', 'handle or DID')
  agentCommand<[string]>(
    command,
    context,
    'bluesky-backups resume alice.bsky.social',
    async ({ session, io }, word) => {
      const account = await resolveAccount(session, word, io.signal)
      const { connection } = await session.service()
      const config = await serviceAuthority(session, ['backup/resume'])
      const { schedule } = await askService(() =>
        Backup.resume(
          config,
          { account },
          { connection, nonce: crypto.randomUUID() }
        )
      )
      return showSchedule(schedule)
    }
  )
}

function createUnscheduleCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('unschedule')
    .description(
      'end the backups of an account; the service forgets the delegation'
    )
    .argument('<account>', 'handle or DID')
  agentCommand<[string]>(
    command,
    context,
    'bluesky-backups unschedule alice.bsky.social',
    async ({ session, io }, word) => {
      const account = await resolveAccount(session, word, io.signal)
      const { connection } = await session.service()
      const config = await serviceAuthority(session, ['backup/unschedule'])
      const { schedule } = await askService(() =>
        Backup.unschedule(
          config,
          { account },
          { connection, nonce: crypto.randomUUID() }
        )
      )
      const cid = schedule?.delegation.cid.toString()
      const issued = await createIssuedDelegations(issuedFolder(session)).list()
      const own = issued.some(({ delegation }) => `${delegation.cid}` === cid)
      return {
        json: { account, schedule: schedule ? plain(schedule) : null },
        text: schedule
          ? [
              `${account} is not backed up by itself any more; its backups stay, and the service has forgotten the delegation`,
              ...(own
                ? [
                    `take the delegation back as well with \`bluesky-backups delegation revoke ${cid}\``,
                  ]
                : []),
            ].join('\n')
          : `there was no schedule of ${account}`,
      }
    }
  )
}

/** Lets the service do what the schedule needs, and nothing else. */
async function createDelegation(
  session: Session,
  {
    account,
    include,
    expiration,
  }: {
    account: AccountDID
    include: Protocol.Part[] | undefined
    expiration: number
  }
): Promise<Delegation> {
  const { client } = session
  const space = session.space()
  const { info } = await session.service()
  const delegation = await delegate({
    issuer: client.agent.issuer,
    audience: DID.parse(info.agent),
    capabilities: SCHEDULE_ABILITIES.map((can) => ({
      can,
      with: space,
      ...(can === 'backup/run'
        ? { nb: { account, ...(include ? { include } : {}) } }
        : {}),
    })) as never,
    proofs: proofsFor(client, space, SCHEDULE_ABILITIES),
    expiration,
  })
  await createIssuedDelegations(issuedFolder(session)).keep(delegation)
  return delegation
}

function readRhythm(flags: Flags): RhythmInput {
  const every = flags['every'] as string | undefined
  const cron = flags['cron'] as string | undefined
  const timezone = flags['timezone'] as string | undefined
  if ((every === undefined) === (cron === undefined)) {
    throw new UsageError(
      "say when: either --every, as in --every 1h, or --cron, as in --cron '0 4 * * *'"
    )
  }
  if (cron !== undefined) return { cron, timezone }
  if (timezone !== undefined) {
    throw new UsageError('--timezone goes with --cron; leave it out')
  }
  const seconds = parseDuration(every ?? '')
  if (!seconds) {
    throw new UsageError('--every: give a number and a unit, as in 1h or 1d')
  }
  return { every: seconds }
}

/** @returns Unix seconds */
function readPause(text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  const seconds = parseDuration(text)
  if (!seconds) {
    throw new UsageError('--for: give a number and a unit, as in 8h or 2d')
  }
  return Math.floor(Date.now() / 1000) + seconds
}

function showSchedule(schedule: Protocol.Schedule) {
  return {
    json: { schedule: plain(schedule) },
    text: formatFields([
      ['account', printable(schedule.account)],
      ['when', describeRhythm(schedule)],
      [
        'parts',
        schedule.include && printable(['repo', ...schedule.include].join(', ')),
      ],
      ['state', describeState(schedule)],
      ['next run', describeTime(schedule.next)],
      ['delegation', schedule.delegation.cid.toString()],
      ['ends', describeEnd(schedule)],
    ]),
  }
}

function tableOf(schedules: Protocol.Schedule[]): string {
  return formatTable(
    ['ACCOUNT', 'WHEN', 'STATE', 'NEXT RUN', 'LAST RUN', 'DELEGATION ENDS'],
    schedules.map((schedule) => [
      printable(schedule.account),
      describeRhythm(schedule),
      describeState(schedule),
      describeTime(schedule.next),
      describeLastRun(schedule),
      describeEnd(schedule),
    ])
  )
}

/** What should not go unseen, one a line. */
function notesOn(
  { account, state, reason, lastRun, authorization }: Protocol.Schedule,
  renewal: Renewal | undefined
): string[] {
  const problem = (what: string, error: { name: string; message: string }) =>
    printable(
      `${account} ${what}: ${error.name}: ${error.message.replace(/\s+/g, ' ')}`
    )
  return [
    ...(reason ? [problem(state, reason)] : []),
    ...(lastRun?.error ? [problem('failed', lastRun.error)] : []),
    ...(authorization ? reauthorizeNote({ account, ...authorization }) : []),
    ...(renewal
      ? [
          printable(
            `the delegation for ${account} ${renewal.when}; renew it with \`${renewal.command}\``
          ),
        ]
      : []),
  ]
}

interface Renewal {
  when: string
  command: string
}

/** How to renew a delegation, if it has ended or is about to. */
function renewalOf(
  schedule: Protocol.Schedule,
  flags: Flags
): Renewal | undefined {
  const { account, every, cron, timezone, include } = schedule
  const { expiration } = schedule.delegation
  const end = expiration ?? Infinity
  const left = end * 1000 - Date.now()
  if (!isSoon(end) && schedule.state !== 'stopped') return undefined
  const service = flags['service'] as string | undefined
  const words = [
    'bluesky-backups',
    'schedule',
    account,
    ...(every === undefined
      ? ['--cron', cron ?? '', '--timezone', timezone ?? '']
      : ['--every', formatDuration(every)]),
    ...(include ? ['--include', include.join(',') || 'none'] : []),
    ...(service === undefined ? [] : ['--service', service]),
  ]
  const when =
    left <= 0
      ? 'has ended'
      : isSoon(end)
        ? `ends in ${formatDuration(roundedDown(left))}`
        : 'does not do any more'
  return { when, command: words.map(quoted).join(' ') }
}

/** @returns whole seconds, hours or days, whatever says enough */
function roundedDown(ms: number): number {
  const seconds = Math.floor(ms / 1000)
  const unit = [86_400, 3600, 60].find((size) => seconds >= size) ?? 1
  return Math.floor(seconds / unit) * unit
}

/** A word as a shell takes it for what it is, whatever the service said. */
function quoted(word: string): string {
  return /^[\w.:/,@%+-]+$/.test(word)
    ? word
    : `'${word.replaceAll("'", `'\\''`)}'`
}

function describeRhythm({ every, cron, timezone }: Protocol.Schedule): string {
  return every === undefined
    ? printable(`${cron} (${timezone})`)
    : `every ${formatDuration(every)}`
}

function describeState({ state, pausedUntil }: Protocol.Schedule): string {
  return pausedUntil === undefined
    ? state
    : `${state} until ${describeTime(pausedUntil)}`
}

function describeLastRun({ lastRun }: Protocol.Schedule): string {
  return lastRun
    ? `${describeTime(lastRun.finished)} ${printable(lastRun.outcome)}`
    : 'none yet'
}

function describeEnd({ delegation }: Protocol.Schedule): string {
  return formatExpiration(delegation.expiration ?? Infinity)
}

/** @param time - Unix milliseconds */
function describeTime(time: number | undefined): string {
  return time === undefined ? 'none' : formatExpiration(time / 1000)
}

/** A schedule as JSON; times as they are told everywhere on the command line. */
function plain(schedule: Protocol.Schedule) {
  const { next, pausedUntil, lastRun, delegation, created } = schedule
  const iso = (time: number | undefined) =>
    time === undefined ? null : describeTime(time)
  return {
    ...schedule,
    next: iso(next),
    ...(pausedUntil === undefined ? {} : { pausedUntil: iso(pausedUntil) }),
    lastRun: lastRun
      ? {
          ...lastRun,
          run: lastRun.run.toString(),
          finished: iso(lastRun.finished),
        }
      : null,
    delegation: {
      cid: delegation.cid.toString(),
      expiration:
        delegation.expiration === undefined
          ? null
          : formatExpiration(delegation.expiration),
    },
    created: iso(created),
  }
}
