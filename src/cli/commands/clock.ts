import type { Command } from 'commander'
import * as dagCbor from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import type { Clock, EventLink } from '../../backup/index.ts'
import { MissingBlockError, readState } from '../../space/index.ts'
import { drawGraph, toDot } from '../clock-graph.ts'
import { compare, findHeads, mergeHead, sorted } from '../clock-heads.ts'
import {
  readHistory,
  readHistoryEvent,
  type HistoryEvent,
} from '../clock-history.ts'
import {
  inspectState,
  summarizeState,
  type AccountDetails,
} from '../clock-state.ts'
import {
  describeAccount,
  describeComparison,
  describeEvent,
  describeHead,
  describeMerge,
  oneLine,
  rowOf,
  shortLines,
  type LoggedEvent,
} from '../clock-text.ts'
import {
  advanceTo,
  bringEvents,
  createEventSource,
  knowsEvent,
} from '../clock-transfer.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { MissingEventError, UsageError } from '../errors.ts'
import { formatCount, formatExpiration, formatFields } from '../format.ts'
import type { Io } from '../io.ts'
import { readLimit } from '../options.ts'
import { createProgress } from '../progress.ts'
import type { Session } from '../session.ts'
import { inWaves } from '../waves.ts'

const SHA2_256_CODE = 0x12

const EVENT_HELP = 'CID of the event, as `clock log` shows it'

/** `clock`: the Merkle clock of the Space. */
export function createClockCommand(
  program: Command,
  context: CommandContext
): void {
  const clock = program
    .command('clock')
    .description(
      'look at the Merkle clock of the Space, mend it, and move it to another service'
    )
  createHeadCommand(clock, context)
  createLogCommand(clock, context)
  createInspectCommand(clock, context)
  createAdvanceCommand(clock, context)
  createMergeCommand(clock, context)
  createForkCommand(clock, context)
  createDivergeCommand(clock, context)
}

function createHeadCommand(clock: Command, context: CommandContext): void {
  const command = clock
    .command('head')
    .description('show the events at the head of the clock')
  agentCommand(
    command,
    context,
    'bluesky-backups clock head --service https://backups.example',
    async ({ session }) => {
      const head = sorted(await (await session.clock()).head())
      return {
        json: { ...placeOf(session), head },
        text: describeHead(head),
      }
    }
  )
}

function createLogCommand(clock: Command, context: CommandContext): void {
  const command = clock
    .command('log')
    .description('show events from the head of the clock backwards')
    .option('--graph', 'draw the lines of history')
    .option('--dot', 'print the history for Graphviz')
    .option('--limit <NUMBER>', 'events, at most', '20')
  agentCommand(
    command,
    context,
    'bluesky-backups clock log --graph --limit 50\nbluesky-backups clock log --dot | dot -Tsvg > clock.svg',
    async ({ session, flags, io }) => {
      const limit = readLimit(flags['limit'] as string)
      const views = ['graph', 'dot', 'json'].filter((view) => flags[view])
      if (views.length > 1) {
        throw new UsageError(
          `give one of ${views.map((view) => `--${view}`).join(' and ')}`
        )
      }
      const head = await (await session.clock()).head()
      const { events, more } = await readHistory(session.reader, head, {
        limit,
        signal: io.signal,
      })
      const isHead = new Set(head.map(String))
      const logged = await inWaves(events, (event) =>
        logEvent(session, event, isHead.has(event.event))
      )
      io.signal.throwIfAborted()
      return {
        json: {
          ...placeOf(session),
          events: logged.map(({ error, ...event }) => ({
            ...event,
            error: error ? nameAndMessage(error) : null,
          })),
          more,
        },
        text: flags['dot']
          ? toDot(logged.map((event) => rowOf(event, shortLines(event))))
          : logged.length === 0
            ? 'no events yet'
            : flags['graph']
              ? drawGraph(
                  logged.map((event) => rowOf(event, shortLines(event)))
                ).join('\n')
              : [
                  ...logged.map(describeEvent),
                  ...(more
                    ? ['there are earlier events; --limit shows more']
                    : []),
                ].join('\n\n'),
      }
    }
  )
}

