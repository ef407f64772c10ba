import { encodeAccount, readAccount } from './account.ts'
import {
  encodeAuthorization,
  encodeAuthorizations,
  greaterAuthorization,
  rank,
  readAuthorization,
  readAuthorizations,
  readRanked,
} from './authorization.ts'
import {
  AccountNotFoundError,
  AgentNotFoundError,
  BackupNotFoundError,
  PrunedError,
  RemovedError,
} from './errors.ts'
import type {
  Account,
  Authorization,
  Authorizations,
  Backup,
  Block,
  BlockFetcher,
  DID,
  Link,
  Pail,
  PartKeys,
  Revision,
  Share,
  State,
  UnknownLink,
} from './interface.ts'
import { greaterBackup } from './merge.ts'
import { joinPails } from './pail-join.ts'
import { readShard } from './pail-shard.ts'
import { emptyPail, getEntry, putAll } from './pail.ts'
import { parseRecipient } from './private-part.ts'
import { encodeShare, readShare, shareKey } from './share.ts'
import { did, timestamp as checkTimestamp } from './schema.ts'
import { encodeState, readState } from './state.ts'
import { TOMBSTONE, isTombstone } from './tombstone.ts'

/**
 * What is added to the `seq` of an agent that is let go: it may have numbers
 * that are not in the Space yet, of refreshes from before it knew.
 */
const LET_GO_LEAP = 1000

/** An agent's grant in an account. */
export interface AgentAuthorization {
  /** The agent, a `did:key`. */
  agent: DID
  authorization: Authorization
}

/**
 * Adds a backup to an account, and the account if it is the first. If there is
 * another backup of the same time, the one with the greater CID stays.
 *
 * @param state - without it a new state is made
 * @param addition.timestamp - when the account was read, UTC with milliseconds
 * @param addition.authorization - of the agent that made the backup, see
 *   {@link setAuthorization}
 * @throws {@link PrunedError} {@link RemovedError} {@link MissingBlockError}
 *   {@link DecodeError} {@link TooLargeError}
 */
export async function addBackup(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  addition: {
    account: DID
    timestamp: string
    backup: Link<Backup>
    authorization?: AgentAuthorization
  }
): Promise<Revision<State>> {
  const timestamp = checkTimestamp(addition.timestamp, 'timestamp')
  return updateAccount(fetcher, state, addition.account, async (account) => {
    const { prunedBefore } = account ?? {}
    if (prunedBefore !== undefined && timestamp < prunedBefore) {
      throw new PrunedError(
        `Backup of ${timestamp} cannot be added: the account was pruned before ${prunedBefore}. Make a new backup`
      )
    }
    const existing =
      account && (await getEntry(fetcher, account.backups, timestamp))
    if (existing !== undefined && isTombstone(existing)) {
      throw new RemovedError(
        `Backup of ${timestamp} cannot be added: it was removed, which is for ever. Make a new backup`
      )
    }
    const backup = existing
      ? greaterBackup(existing, addition.backup)
      : addition.backup
    const backups = await putAll<Backup>(fetcher, account?.backups, [
      [timestamp, backup],
    ])
    const authorizations = addition.authorization
      ? await putAuthorization(fetcher, account, addition.authorization)
      : await keepAuthorizations(account)
    return {
      account: {
        ...account,
        authorizations: authorizations.root,
        backups: backups.root,
      },
      additions: [...authorizations.additions, ...backups.additions],
    }
  })
}

/**
 * Removes one backup for ever: no merge brings it back.
 *
 * @throws {@link AccountNotFoundError} {@link BackupNotFoundError}
 *   {@link MissingBlockError} {@link DecodeError}
 */
export async function removeBackup(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  removal: { account: DID; timestamp: string }
): Promise<Revision<State>> {
  const { timestamp } = removal
  return updateAccount(fetcher, state, removal.account, async (existing) => {
    const account = mustExist(existing, removal.account)
    if (!(await getEntry(fetcher, account.backups, timestamp))) {
      throw new BackupNotFoundError(
        `${removal.account} has no backup of ${timestamp}: list its backups`
      )
    }
    const backups = await putAll<Backup>(fetcher, account.backups, [
      [timestamp, TOMBSTONE],
    ])
    return {
      account: { ...account, backups: backups.root },
      additions: backups.additions,
    }
  })
}

