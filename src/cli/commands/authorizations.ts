import type { Command } from 'commander'
import { recordChange } from '../../backup/index.ts'
import type { Authorization as Protocol } from '../../capabilities/index.ts'
import { Authorization } from '../../client/index.ts'
import {
  AgentNotFoundError,
  isInForce,
  letGo,
  listAuthorizations,
  type DID,
} from '../../space/index.ts'
import { proofsFor } from '../authority.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { UsageError } from '../errors.ts'
import { formatExpiration, formatTable, printable } from '../format.ts'
import { openGrants } from '../grants.ts'
import type { Result } from '../io.ts'
import { reauthorizeNote, renewalOf } from '../reauthorize.ts'
import { askService } from '../service.ts'
import type { Session } from '../session.ts'
import { findAccount, resolveAccount, viewSpace } from '../target.ts'
import { openRecord } from '../writer.ts'
import { createShareCommand, readAgent } from './share.ts'

/** A grant, as far as this agent can tell. */
interface Known {
  account: string
  agent: string
  who: 'this agent' | 'the service' | 'another agent'
  state: 'active' | 'ended'
  reason?: { name: string; message: string }
  /** Unknown of other agents: only they can open what is in the Space. */
  parts?: string[]
  /** Asked for as well, and not granted by the host. */
  missing?: string[]
  scope?: string
  scopeVersion?: number
  /** ISO 8601. */
  refreshed?: string
  /** ISO 8601; there has to be another grant by then. */
  reauthorizeBy: string
  /** What private parts are sealed for; not there if none are sealed for it. */
  recipient?: string
  /** What renews it, if it has ended or is about to. */
  renew?: string
}

/** `authorizations`: who is let into which account, and ending that. */
export function createAuthorizationsCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('authorizations')
    .description('who is let into which account, and ending that')
  agentCommand<[string | undefined]>(
    command
      .command('ls')
      .description('list who is let into which account, and until when')
      .argument('[account]', 'handle or DID (default: all)'),
    context,
    'bluesky-backups authorizations ls\nbluesky-backups authorizations ls alice.bsky.social --json',
    async ({ session }, word) => {
      const known = await listKnown(session, word)
      return {
        json: { space: session.space(), authorizations: known },
        text:
          known.length === 0
            ? 'nobody is let into an account; let the service in with `bluesky-backups authorize HANDLE`'
            : [tableOf(known), ...known.flatMap(noteOn)].join('\n'),
      }
    }
  )
  agentCommand<[string, string | undefined]>(
    command
      .command('revoke')
      .description(
        'give a grant back to the host of the account: the service’s, or this agent’s; or let another agent go, as that of a lost laptop'
      )
      .argument('<account>', 'handle or DID')
      .argument(
        '[agent]',
        'did:key of the agent; `authorizations ls` shows them (default: the service)'
      )
      .option('--here', 'that of this agent, not the service’s'),
    context,
    'bluesky-backups authorizations revoke alice.bsky.social\nbluesky-backups authorizations revoke alice.bsky.social --here\nbluesky-backups authorizations revoke alice.bsky.social did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH',
    async ({ session, flags, io }, word, named) => {
      const agent = named === undefined ? undefined : readAgent(named)
      const who = await whoIs(session, agent, { here: flags['here'] === true })
      if (agent !== undefined && who === 'another agent') {
        return describeLetGo(await letAgentGo(session, word, agent, io.signal))
      }
      const account = await resolveAccount(session, word, io.signal)
      const here = who === 'this agent'
      const { revoked, confirmed } = here
        ? await revokeHere(session, account, io.signal)
        : await revokeAtService(session, account)
      return {
        json: { account, revoked, confirmed },
        text: [
          revoked
            ? `${who} is not let into ${account} any more; what is public is backed up all the same`
            : `${who} was not let into ${account}`,
          ...(confirmed
            ? []
            : [
                `the host of the account has not confirmed that; ${here ? 'run this again to tell it again' : 'the service tells it again until it has'}, or remove Bluesky Backups from the connected apps in the settings of the account`,
              ]),
        ].join('\n'),
      }
    }
  )
  createShareCommand(command, context)
}

/** Whose grant is meant. */
async function whoIs(
  session: Session,
  agent: DID | undefined,
  { here }: { here: boolean }
): Promise<Known['who']> {
  if (agent === undefined) return here ? 'this agent' : 'the service'
  const isOwn = agent === session.client.did()
  if (here && !isOwn) {
    throw new UsageError(
      `--here is for this agent, which is not ${agent}; leave one of them out`
    )
  }
  if (isOwn) return 'this agent'
  if (!session.config.serviceUrl) return 'another agent'
  const { info } = await session.service()
  return agent === info.agent ? 'the service' : 'another agent'
}

/** What came of letting another agent go. */
interface LetGo {
  account: DID
  agent: DID
  /** Whether it was authorized until now. */
  revoked: boolean
}

/**
 * Ends the authorization of another agent, by the power of this one.
 *
 * @throws {@link UsageError} when the agent is none of the account's
 */
async function letAgentGo(
  session: Session,
  word: string,
  agent: DID,
  signal: AbortSignal
): Promise<LetGo> {
  const account = await findAccount(session, await viewSpace(session), word)
  try {
    const { event } = await recordChange(
      await openRecord(session, signal),
      (fetcher, state) => letGo(fetcher, state, { account, agent }),
      { signal }
    )
    return { account, agent, revoked: event !== undefined }
  } catch (error) {
    if (!(error instanceof AgentNotFoundError)) throw error
    throw new UsageError(error.message, { cause: error })
  }
}

