import type {
  Account,
  Authorization,
  Authorizations,
  Block,
  BlockFetcher,
  DID,
  Link,
  Pail,
  Recovery,
  Revision,
  Share,
  State,
  UnknownLink,
} from './interface.ts'
import { encodeAccount, readAccount } from './account.ts'
import {
  encodeAuthorizations,
  greaterAuthorization,
  readAuthorizations,
  readRanked,
} from './authorization.ts'
import { compareBytes } from './bytes.ts'
import { UnreadableStateError } from './errors.ts'
import { joinPails } from './pail-join.ts'
import { type ShardPosition, readShard } from './pail-shard.ts'
import { encodeState, readState } from './state.ts'
import { isTombstone } from './tombstone.ts'

/** Something that one of the states links to. */
interface Source<T> {
  link: Link<T>
  /** Reads a part of the state; an error says which state it was. */
  read: Read
}

type Read = <T, L>(
  readPart: (fetcher: BlockFetcher, link: L) => Promise<T>,
  link: L
) => Promise<T>

/**
 * Joins states point by point, without a common ancestor: the accounts, agents
 * and backups of all; of one agent's authorizations the greatest (`seq`, then
 * `expiration`, then bytes); of two backups of the same time the greater CID,
 * unless one of them is removed; the latest `prunedBefore`, and no backup that
 * is older; of two settings of the recovery the greater (`seq`, then text); the
 * shares of all, likewise.
 *
 * The join is commutative, associative and idempotent, and its root depends on
 * nothing but the contents: two agents that merge write the same state.
 *
 * @param states - at least one
 * @throws {@link UnreadableStateError} when a part of a state is missing or
 *   invalid, {@link TooLargeError} when the states together have too many
 *   accounts or agents
 */
export async function mergeStates(
  fetcher: BlockFetcher,
  states: Link<State>[]
): Promise<Revision<State>> {
  if (states.length === 0) throw new RangeError('There is no state to merge')
  const additions: Block[] = []
  const sources = states.map((link) => ({
    link,
    read: readerOf(fetcher, link),
  }))
  const root = await joinStates(sources, additions)
  return { root, additions }
}

/**
 * Of two backups with the same timestamp, the one that stays: none if one of
 * them was removed, otherwise the one with the greater CID.
 */
export function greaterBackup(a: UnknownLink, b: UnknownLink): UnknownLink {
  if (isTombstone(a)) return a
  if (isTombstone(b)) return b
  return compareBytes(a.bytes, b.bytes) >= 0 ? a : b
}

/**
 * Of two settings of the recovery, the one that counts: the greater `seq`, then
 * the greater text; one that was unset is less than any text.
 */
export function greaterRecovery(
  a: Recovery | undefined,
  b: Recovery
): Recovery {
  if (a === undefined || a.seq !== b.seq) {
    return a !== undefined && a.seq > b.seq ? a : b
  }
  return (a.recipient ?? '') > (b.recipient ?? '') ? a : b
}

function readerOf(fetcher: BlockFetcher, state: Link<State>): Read {
  return async (readPart, link) => {
    try {
      return await readPart(fetcher, link)
    } catch (cause) {
      throw new UnreadableStateError(
        `State ${state.toString()} cannot be merged: ${(cause as Error).message}`,
        { cause, state: state.toString() }
      )
    }
  }
}

async function joinStates(
  sources: Source<State>[],
  additions: Block[]
): Promise<Link<State>> {
  const distinct = withoutRepeats(sources)
  if (distinct.length === 1) return distinct[0]!.link
  const state: State = {}
  for (const [did, accounts] of await openMaps(distinct, readState)) {
    state[did] = await joinAccounts(accounts, additions)
  }
  return add(await encodeState(state), distinct, additions)
}