/**
 * Drops all backups of an account from before a time, for good: neither a
 * merge nor {@link addBackup} brings one back. An earlier time than that of
 * the last pruning changes nothing.
 *
 * @param pruning.before - UTC with milliseconds; never in the future, or no
 *   backup can be added until then
 * @throws {@link AccountNotFoundError} {@link MissingBlockError}
 *   {@link DecodeError}
 */
export async function prune(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  pruning: { account: DID; before: string }
): Promise<Revision<State>> {
  const before = checkTimestamp(pruning.before, 'before')
  return updateAccount(fetcher, state, pruning.account, async (existing) => {
    const account = mustExist(existing, pruning.account)
    const { backups: root, prunedBefore = '' } = account
    if (before <= prunedBefore) return { account, additions: [] }
    const drop = <T>(root: Link<Pail<T>>) =>
      joinPails<T>(
        [{ root, read: (position) => readShard(fetcher, position) }],
        { resolve: greaterBackup, before }
      )
    const backups = await drop(root)
    const shares = account.shares && (await drop(account.shares))
    return {
      account: {
        ...account,
        backups: backups.root,
        prunedBefore: before,
        shares: shares?.root,
      },
      additions: [...backups.additions, ...(shares?.additions ?? [])],
    }
  })
}

/**
 * Sets for whom private parts are sealed beside the agents, from the next
 * backup on.
 *
 * @param setting.recipient - see `parseRecipient`; nobody, if left out
 * @throws {@link AccountNotFoundError} {@link InvalidRecipientError}
 *   {@link MissingBlockError} {@link DecodeError}
 */
export async function setRecovery(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  setting: { account: DID; recipient?: string }
): Promise<Revision<State>> {
  const recipient =
    setting.recipient === undefined
      ? undefined
      : parseRecipient(setting.recipient)
  return updateAccount(fetcher, state, setting.account, async (existing) => {
    const account = mustExist(existing, setting.account)
    const { recovery } = account
    if (recovery?.recipient === recipient) return { account, additions: [] }
    return {
      account: {
        ...account,
        recovery: { recipient, seq: (recovery?.seq ?? 0) + 1 },
      },
      additions: [],
    }
  })
}

/**
 * Lets an agent open private parts that were sealed before it was there. Keys
 * of one backup join those that were shared before, and replace them. Of a backup that
 * was pruned meanwhile, nothing is kept.
 *
 * @param addition.agent - the agent that can open the keys, a `did:key`
 * @param addition.shares - timestamp of a backup → keys of its parts
 * @throws {@link AccountNotFoundError} {@link MissingBlockError}
 *   {@link DecodeError} {@link TooLargeError}
 */
export async function addShares(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  addition: {
    account: DID
    agent: DID
    shares: Iterable<[timestamp: string, keys: PartKeys]>
  }
): Promise<Revision<State>> {
  const agent = did(addition.agent, 'agent')
  return updateAccount(fetcher, state, addition.account, async (existing) => {
    const account = mustExist(existing, addition.account)
    const { prunedBefore = '' } = account
    const blocks: Block[] = []
    const values: [key: string, value: UnknownLink][] = []
    for (const [time, keys] of addition.shares) {
      const timestamp = checkTimestamp(time, 'timestamp')
      if (timestamp < prunedBefore) continue
      const key = shareKey(timestamp, agent)
      const link = account.shares
        ? await getEntry(fetcher, account.shares, key)
        : undefined
      const known = link && (await readShare(fetcher, link as Link<Share>))
      const block = await encodeShare({
        version: 1,
        keys: { ...known?.keys, ...keys },
      })
      if (link?.toString() === block.cid.toString()) continue
      blocks.push(block)
      values.push([key, block.cid])
    }
    if (values.length === 0) return { account, additions: [] }
    const shares = await putAll<Share>(fetcher, account.shares, values)
    return {
      account: { ...account, shares: shares.root },
      additions: [...blocks, ...shares.additions],
    }
  })
}