function describeLetGo({ account, agent, revoked }: LetGo): Result {
  return {
    // Only the agent itself could have told the host.
    json: { account, agent, revoked, confirmed: false },
    text: [
      revoked
        ? `${agent} is let go: no private parts of ${account} are sealed for it or shared with it any more; what it could open before it still can`
        : `${agent} was let go before: no private parts of ${account} are sealed for it or shared with it`,
      'the host of the account knows nothing of that: what it has granted to that agent goes on until the agent gives it back, or you remove Bluesky Backups from the connected apps in the settings of the account there',
      'as long as that agent may write into the Space, it can authorize itself again: take back what you delegated to it with `bluesky-backups delegation revoke`, where you did',
    ].join('\n'),
  }
}

async function listKnown(
  session: Session,
  word: string | undefined
): Promise<Known[]> {
  const { client, config } = session
  const space = session.space()
  const view = await viewSpace(session)
  const { keeper } = await openGrants(session)
  const own = await keeper.list(space)
  const service = config.serviceUrl ? await session.service() : undefined
  const served = service ? await listAtService(session) : []
  const accounts =
    word === undefined
      ? new Set<string>([
          ...view.accounts,
          ...[...own, ...served].map(({ account }) => account),
        ])
      : new Set<string>([await findAccount(session, view, word)])
  const known: Known[] = []
  for (const account of [...accounts].sort()) {
    const inSpace = await listAuthorizations(
      view.blocks,
      view.state,
      account as DID
    )
    // The agents themselves know better than the Space how it stands.
    const told = [...own, ...served].filter((each) => each.account === account)
    const sealedFor = new Map(
      inSpace
        .filter(({ authorization }) => isInForce(authorization, Date.now()))
        .map(({ agent, authorization }) => [agent, authorization.recipient])
    )
    const recipientFor = (agent: DID) => {
      const recipient = sealedFor.get(agent)
      return recipient === undefined ? {} : { recipient }
    }
    const others = inSpace.filter(
      ({ agent, authorization }) =>
        authorization.expiration > 0 &&
        !told.some((each) => each.agent === agent)
    )
    known.push(
      ...told.map((grant) => ({
        ...knownOf(
          grant,
          grant.agent === client.did() ? 'this agent' : 'the service'
        ),
        ...recipientFor(grant.agent as DID),
      })),
      ...others.map(({ agent, authorization }): Known => ({
        account,
        agent,
        who:
          agent === client.did()
            ? 'this agent'
            : agent === service?.info.agent
              ? 'the service'
              : 'another agent',
        state: isInForce(authorization, Date.now()) ? 'active' : 'ended',
        reauthorizeBy: timeOf(authorization.expiration * 1000),
        ...recipientFor(agent),
      }))
    )
  }
  return known
}

function knownOf(grant: Protocol.Grant, who: Known['who']): Known {
  const { account, agent, state, parts, missing, scope, scopeVersion } = grant
  const { refreshed, expiration } = grant
  const renew = renewalOf(grant, { here: who === 'this agent' })
  return {
    account,
    agent,
    who,
    state,
    ...(grant.reason ? { reason: grant.reason } : {}),
    parts,
    missing,
    scope,
    scopeVersion,
    refreshed: timeOf(refreshed),
    reauthorizeBy: timeOf(expiration * 1000),
    ...(renew === undefined ? {} : { renew }),
  }
}

/** The grants that the service has for the Space. */
export async function listAtService(
  session: Session
): Promise<Protocol.Grant[]> {
  const { client } = session
  const space = session.space()
  const { connection } = await session.service()
  const { authorizations } = await askService(() =>
    Authorization.list(
      {
        issuer: client.agent.issuer,
        with: space,
        proofs: proofsFor(client, space, ['authorization/list']),
      },
      { connection, nonce: crypto.randomUUID() }
    )
  )
  return authorizations
}

async function revokeAtService(
  session: Session,
  account: DID
): Promise<Protocol.RevokeSuccess> {
  const { client } = session
  const space = session.space()
  const { connection } = await session.service()
  return askService(() =>
    Authorization.revoke(
      {
        issuer: client.agent.issuer,
        with: space,
        proofs: proofsFor(client, space, ['authorization/revoke']),
      },
      { account },
      { connection, nonce: crypto.randomUUID() }
    )
  )
}

async function revokeHere(
  session: Session,
  account: DID,
  signal: AbortSignal
): Promise<Protocol.RevokeSuccess> {
  const grants = await openGrants(session)
  const result = await grants.keeper.revoke(session.space(), account)
  await grants.publish(account, signal)
  return result
}

function tableOf(known: Known[]): string {
  return formatTable(
    [
      ...['ACCOUNT', 'WHO', 'STATE', 'GRANTED', 'LAST REFRESH'],
      ...['RE-AUTHORIZE BY', 'PRIVATE PARTS ARE SEALED FOR'],
    ],
    known.map(({ account, agent, who, state, parts, refreshed, ...grant }) => [
      printable(account),
      who === 'another agent' ? printable(agent) : who,
      state,
      parts ? printable(parts.join(', ')) || 'nothing private' : 'unknown here',
      refreshed ?? 'unknown here',
      grant.reauthorizeBy,
      printable(grant.recipient ?? 'not for it'),
    ])
  )
}

function noteOn({ who, reauthorizeBy, missing, ...grant }: Known): string[] {
  if (who === 'another agent') return []
  const expiration = Date.parse(reauthorizeBy) / 1000
  return [
    ...(missing?.length
      ? [
          printable(
            `not granted to ${who} by the host of ${grant.account}: ${missing.join(', ')}`
          ),
        ]
      : []),
    ...reauthorizeNote(
      { ...grant, expiration },
      { here: who === 'this agent' }
    ),
  ]
}

/** @param time - Unix milliseconds */
function timeOf(time: number): string {
  return formatExpiration(Math.floor(time / 1000))
}