function createInspectCommand(clock: Command, context: CommandContext): void {
  const command = clock
    .command('inspect')
    .description('show one event and the state below it')
    .argument('<event>', EVENT_HELP)
  agentCommand(
    command,
    context,
    'bluesky-backups clock inspect bafyrei…',
    async ({ session, io }, word: string) => {
      const event = await readNamedEvent(session, parseEvent(word))
      let accounts: AccountDetails[] | undefined
      let error: Error | undefined
      try {
        accounts = await inspectState(session.reader, event.state)
      } catch (cause) {
        error = cause instanceof Error ? cause : new Error(String(cause))
      }
      io.signal.throwIfAborted()
      const failed = !!error || !!accounts?.some((account) => account.error)
      return {
        failed,
        json: {
          space: session.space(),
          event: event.event,
          parents: event.parents,
          state: event.state.toString(),
          accounts:
            accounts?.map(({ error, authorizations, ...account }) => ({
              ...account,
              authorizations: authorizations.map((each) => ({
                ...each,
                expiration: isoTime(each.expiration),
              })),
              error: error ? nameAndMessage(error) : null,
            })) ?? null,
          error: error ? nameAndMessage(error) : null,
        },
        text: [
          formatFields([
            ['event', event.event],
            ['parents', event.parents.join(', ') || 'none'],
            ['state', event.state.toString()],
            ['error', error && oneLine(error)],
          ]),
          ...(accounts ?? []).map(describeAccount),
        ].join('\n\n'),
      }
    }
  )
}

function createAdvanceCommand(clock: Command, context: CommandContext): void {
  const command = clock
    .command('advance')
    .description('tell the clock about an event that is in the Space')
    .argument('<event>', EVENT_HELP)
  agentCommand(
    command,
    context,
    'bluesky-backups clock advance bafyrei… --service https://backups.example',
    async ({ session, io }, word: string) => {
      const { link, event, block, state } = await readNamedEvent(
        session,
        parseEvent(word)
      )
      // A head without a state stops every merge.
      await readState(session.reader, state).catch((cause: unknown) => {
        throw new MissingEventError(
          `the state of the event ${event} cannot be read: ${messageOf(cause)}; the clock is left as it is`,
          { cause }
        )
      })
      const clock = await session.clock()
      const isNew = !(await knowsEvent(clock, link))
      if (isNew) await advanceTo(session, clock, { link, block }, io.signal)
      const head = sorted(await clock.head())
      return {
        json: { ...placeOf(session), event, advanced: isNew, head },
        text: `${isNew ? 'the clock knows the event now' : 'the clock knew the event already'}; its head:\n${describeHead(head)}`,
      }
    }
  )
}

function createMergeCommand(clock: Command, context: CommandContext): void {
  const command = clock
    .command('merge')
    .description('merge the heads of the clock into one event')
  agentCommand(
    command,
    context,
    'bluesky-backups clock merge --service https://backups.example',
    async ({ session, io }) => {
      const clock = await session.clock()
      const { merges, head } = await mergeHead(session, io, clock)
      return {
        failed: head.length > 1,
        json: { ...placeOf(session), merges, head },
        text:
          merges.length === 0
            ? head.length === 0
              ? 'no events yet; nothing to merge'
              : head.length === 1
                ? `nothing to merge: the clock has one head\n${head.join('\n')}`
                : `nothing was merged\n${describeHead(head)}`
            : [...merges.map(describeMerge), describeHead(head)].join('\n'),
      }
    }
  )
}

function createForkCommand(clock: Command, context: CommandContext): void {
  const command = clock
    .command('fork')
    .description(
      'move the clock to another service, from what is in the Space; the old service may be gone'
    )
    .requiredOption('--to <URL>', 'the service to move it to')
    .option(
      '--event <CID>',
      "an event to start from, as often as need be; the heads of this agent's own clock and of --service, if left out",
      (word: string, words: string[] = []) => [...words, word]
    )
  agentCommand(
    command,
    context,
    'bluesky-backups clock fork --to https://other.example\nbluesky-backups clock fork --to https://other.example --event bafyrei…',
    async ({ session, flags, io }) => {
      const url = readServiceUrl('--to', flags['to'] as string)
      const given = (flags['event'] as string[] | undefined)?.map(parseEvent)
      const from = given ?? (await findHeads(session))
      if (from.length === 0) {
        throw new MissingEventError(
          'no event of the clock is known here; name the last one with --event CID, as `clock head`, `status` or `backup run --json` have shown it'
        )
      }
      const clock = session.clockAt(await session.findService(url))
      const events = await bring(session, io, clock, from)
      const head = sorted(await clock.head())
      return {
        json: {
          space: session.space(),
          to: url.href,
          from: sorted(from),
          events,
          head,
        },
        text: [
          events === 0
            ? `${url.href} has all events already; its head:`
            : `${url.href} was told of ${formatCount(events, 'event')}; its head:`,
          describeHead(head),
          `work with it from now on: --service ${url.href}, or BLUESKY_BACKUPS_SERVICE_URL`,
        ].join('\n'),
      }
    }
  )
}

