import type { Command } from 'commander'
import {
  AgentNotAuthorizedError,
  recordChange,
  shareParts,
  type DID,
  type Shared as Page,
} from '../../backup/index.ts'
import { createNativeSha256, systemTime } from '../../node/index.ts'
import { deriveIdentity } from '../../space/index.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { UsageError } from '../errors.ts'
import { formatCount } from '../format.ts'
import type { Io, Result } from '../io.ts'
import { createProgress } from '../progress.ts'
import type { Session } from '../session.ts'
import { findAccount, viewSpace } from '../target.ts'
import { openRecord } from '../writer.ts'

/** What was shared with an agent. */
interface Shared {
  account: DID
  agent: DID
  /** Backups that the agent can open now and could not before. */
  backups: number
  /** Backups with parts that who shares cannot open itself. */
  closed: number
  /** Backups that could not be read. */
  unreadable: number
}

/** `authorizations share`: lets a new agent open what was sealed before it. */
export function createShareCommand(
  authorizations: Command,
  context: CommandContext
): void {
  agentCommand<[string, string]>(
    authorizations
      .command('share')
      .description(
        'let another agent open the private parts of backups from before it was there'
      )
      .argument('<account>', 'handle or DID')
      .argument(
        '<agent>',
        'did:key of an agent that is authorized for the account; `authorizations ls` shows them'
      ),
    context,
    'bluesky-backups authorizations share alice.bsky.social did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH',
    async ({ session, io }, word, agent) =>
      describe(await shareHere(session, { word, agent, io }))
  )
}

/** Shares what this agent can open. */
async function shareHere(
  session: Session,
  { word, agent, io }: { word: string; agent: string; io: Io }
): Promise<Shared> {
  const { signal } = io
  const { reader } = session
  const view = await viewSpace(session)
  const account = await findAccount(session, view, word)
  const context = {
    ...view,
    reader,
    identity: (account: DID) =>
      deriveIdentity(session.client.agent.issuer, {
        space: session.space(),
        account,
      }),
    record: async (change: Parameters<typeof recordChange>[1]) =>
      recordChange(await openRecord(session, signal), change, { signal }),
    createSha256: createNativeSha256,
    time: systemTime,
    onWarning: (message: string) => session.warn(message),
  }
  try {
    return await shareAll({ account, agent: agent as DID }, io, (before) =>
      shareParts(context, {
        account,
        agent: agent as DID,
        before,
        signal,
      })
    )
  } catch (error) {
    if (!(error instanceof AgentNotAuthorizedError)) throw error
    throw new UsageError(error.message, { cause: error })
  }
}

/** Goes on until there is nothing more to share, and shows how far it is. */
async function shareAll(
  whom: Pick<Shared, 'account' | 'agent'>,
  io: Pick<Io, 'stderr'>,
  share: (before: string | undefined) => Promise<Page>
): Promise<Shared> {
  const shared: Shared = { ...whom, backups: 0, closed: 0, unreadable: 0 }
  const display = createProgress(io)
  try {
    for (let before: string | undefined; ;) {
      const page = await share(before)
      shared.backups += page.backups
      shared.closed += page.closed
      shared.unreadable += page.unreadable
      // Who sends us back would keep us for ever.
      if (page.before === undefined || page.before >= (before ?? '~')) break
      before = page.before
      display.update(
        `shared ${formatCount(shared.backups, 'backup')}, back to ${before}`,
        0,
        0
      )
    }
  } finally {
    display.end()
  }
  return shared
}

function describe(shared: Shared): Result {
  const { account, agent, backups, closed, unreadable } = shared
  return {
    json: shared,
    text: [
      backups === 0
        ? `there is nothing that ${agent} cannot open and this agent can`
        : `${agent} can open the private parts of ${formatCount(backups, 'more backup')} of ${account}`,
      ...(closed === 0
        ? []
        : [
            `${formatCount(closed, 'backup')} with parts that this agent cannot open either; have another agent share them`,
          ]),
      ...(unreadable === 0
        ? []
        : [
            `${formatCount(unreadable, 'backup')} could not be read; share again later`,
          ]),
    ].join('\n'),
    failed: unreadable > 0,
  }
}
