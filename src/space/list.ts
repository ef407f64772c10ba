import * as dagCbor from '@ipld/dag-cbor'
import { readAccount } from './account.ts'
import { readAuthorization, readAuthorizations } from './authorization.ts'
import type {
  Authorization,
  Backup,
  BlockFetcher,
  DID,
  Link,
  PartKeys,
  Share,
  State,
  UnknownLink,
} from './interface.ts'
import { entries, getEntry } from './pail.ts'
import { isSha256Link, isTimestamp } from './schema.ts'
import { readShare, shareKey } from './share.ts'
import { readState } from './state.ts'
import { isTombstone } from './tombstone.ts'

/** Shards that are read ahead, unless only the first backup is wanted. */
const READ_AHEAD = 8

/** A backup, and when the account was read for it. */
export interface ListedBackup {
  /** UTC with milliseconds. */
  timestamp: string
  backup: Link<Backup>
}

/**
 * Accounts of a state, sorted.
 *
 * @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError}
 */
export async function accounts(
  fetcher: BlockFetcher,
  state: Link<State> | undefined
): Promise<DID[]> {
  if (state === undefined) return []
  return (Object.keys(await readState(fetcher, state)) as DID[]).sort()
}

/**
 * Lists the backups of an account by time, without those that were removed;
 * nothing for an account that the state does not have. Reads as far as the
 * list is read.
 *
 * @param options.before - only those from before this time
 * @param options.reverse - the latest first
 * @param options.limit - number of backups at most
 * @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError}
 */
export async function* listBackups(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  account: DID,
  {
    before,
    reverse = false,
    limit = Infinity,
  }: { before?: string; reverse?: boolean; limit?: number } = {}
): AsyncGenerator<ListedBackup> {
  if (state === undefined || limit <= 0) return
  const accountLink = (await readState(fetcher, state))[account]
  if (accountLink === undefined) return
  const { backups, prunedBefore } = await readAccount(fetcher, accountLink)
  let count = 0
  for await (const [key, value] of entries(fetcher, backups, {
    gte: prunedBefore,
    ...(before === undefined ? {} : { lt: before }),
    reverse,
    readAhead: Math.min(limit - 1, READ_AHEAD),
  })) {
    // What else stands there is no backup, and keeps nobody from the others.
    if (isTombstone(value) || !isTimestamp(key) || !isBackup(value)) continue
    yield { timestamp: key, backup: value }
    if (++count >= limit) return
  }
}

/**
 * What agents may do in an account: nothing for one that the state does not
 * have.
 *
 * @param options.agent - of this agent alone
 * @returns sorted by the DIDs of the agents
 * @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError}
 */
export async function listAuthorizations(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  account: DID,
  { agent }: { agent?: DID } = {}
): Promise<{ agent: DID; authorization: Authorization }[]> {
  if (state === undefined) return []
  const accountLink = (await readState(fetcher, state))[account]
  if (accountLink === undefined) return []
  const { authorizations: root } = await readAccount(fetcher, accountLink)
  const authorizations = Object.entries(await readAuthorizations(fetcher, root))
    .filter(([key]) => agent === undefined || key === agent)
    .sort(([a], [b]) => (a < b ? -1 : 1))
  return Promise.all(
    authorizations.map(async ([key, link]) => ({
      agent: key as DID,
      authorization: await readAuthorization(fetcher, link),
    }))
  )
}

/**
 * For whom private parts of an account are sealed beside its agents.
 *
 * @returns age recipient, if one is set
 * @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError}
 */
export async function findRecovery(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  account: DID
): Promise<string | undefined> {
  const link = state && (await readState(fetcher, state))[account]
  return link && (await readAccount(fetcher, link)).recovery?.recipient
}

/**
 * What an agent was given to open the private parts of a backup with.
 *
 * @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError}
 */
export async function findShare(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  { account, timestamp, agent }: { account: DID; timestamp: string; agent: DID }
): Promise<PartKeys> {
  const link = state && (await readState(fetcher, state))[account]
  const { shares } = link ? await readAccount(fetcher, link) : {}
  const key = shareKey(timestamp, agent)
  const share = shares && (await getEntry(fetcher, shares, key))
  return share ? (await readShare(fetcher, share as Link<Share>)).keys : {}
}

/**
 * The latest backup of an account. Reads one path of the Pail, from its right
 * edge: about ten shards, and more only if the latest backups were removed.
 *
 * @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError}
 */
export async function latestBackup(
  fetcher: BlockFetcher,
  state: Link<State> | undefined,
  account: DID
): Promise<ListedBackup | undefined> {
  const latest = listBackups(fetcher, state, account, {
    reverse: true,
    limit: 1,
  })
  for await (const backup of latest) return backup
  return undefined
}

function isBackup(value: UnknownLink): value is Link<Backup> {
  return isSha256Link(value, dagCbor.code)
}