function createDivergeCommand(clock: Command, context: CommandContext): void {
  const command = clock
    .command('diverge')
    .description('compare the clock with that of another service')
    .requiredOption('--with <URL>', 'the other service')
    .option(
      '--merge',
      'bring the events of each to the other, and merge their heads'
    )
  agentCommand(
    command,
    context,
    'bluesky-backups clock diverge --service https://backups.example --with https://other.example --merge',
    async ({ session, flags, io }) => {
      const url = readServiceUrl('--with', flags['with'] as string)
      const here = await session.clock()
      const there = session.clockAt(await session.findService(url))
      const before = await compare(here, there)
      const { service } = placeOf(session)
      const nameOfHere = service ?? "this agent's own clock"
      if (!flags['merge'] || before.relation === 'same') {
        return {
          failed: before.relation !== 'same',
          json: { ...placeOf(session), with: url.href, ...before },
          text: describeComparison(before, nameOfHere, url.href),
        }
      }
      const events = {
        here: await bring(session, io, here, await there.head()),
        there: await bring(session, io, there, await here.head()),
      }
      const { merges } = await mergeHead(session, io, here)
      await bring(session, io, there, await here.head())
      const after = await compare(here, there)
      return {
        failed: after.relation !== 'same',
        json: {
          ...placeOf(session),
          with: url.href,
          before,
          events,
          merges,
          ...after,
        },
        text: [
          `${nameOfHere} was told of ${formatCount(events.here, 'event')}, ${url.href} of ${formatCount(events.there, 'event')}`,
          ...merges.map(describeMerge),
          describeComparison(after, nameOfHere, url.href),
        ].join('\n'),
      }
    }
  )
}

async function logEvent(
  session: Session,
  { event, parents, state, error }: HistoryEvent,
  isHead: boolean
): Promise<LoggedEvent> {
  const logged: LoggedEvent = {
    event,
    parents,
    state: state?.toString() ?? null,
    isHead,
    accounts: null,
    error,
  }
  if (!state) return logged
  try {
    logged.accounts = await summarizeState(session.reader, state)
  } catch (error) {
    logged.error = error instanceof Error ? error : new Error(String(error))
  }
  return logged
}

/** Brings events to a clock, and shows how far it is. */
async function bring(
  session: Session,
  io: Io,
  clock: Clock,
  heads: EventLink[]
): Promise<number> {
  const display = createProgress(io)
  try {
    return await bringEvents(clock, createEventSource(session), heads, {
      signal: io.signal,
      onProgress: (read, told) =>
        display.update(
          `${formatCount(read, 'event')} read, ${told.toLocaleString('en-US')} told`,
          told,
          read
        ),
    })
  } finally {
    display.end()
  }
}

/**
 * Reads an event that the user named.
 *
 * @throws {@link MissingEventError}
 */
async function readNamedEvent(session: Session, link: EventLink) {
  const event = await readHistoryEvent(session.reader, link)
  if (event.block) return event
  throw new MissingEventError(
    event.error instanceof MissingBlockError
      ? `the Space does not have the event ${event.event}; \`bluesky-backups clock log\` shows those it has`
      : `the event ${event.event} cannot be read: ${event.error.message}`,
    { cause: event.error }
  )
}

/** @throws {@link UsageError} */
function parseEvent(word: string): EventLink {
  let cid: CID | undefined
  try {
    cid = CID.parse(word)
  } catch {
    // Told below, as with a CID of something else.
  }
  if (
    cid?.version !== 1 ||
    cid.code !== dagCbor.code ||
    cid.multihash.code !== SHA2_256_CODE
  ) {
    throw new UsageError(
      `"${word}" is not the CID of an event; \`bluesky-backups clock log\` shows those of this clock`
    )
  }
  return cid as EventLink
}

function readServiceUrl(flag: string, text: string): URL {
  const url = URL.parse(text)
  if (!url || !/^https?:$/.test(url.protocol)) {
    throw new UsageError(`${flag}: must be an http or https URL`)
  }
  return url
}

function placeOf(session: Session) {
  return {
    space: session.space(),
    service: session.config.serviceUrl?.href ?? null,
  }
}

/** @param expiration - Unix seconds; of others, and so perhaps no time at all */
function isoTime(expiration: number): string | null {
  const text = formatExpiration(expiration)
  return text === 'never' ? null : text
}

function nameAndMessage({ name, message }: Error): {
  name: string
  message: string
} {
  return { name, message }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
