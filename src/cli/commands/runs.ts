import type { Link } from '@ucanto/interface'
import type { Command } from 'commander'
import { CID } from 'multiformats/cid'
import { Backup as Protocol } from '../../capabilities/index.ts'
import { followRuns } from '../../client/index.ts'
import { proofsFor } from '../authority.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { UsageError } from '../errors.ts'
import {
  formatBytes,
  formatExpiration,
  formatFields,
  formatSeconds,
  formatTable,
  printable,
} from '../format.ts'
import { printLine, type Io, type Result } from '../io.ts'
import { readLimit, type Flags } from '../options.ts'
import { countSeen, createProgress, describeProgress } from '../progress.ts'
import { listRuns } from '../run.ts'
import type { Session } from '../session.ts'
import { resolveAccount } from '../target.ts'

type Run = Protocol.RunStatus

/** Which runs are meant. */
interface Meant {
  run?: Link
  account?: `did:${string}:${string}`
}

/** `runs`: what the service did for the Space, and what it does. */
export function createRunsCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('runs')
    .description(
      'list the backup runs of the service, newest first; show one with its stages; or follow them live'
    )
    .argument(
      '[account|run]',
      'handle or DID of an account, or a run as the list shows it (default: all runs of the Space)'
    )
    .option('--limit <NUMBER>', 'runs, at most (default: 20)')
    .option(
      '--follow',
      'go on and show what changes: until it has ended, of one run; else until Ctrl-C. With --json, one object a line'
    )
  agentCommand<[string | undefined]>(
    command,
    context,
    'bluesky-backups runs alice.bsky.social --limit 5\nbluesky-backups runs bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy\nbluesky-backups runs --follow\nbluesky-backups runs --follow --json',
    async ({ session, flags, io }, word) => {
      const limit = readRunLimit(flags)
      const meant = await readMeant(session, word, io.signal)
      if (flags['follow']) return follow(session, meant, { flags, io })
      const runs = await listRuns(session, await session.service(), {
        ...meant,
        ...(limit === undefined ? {} : { limit }),
      })
      const [run] = runs
      if (meant.run && run) {
        return { json: { run: plain(run) }, text: describeRun(run) }
      }
      return {
        json: { space: session.space(), runs: runs.map(plain) },
        text: runs.length === 0 ? noRuns(word) : tableOf(runs),
      }
    }
  )
}

/**
 * Shows runs as they change. Of one run, until it has ended; who follows all
 * can only end it by an interrupt, which is no failure then.
 */
async function follow(
  session: Session,
  meant: Meant,
  { flags, io }: { flags: Flags; io: Io }
): Promise<Result> {
  const { client } = session
  const space = session.space()
  const service = await session.service()
  if (meant.run) await listRuns(session, service, meant)
  const followed = followRuns(
    {
      issuer: client.agent.issuer,
      with: space,
      proofs: proofsFor(client, space, ['backup/status']),
    },
    meant,
    { connection: service.connection, url: service.url, signal: io.signal }
  )
  const show = flags['json'] ? showJSON(io) : createView(io)
  let failed = false
  try {
    for await (const run of followed) {
      show.update(run)
      failed = run.state === 'failed'
    }
  } catch (error) {
    if (!io.signal.aborted || meant.run) throw error
    return { json: undefined }
  } finally {
    show.end()
  }
  return { json: undefined, failed }
}

interface View {
  update(run: Run): void
  end(): void
}

function showJSON({ stdout }: Pick<Io, 'stdout'>): View {
  return {
    update: (run) => printLine(stdout, JSON.stringify(plain(run))),
    end() {},
  }
}

/** A line for each run that has ended, and how far one is that goes on. */
function createView(io: Pick<Io, 'stdout' | 'stderr'>): View {
  const display = createProgress(io)
  const going = new Map<string, Run>()
  const show = () => {
    const run = [...going.values()].at(-1)
    if (!run) return
    const { account, progress } = run
    const others = going.size > 1 ? ` (and ${going.size - 1} more)` : ''
    display.update(
      printable(
        `${account}${others}: ${progress ? describeProgress(progress) : run.state}`
      ),
      progress ? countSeen(progress) : 0,
      progress?.blobs ?? 0
    )
  }
  return {
    update(run) {
      const id = run.run.toString()
      going.delete(id)
      if (isOver(run)) {
        display.end()
        printLine(io.stdout, describeLine(run))
      } else {
        going.set(id, run)
      }
      show()
    },
    end: () => display.end(),
  }
}

async function readMeant(
  session: Session,
  word: string | undefined,
  signal: AbortSignal
): Promise<Meant> {
  if (word === undefined) return {}
  try {
    return { run: CID.parse(word) }
  } catch {
    if (word.startsWith('did:') && !/^did:(plc|web):\S+$/.test(word)) {
      throw new UsageError(
        `"${word}" is neither an account nor a run; give a handle, a did:plc or did:web, or a run as \`bluesky-backups runs\` shows it`
      )
    }
    return { account: await resolveAccount(session, word, signal) }
  }
}

