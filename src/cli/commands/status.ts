import type { Command } from 'commander'
import { findRecovery, latestBackup } from '../../space/index.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { NotAllowedError, ServiceError } from '../errors.ts'
import { formatFields, formatTable, printable } from '../format.ts'
import { openGrants } from '../grants.ts'
import { describeProgress } from '../progress.ts'
import { reauthorizeNote } from '../reauthorize.ts'
import { listRuns } from '../run.ts'
import type { Session } from '../session.ts'
import { listAtService } from './authorizations.ts'
import { viewSpace } from '../target.ts'

/** What could be found out, or why it could not. */
type Answer<T> = { value: T; error?: undefined } | { error: Error }

interface AccountStatus {
  account: string
  /** Time of the last backup. */
  lastBackup: string | null
  /** Whom private parts are sealed for beside agents. */
  recovery: string | null
}

type Run = Awaited<ReturnType<typeof listRuns>>[number]

/**
 * `status`: how everything stands. What does not answer is shown as such, beside
 * all that does.
 */
export function createStatusCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('status')
    .description(
      'show the agent, its Space, the service, the last backup of each account, and runs'
    )
  agentCommand(
    command,
    context,
    'bluesky-backups status --service https://backups.example',
    async ({ session }) => {
      const { client, config } = session
      const space = { did: session.space(), name: client.currentSpace()?.name }
      const service = config.serviceUrl
        ? await answerOf(session.service())
        : undefined
      const runs = service && (await answerOf(readRuns(session)))
      const grants = service && (await answerOf(readGrants(session)))
      const own = await answerOf(readOwnGrants(session))
      const state = await answerOf(readState(session))
      const info = service?.error ? undefined : service?.value.info
      const { head, accounts } = state.error
        ? { head: undefined, accounts: undefined }
        : state.value
      const problems = [service, runs, grants, own, state].flatMap((answer) =>
        answer?.error ? [answer.error] : []
      )
      // One cause may have stopped several answers.
      const errors = new Map(problems.map((error) => [error.message, error]))
      return {
        failed: problems.length > 0,
        json: {
          agent: client.did(),
          space,
          service: config.serviceUrl
            ? { url: config.serviceUrl.href, ...info, reachable: !!info }
            : null,
          head: head ?? null,
          accounts: accounts ?? null,
          runs: runs && !runs.error ? runs.value : null,
          authorizations: grants && !grants.error ? grants.value : null,
          ownAuthorizations: own.error ? null : own.value,
          errors: [...errors.values()].map(({ name, message }) => ({
            name,
            message,
          })),
        },
        text: [
          formatFields([
            ['agent', client.did()],
            ['space', `${printable(space.name ?? '')}  ${space.did}`.trim()],
            [
              'service',
              config.serviceUrl?.href ??
                'none: the clock is kept by this agent',
            ],
            ['', info && printable(`${info.name} ${info.version}`)],
            ['', info?.did],
            ['', info?.agent],
            ['head', head && (head.join(', ') || 'no events yet')],
            ...[...errors.values()].map(({ message }): [string, string] => [
              'error',
              printable(message.replace(/\s+/g, ' ')),
            ]),
          ]),
          ...(accounts?.length ? [tableOfAccounts(accounts)] : []),
          ...(grants && !grants.error
            ? grants.value.flatMap((grant) => reauthorizeNote(grant))
            : []),
          ...(own.error
            ? []
            : own.value.flatMap((grant) =>
                reauthorizeNote(grant, { here: true })
              )),
          ...(runs && !runs.error && runs.value.length > 0
            ? [tableOfRuns(runs.value)]
            : []),
        ].join('\n\n'),
      }
    }
  )
}

async function answerOf<T>(asked: Promise<T>): Promise<Answer<T>> {
  try {
    return { value: await asked }
  } catch (error) {
    return { error: error instanceof Error ? error : new Error(String(error)) }
  }
}

/** Grants of the service, as far as this agent may know of them. */
async function readGrants(session: Session) {
  try {
    return await listAtService(session)
  } catch (error) {
    const isUnknown =
      error instanceof NotAllowedError ||
      // A service that is older than the question.
      (error instanceof ServiceError && error.name === 'HandlerNotFound')
    if (isUnknown) return []
    throw error
  }
}

/** Grants of this agent itself. */
async function readOwnGrants(session: Session) {
  const { keeper } = await openGrants(session)
  return keeper.list(session.space())
}

async function readRuns(session: Session) {
  const runs = await listRuns(session, await session.service())
  return runs.map((run) => ({ ...run, run: run.run.toString() }))
}

async function readState(session: Session) {
  const view = await viewSpace(session)
  const accounts: AccountStatus[] = []
  for (const account of view.accounts) {
    const latest = await latestBackup(view.blocks, view.state, account)
    const recovery = await findRecovery(view.blocks, view.state, account)
    accounts.push({
      account,
      lastBackup: latest?.timestamp ?? null,
      recovery: recovery ?? null,
    })
  }
  return { head: view.head, accounts }
}

function tableOfAccounts(accounts: AccountStatus[]): string {
  return formatTable(
    ['ACCOUNT', 'LAST BACKUP', 'RECOVERY KEY'],
    accounts.map(({ account, lastBackup, recovery }) => [
      account,
      lastBackup ?? 'none',
      recovery === null ? 'none' : 'set',
    ])
  )
}

function tableOfRuns(runs: Omit<Run, 'run'>[]): string {
  return formatTable(
    ['RUN ASKED FOR', 'ACCOUNT', 'STATE', ''],
    runs.map((run) => [
      new Date(run.created).toISOString(),
      run.account,
      run.state,
      printable(describeRun(run)),
    ])
  )
}

function describeRun({
  state,
  outcome,
  progress,
  error,
}: Omit<Run, 'run'>): string {
  if (error) return `${error.name}: ${error.message}`
  if (outcome) return outcome.kind
  return state === 'running' && progress ? describeProgress(progress) : ''
}