async function joinAccounts(
  sources: Source<Account>[],
  additions: Block[]
): Promise<Link<Account>> {
  const distinct = withoutRepeats(sources)
  if (distinct.length === 1) return distinct[0]!.link
  const accounts = await Promise.all(
    distinct.map(async ({ link, read }) => ({
      account: await read(readAccount, link),
      read,
    }))
  )
  const prunedBefore = accounts
    .flatMap(({ account }) => account.prunedBefore ?? [])
    .sort()
    .at(-1)
  const account: Account = {
    authorizations: await joinAuthorizations(
      accounts.map(({ account, read }) => ({
        link: account.authorizations,
        read,
      })),
      additions
    ),
    backups: await joinBackups(
      accounts.map(({ account, read }) => ({ link: account.backups, read })),
      prunedBefore,
      additions
    ),
    prunedBefore,
    recovery: accounts
      .flatMap(({ account }) => account.recovery ?? [])
      .reduce<Recovery | undefined>(greaterRecovery, undefined),
    shares: await joinShares(
      accounts.flatMap(({ account: { shares }, read }) =>
        shares ? [{ link: shares, read }] : []
      ),
      prunedBefore,
      additions
    ),
  }
  return add(await encodeAccount(account), distinct, additions)
}

async function joinAuthorizations(
  sources: Source<Authorizations>[],
  additions: Block[]
): Promise<Link<Authorizations>> {
  const distinct = withoutRepeats(sources)
  if (distinct.length === 1) return distinct[0]!.link
  const authorizations: Authorizations = {}
  for (const [did, grants] of await openMaps(distinct, readAuthorizations)) {
    authorizations[did] = await greatest(grants)
  }
  return add(await encodeAuthorizations(authorizations), distinct, additions)
}

async function greatest(
  sources: Source<Authorization>[]
): Promise<Link<Authorization>> {
  const distinct = withoutRepeats(sources)
  if (distinct.length === 1) return distinct[0]!.link
  const ranked = await Promise.all(
    distinct.map(({ link, read }) => read(readRanked, link))
  )
  return ranked.reduce(greaterAuthorization).link
}

/** Joins Pails whose keys begin with the timestamp of a backup. */
async function joinBackups<T>(
  sources: Source<Pail<T>>[],
  prunedBefore: string | undefined,
  additions: Block[]
): Promise<Link<Pail<T>>> {
  const pails = sources.map(({ link, read }) => ({
    root: link,
    read: (position: ShardPosition) => read(readShard, position),
  }))
  const revision = await joinPails<T>(pails, {
    resolve: greaterBackup,
    before: prunedBefore,
  })
  additions.push(...revision.additions)
  return revision.root
}

async function joinShares(
  sources: Source<Pail<Share>>[],
  prunedBefore: string | undefined,
  additions: Block[]
): Promise<Link<Pail<Share>> | undefined> {
  return sources.length === 0
    ? undefined
    : joinBackups(sources, prunedBefore, additions)
}

/** Reads maps of links and gathers what each key links to. */
async function openMaps<T>(
  sources: Source<Record<DID, Link<T>>>[],
  readMap: (
    fetcher: BlockFetcher,
    link: Link<Record<DID, Link<T>>>
  ) => Promise<Record<DID, Link<T>>>
): Promise<Map<DID, Source<T>[]>> {
  const maps = await Promise.all(
    sources.map(async ({ link, read }) => ({
      entries: Object.entries(await read(readMap, link)),
      read,
    }))
  )
  const gathered = new Map<DID, Source<T>[]>()
  for (const { entries, read } of maps) {
    for (const [did, link] of entries) {
      const source = { link, read }
      const others = gathered.get(did as DID)
      if (others === undefined) gathered.set(did as DID, [source])
      else others.push(source)
    }
  }
  return gathered
}

/** Adds a block unless one of the sources has it already. */
function add<T>(
  block: Block<T>,
  sources: Source<T>[],
  additions: Block[]
): Link<T> {
  const isKnown = sources.some(({ link }) => link.equals(block.cid))
  if (!isKnown) additions.push(block)
  return block.cid
}

function withoutRepeats<T>(sources: Source<T>[]): Source<T>[] {
  const byLink = new Map(
    sources.map((source) => [source.link.toString(), source])
  )
  return [...byLink.values()]
}
