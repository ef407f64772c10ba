import { delegate, DID as Principal } from '@ucanto/core'
import type { Command } from 'commander'
import {
  AgentNotAuthorizedError,
  recordChange,
  shareParts,
  type DID,
  type Shared as Page,
} from '../../backup/index.ts'
import { BACKUP_ABILITIES } from '../../capabilities/index.ts'
import { Authorization } from '../../client/index.ts'
import { createNativeSha256, systemTime } from '../../node/index.ts'
import { deriveIdentity } from '../../space/index.ts'
import { proofsFor, serviceAuthority } from '../authority.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { UsageError, type ServiceError } from '../errors.ts'
import { formatCount } from '../format.ts'
import type { Io, Result } from '../io.ts'
import { createProgress } from '../progress.ts'
import { askService } from '../service.ts'
import type { Session, SpaceDID } from '../session.ts'
import { findAccount, viewSpace } from '../target.ts'
import { openRecord } from '../writer.ts'

/** Seconds for which the service may act in the Space to answer one call. */
const CALL_LIFETIME = 10 * 60

/** How often a service that is busy is asked again. */
const MAX_TRIES = 10

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
  agentCommand<[string, string | undefined]>(
    authorizations
      .command('share')
      .description(
        'let another agent open the private parts of backups from before it was there'
      )
      .argument('<account>', 'handle or DID')
      .argument(
        '[agent]',
        'did:key of an agent that is authorized for the account; `authorizations ls` shows them (default with --by-service: this agent)'
      )
      .option(
        '--by-service',
        'have the service share what it can open, where no other agent is left that could'
      ),
    context,
    'bluesky-backups authorizations share alice.bsky.social did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH\nbluesky-backups authorizations share alice.bsky.social --by-service',
    async ({ session, flags, io }, word, agent) => {
      if (flags['byService']) {
        const shared = await shareAtService(session, {
          word,
          agent: readAgent(agent ?? session.client.did()),
          io,
        })
        return describe(shared, 'the service')
      }
      if (agent === undefined) {
        throw new UsageError(
          'name the agent that is to open them; or add --by-service, and the service shares with this agent'
        )
      }
      return describe(
        await shareHere(session, { word, agent, io }),
        'this agent'
      )
    }
  )
}

/**
 * @param text - as somebody typed it
 * @throws {@link UsageError} when it is no agent
 */
export function readAgent(text: string): SpaceDID {
  if (/^did:key:z\w+$/.test(text)) return text as SpaceDID
  throw new UsageError(
    `"${text}" is not an agent; give its did:key, as \`bluesky-backups whoami\` shows it there`
  )
}

/** Has the service share what it can open. */
async function shareAtService(
  session: Session,
  { word, agent, io }: { word: string; agent: SpaceDID; io: Io }
): Promise<Shared> {
  const { client } = session
  const space = session.space()
  // The service goes by its own clock: what this agent's has is told to it.
  const account = await findAccount(session, await viewSpace(session), word)
  const { info, connection } = await session.service()
  const config = await serviceAuthority(session, ['authorization/share'])
  return shareAll({ account, agent }, io, (before) =>
    patiently(io.signal, async () => {
      const delegation = await delegate({
        issuer: client.agent.issuer,
        audience: Principal.parse(info.agent),
        capabilities: BACKUP_ABILITIES.map((can) => ({
          can,
          with: space,
        })) as never,
        proofs: proofsFor(client, space, BACKUP_ABILITIES),
        expiration: Math.floor(Date.now() / 1000) + CALL_LIFETIME,
      })
      return askService(() =>
        Authorization.share(
          config,
          { account, agent, before, delegation },
          { connection, nonce: crypto.randomUUID() }
        )
      )
    })
  )
}

/** Asks again when the service says so: it shares for others, too. */
async function patiently<T>(
  signal: AbortSignal,
  ask: () => Promise<T>
): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await ask()
    } catch (error) {
      const { name, cause } = error as ServiceError
      if (name !== 'RateLimited' || tries >= MAX_TRIES) throw error
      const { retryAfter = 1 } = cause as { retryAfter?: number }
      await systemTime.sleep(retryAfter * 1000, signal)
    }
  }
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

function describe(shared: Shared, who: 'this agent' | 'the service'): Result {
  const { account, agent, backups, closed, unreadable } = shared
  return {
    json: shared,
    text: [
      backups === 0
        ? `there is nothing that ${agent} cannot open and ${who} can`
        : `${agent} can open the private parts of ${formatCount(backups, 'more backup')} of ${account}`,
      ...(closed === 0
        ? []
        : [
            `${formatCount(closed, 'backup')} with parts that ${who} cannot open either; have another agent share them`,
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
