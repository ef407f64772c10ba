import type { Command } from 'commander'
import { openBackup, recordChange, type DID } from '../../backup/index.ts'
import { createNativeSha256 } from '../../node/index.ts'
import {
  addShares,
  deriveIdentity,
  findShare,
  isSealed,
  listAuthorizations,
  listBackups,
  parseRecipient,
  PRIVATE_PARTS,
  recipientOf,
  sealFileKey,
  UnsealError,
  type FileKey,
  type PartKeys,
} from '../../space/index.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { UsageError } from '../errors.ts'
import { formatCount } from '../format.ts'
import { readFileKey } from '../private-parts.ts'
import type { Session } from '../session.ts'
import { findAccount, viewSpace } from '../target.ts'
import { openRecord } from '../writer.ts'

/** Backups whose keys go into the Space at once. */
const BATCH_SIZE = 500

/** What was shared with an agent. */
export interface Shared {
  account: DID
  agent: DID
  /** Backups that the agent can open now and could not before. */
  backups: number
  /** Backups with parts that this agent cannot open itself. */
  closed: number
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
    async ({ session, io }, word, agent) => {
      const shared = await shareParts(session, word, agent, io.signal)
      const { account, backups, closed } = shared
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
        ].join('\n'),
      }
    }
  )
}

/**
 * Seals the keys of private parts that this agent can open for another one.
 *
 * @param word - DID or handle of the account
 * @param agent - a `did:key`, as the user gave it
 * @throws {@link UsageError}
 */
export async function shareParts(
  session: Session,
  word: string,
  agent: string,
  signal: AbortSignal
): Promise<Shared> {
  const view = await viewSpace(session)
  const account = await findAccount(session, view, word)
  const { blocks, state } = view
  const [authorized] = await listAuthorizations(blocks, state, account, {
    agent: agent as DID,
  })
  const recipient = authorized?.authorization.recipient
  if (!authorized || recipient === undefined) {
    throw new UsageError(
      `${agent} is not authorized for ${account}; have it run \`bluesky-backups authorize ${account}\` first`
    )
  }
  parseRecipient(recipient)
  const own = await deriveIdentity(session.client.agent.issuer, {
    space: session.space(),
    account,
  })
  const ownRecipient = await recipientOf(own)
  const shared: Shared = {
    account,
    agent: authorized.agent,
    backups: 0,
    closed: 0,
  }
  // Backups share parts that did not change: each is opened once.
  const known = new Map<string, FileKey>()
  let batch: [timestamp: string, keys: PartKeys][] = []
  const flush = async () => {
    if (batch.length === 0) return
    const shares = batch
    batch = []
    await recordChange(
      await openRecord(session, signal),
      (fetcher, state) =>
        addShares(fetcher, state, { account, agent: authorized.agent, shares }),
      { signal }
    )
    shared.backups += shares.length
  }
  for await (const { timestamp, backup: link } of listBackups(
    blocks,
    state,
    account
  )) {
    signal.throwIfAborted()
    const backup = await openBackup(session.reader, link, {
      createSha256: createNativeSha256,
    })
    const before = await findShare(blocks, state, {
      account,
      timestamp,
      agent: authorized.agent,
    })
    const keys: PartKeys = {}
    let isClosed = false
    for (const part of PRIVATE_PARTS) {
      const record = backup.value.private?.[part]
      if (!isSealed(record) || before[part]) continue
      if (record.recipients.includes(recipient)) continue
      const file = record.sealed.toString()
      try {
        if (!record.recipients.includes(ownRecipient)) {
          throw new UnsealError('it was sealed for others')
        }
        const key = known.get(file) ?? (await readFileKey(backup, record, own))
        known.set(file, key)
        keys[part] = await sealFileKey(recipient, key)
      } catch (error) {
        if (!(error instanceof UnsealError)) throw error
        isClosed = true
      }
    }
    if (isClosed) shared.closed++
    if (Object.keys(keys).length > 0) batch.push([timestamp, keys])
    if (batch.length === BATCH_SIZE) await flush()
  }
  await flush()
  return shared
}