function readRunLimit({ limit, follow }: Flags): number | undefined {
  if (limit === undefined) return undefined
  if (follow) {
    throw new UsageError('--limit is for the list; leave out it or --follow')
  }
  const number = readLimit(limit as string)
  if (number > Protocol.MAX_RUNS) {
    throw new UsageError(
      `--limit: the service lists at most ${Protocol.MAX_RUNS} runs`
    )
  }
  return number
}

function noRuns(word: string | undefined): string {
  return word === undefined
    ? 'no runs yet; make one with `bluesky-backups backup run HANDLE`, or many with `bluesky-backups schedule HANDLE --every 1h`'
    : `no runs of ${printable(word)} yet; make one with \`bluesky-backups backup run ${printable(word)}\``
}

function tableOf(runs: Run[]): string {
  return formatTable(
    ['WHEN', 'ACCOUNT', 'OUTCOME', 'TOOK', 'READ', 'UPLOADED', 'BLOBS', 'RUN'],
    runs.map((run) => [
      describeTime(run.created),
      printable(run.account),
      describeOutcome(run),
      describeDuration(run),
      describeBytes(run.progress?.bytesRead),
      describeBytes(run.progress?.bytesUploaded),
      run.progress ? describeBlobs(run.progress) : '',
      run.run.toString(),
    ])
  )
}

function describeRun(run: Run): string {
  const { progress, outcome, error, attempts } = run
  const stages = progress?.stages ?? []
  const text = formatFields([
    ['run', run.run.toString()],
    ['account', printable(run.account)],
    ['outcome', describeOutcome(run)],
    [
      'error',
      error &&
        printable(`${error.name}: ${error.message.replace(/\s+/g, ' ')}`),
    ],
    ['asked for', describeTime(run.created)],
    [
      'began',
      run.started === undefined ? undefined : describeTime(run.started),
    ],
    [
      'ended',
      run.finished === undefined ? undefined : describeTime(run.finished),
    ],
    ['took', describeDuration(run) || undefined],
    ['attempts', attempts > 1 ? `${attempts}` : undefined],
    ['read', describeBytes(progress?.bytesRead) || undefined],
    ['uploaded', describeBytes(progress?.bytesUploaded) || undefined],
    ['blobs', progress && describeBlobs(progress)],
    ['backup', outcome && printable(outcome.timestamp)],
    ['event', outcome?.event && printable(outcome.event)],
  ])
  if (stages.length === 0) return text
  const table = formatTable(
    ['STAGE', 'BEGAN', 'TOOK'],
    stages.map(({ stage, began, ended }) => [
      printable(stage),
      describeTime(began),
      ended === undefined ? '' : formatSeconds(ended - began),
    ])
  )
  return `${text}\n\n${table}`
}

/** A run that has ended, in a line. */
function describeLine(run: Run): string {
  const { progress, error, finished } = run
  return printable(
    [
      describeTime(finished ?? run.created),
      run.account,
      ...(error
        ? [`failed: ${error.name}: ${error.message.replace(/\s+/g, ' ')}`]
        : [
            [
              `${describeOutcome(run)} in ${describeDuration(run)}`,
              `${describeBytes(progress?.bytesRead ?? 0)} read`,
              `${describeBytes(progress?.bytesUploaded ?? 0)} uploaded`,
              `${progress ? describeBlobs(progress) : '0'} blobs`,
            ].join(', '),
          ]),
    ].join('  ')
  )
}

function describeOutcome({ state, outcome, error }: Run): string {
  if (error) return printable(`failed: ${error.name}`)
  return outcome ? printable(outcome.kind) : state
}

function describeDuration({ started, finished }: Run): string {
  return started === undefined || finished === undefined
    ? ''
    : formatSeconds(finished - started)
}

/** Blobs that were backed up, of how many, and what became of the others. */
function describeBlobs({
  blobs,
  blobsDone,
  blobsMissing,
  blobsFailed,
}: Protocol.RunProgress): string {
  const notes = [
    ...(blobsMissing > 0 ? [`${blobsMissing} missing`] : []),
    ...(blobsFailed > 0 ? [`${blobsFailed} failed`] : []),
  ]
  const count = blobsDone === blobs ? `${blobs}` : `${blobsDone}/${blobs}`
  return notes.length === 0 ? count : `${count} (${notes.join(', ')})`
}

function describeBytes(bytes: number | undefined): string {
  return bytes === undefined ? '' : formatBytes(bytes)
}

/** @param time - Unix milliseconds */
function describeTime(time: number): string {
  return formatExpiration(time / 1000)
}

function isOver({ state }: Run): boolean {
  return state === 'done' || state === 'failed'
}

/** A run as JSON; times as they are told everywhere on the command line. */
function plain(run: Run) {
  const { created, started, finished, progress, outcome } = run
  const iso = (time: number | undefined) =>
    time === undefined ? null : describeTime(time)
  const stages = ({ stages }: Pick<Protocol.RunProgress, 'stages'>) => ({
    stages: stages.map(({ stage, began, ended }) => ({
      stage,
      began: iso(began),
      ended: iso(ended),
    })),
  })
  return {
    ...run,
    run: run.run.toString(),
    created: iso(created),
    started: iso(started),
    finished: iso(finished),
    ...(progress ? { progress: { ...progress, ...stages(progress) } } : {}),
    ...(outcome ? { outcome: { ...outcome, ...stages(outcome) } } : {}),
  }
}