/**
 * Records what an agent may do in an account, and adds the account if there is
 * none yet. Of the new authorization and the one that the agent has already,
 * the greater stays: by `seq`, then `expiration`, then bytes. To replace one,
 * add one to its `seq`.
 *
 * @param state - without it a new state is made
 * @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError}
 */
export async function setAuthorization(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  { account: did, ...addition }: AgentAuthorization & { account: DID }
): Promise<Revision<State>> {
  return updateAccount(fetcher, state, did, async (account) => {
    const authorizations = await putAuthorization(fetcher, account, addition)
    const backups = account
      ? { root: account.backups, additions: [] }
      : await emptyPail<Backup>()
    return {
      account: {
        ...account,
        authorizations: authorizations.root,
        backups: backups.root,
      },
      additions: [...authorizations.additions, ...backups.additions],
    }
  })
}

/**
 * Lets an agent go that cannot give its authorization back itself: nothing is
 * sealed in the place of what it had, so that no private parts are sealed for
 * it or shared with it. A later one of its own, with a still greater `seq`,
 * counts again. For one that was let go before nothing changes.
 *
 * @throws {@link AccountNotFoundError} {@link AgentNotFoundError}
 *   {@link MissingBlockError} {@link DecodeError}
 */
export async function letGo(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  { account: did, agent }: { account: DID; agent: DID }
): Promise<Revision<State>> {
  return updateAccount(fetcher, state, did, async (existing) => {
    const account = mustExist(existing, did)
    const known = await readAuthorizations(fetcher, account.authorizations)
    const link = known[agent]
    if (!link) {
      throw new AgentNotFoundError(
        `${agent} is not authorized for ${did}; \`bluesky-backups authorizations ls ${did}\` shows the agents that are`
      )
    }
    const { seq, expiration } = await readAuthorization(fetcher, link)
    if (expiration <= 0) return { account, additions: [] }
    const { root, additions } = await putAuthorization(fetcher, account, {
      agent,
      authorization: {
        sealed: new Uint8Array(),
        expiration: 0,
        seq: seq + LET_GO_LEAP,
      },
    })
    return { account: { ...account, authorizations: root }, additions }
  })
}

interface AccountUpdate {
  account: Account
  additions: Block[]
}

async function updateAccount(
  fetcher: BlockFetcher,
  root: Link<State> | undefined,
  account: DID,
  update: (account: Account | undefined) => Promise<AccountUpdate>
): Promise<Revision<State>> {
  const key = did(account, 'account')
  const state = root ? await readState(fetcher, root) : {}
  const link = state[key]
  const updated = await update(link && (await readAccount(fetcher, link)))
  const accountBlock = await encodeAccount(updated.account)
  if (root && link?.equals(accountBlock.cid)) return { root, additions: [] }
  const stateBlock = await encodeState({ ...state, [key]: accountBlock.cid })
  return {
    root: stateBlock.cid,
    additions: [...updated.additions, accountBlock, stateBlock],
  }
}

function mustExist(account: Account | undefined, did: DID): Account {
  if (account === undefined) {
    throw new AccountNotFoundError(
      `${did} is not in the state: nothing of it was backed up in this Space`
    )
  }
  return account
}

async function keepAuthorizations(
  account: Account | undefined
): Promise<Revision<Authorizations>> {
  if (account) return { root: account.authorizations, additions: [] }
  const block = await encodeAuthorizations({})
  return { root: block.cid, additions: [block] }
}

async function putAuthorization(
  fetcher: BlockFetcher,
  account: Account | undefined,
  { agent, authorization }: AgentAuthorization
): Promise<Revision<Authorizations>> {
  const block = await encodeAuthorization(authorization)
  const authorizations = account
    ? await readAuthorizations(fetcher, account.authorizations)
    : {}
  const existing = authorizations[did(agent, 'agent')]
  if (account && existing) {
    const { link } = greaterAuthorization(
      await readRanked(fetcher, existing),
      rank(block)
    )
    if (link.equals(existing)) {
      return { root: account.authorizations, additions: [] }
    }
  }
  const map = await encodeAuthorizations({
    ...authorizations,
    [agent]: block.cid,
  })
  return { root: map.cid, additions: [block, map] }
}
