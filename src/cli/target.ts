import {
  BackupError,
  openBackup,
  type BackupReader,
  type DID,
} from '../backup/index.ts'
import { createNativeSha256 } from '../node/index.ts'
import {
  accounts,
  decodeJSONText,
  latestBackup,
  listBackups,
  mergeHeads,
  readBackup,
  type Block,
  type BlockFetcher,
  type Link,
  type ListedBackup,
  type State,
} from '../space/index.ts'
import { NoBackupError, UsageError } from './errors.ts'
import type { Session } from './session.ts'

/** `latest`, or the time of a backup or its beginning. */
const TIME = /^(latest|\d{4}(-\d\d(-\d\d(T[\d:.]*Z?)?)?)?)$/

/** A DID of an account, or something like a handle. */
const ACCOUNT = /^(did:(plc|web):\S+|[a-z0-9-]+(\.[a-z0-9-]+)+)$/

const MAX_DOCUMENT_SIZE = 2 * 1024 * 1024
/** Times that are named where several could be meant. */
const NAMED_TIMES = 5

/** The state of the Space, and blocks to read it with. */
export interface SpaceView {
  blocks: BlockFetcher
  state: Link<State> | undefined
  accounts: DID[]
  /** CIDs of the events at the head of the clock. */
  head: string[]
  /** Whether all of the events could be read. */
  isWhole: boolean
}

/** Reads the head of the clock and what it says. */
export async function viewSpace(session: Session): Promise<SpaceView> {
  const clock = await session.clock()
  const head = await clock.head()
  const { state, additions, unreadable } = await mergeHeads(
    session.reader,
    head
  )
  for (const { head, error } of unreadable) {
    session.warn(
      `the event ${head} at the head of the clock cannot be read, so what it says is left out: ${error.message}`
    )
  }
  // A state that was merged just now is in no Space yet.
  const merged = new Map(
    additions.map((block) => [block.cid.toString(), block])
  )
  const blocks: BlockFetcher = {
    get: async (link): Promise<Block | undefined> =>
      merged.get(link.toString()) ?? session.reader.get(link),
  }
  return {
    blocks,
    state,
    accounts: await accounts(blocks, state),
    head: head.map(String),
    isWhole: unreadable.length === 0,
  }
}

/** Tells `[account] [time]` apart: either may be left out. */
export function parseTarget(words: (string | undefined)[]): {
  account?: string
  time?: string
} {
  const [first, second] = words
  if (first === undefined) return {}
  if (second === undefined) {
    return TIME.test(first) ? { time: first } : { account: first }
  }
  if (!TIME.test(second)) {
    throw new UsageError(
      `"${second}" is not the time of a backup; give one as \`bluesky-backups backup ls\` shows it, or \`latest\``
    )
  }
  return { account: first, time: second }
}

/**
 * The account that is meant. A handle is looked up as it is now and, where that
 * leads nowhere, in the DID documents that were backed up: the host of an
 * account may be gone when its backup is needed.
 *
 * @param word - DID or handle; may be left out if the Space has only one
 * @throws {@link NoBackupError} {@link UsageError}
 */
export async function findAccount(
  session: Session,
  { blocks, state, accounts: known }: SpaceView,
  word: string | undefined
): Promise<DID> {
  if (word === undefined) {
    const [only, ...others] = known
    if (only === undefined) {
      throw new NoBackupError(
        'there are no backups in this Space yet; make one with `bluesky-backups backup run HANDLE`'
      )
    }
    if (others.length === 0) return only
    throw new UsageError(
      `the Space has backups of ${known.length} accounts; name one of ${known.join(', ')}`
    )
  }
  const account = normalizeAccount(word)
  if (account.startsWith('did:')) {
    if (known.includes(account as DID)) return account as DID
    throw noBackups(account)
  }
  let unresolved: unknown
  try {
    const { did } = await session.identities.resolve(account)
    if (known.includes(did)) return did
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    unresolved = error
  }
  for (const did of known) {
    const latest = await latestBackup(blocks, state, did)
    if (!latest) continue
    const { identity } = await readBackup(blocks, latest.backup)
    const document = await blocks.get(identity.document)
    if (
      document &&
      handleIn(decodeJSONText(document, { maxSize: MAX_DOCUMENT_SIZE })) ===
        account
    )
      return did
  }
  if (unresolved !== undefined) throw unresolved as Error
  throw noBackups(account)
}

/**
 * The backup that is meant.
 *
 * @param time - `latest`, or the beginning of one backup's time
 * @throws {@link NoBackupError} {@link UsageError}
 */
export async function findBackup(
  { blocks, state }: SpaceView,
  account: DID,
  time = 'latest'
): Promise<ListedBackup> {
  if (!TIME.test(time)) {
    throw new UsageError(
      `"${time}" is not the time of a backup; give one as \`bluesky-backups backup ls\` shows it, or \`latest\``
    )
  }
  if (time === 'latest') {
    const latest = await latestBackup(blocks, state, account)
    if (!latest) throw noBackups(account)
    return latest
  }
  const matching: ListedBackup[] = []
  for await (const backup of listBackups(blocks, state, account)) {
    if (backup.timestamp.startsWith(time)) matching.push(backup)
    if (matching.length > NAMED_TIMES) break
  }
  const [found, ...others] = matching
  if (!found) {
    throw new NoBackupError(
      `there is no backup of ${account} at ${time}; \`bluesky-backups backup ls\` shows their times`
    )
  }
  if (others.length > 0) {
    throw new UsageError(
      `several backups are of ${time}; say which: ${matching.map(({ timestamp }) => timestamp).join(', ')}`
    )
  }
  return found
}

/** Opens the backup that is meant. */
export async function openTarget(
  session: Session,
  words: (string | undefined)[]
): Promise<{ timestamp: string; backup: BackupReader; view: SpaceView }> {
  const { account, time } = parseTarget(words)
  const view = await viewSpace(session)
  const did = await findAccount(session, view, account)
  const found = await findBackup(view, did, time)
  return {
    view,
    timestamp: found.timestamp,
    backup: await openBackup(session.reader, found.backup, {
      createSha256: createNativeSha256,
    }),
  }
}

/**
 * A DID as it is, a handle as it is written in DID documents.
 *
 * @param word - as somebody typed it, perhaps with an at sign
 * @throws {@link UsageError} when it is neither
 */
export function normalizeAccount(word: string): string {
  const account = word.startsWith('did:')
    ? word
    : word.replace(/^@/, '').toLowerCase()
  if (!ACCOUNT.test(account)) {
    throw new UsageError(
      `${JSON.stringify(word)} is no account; give its handle, as in alice.bsky.social, or its DID, a did:plc or did:web`
    )
  }
  return account
}

/**
 * The DID of an account, which need not have backups.
 *
 * @param word - DID or handle
 */
export async function resolveAccount(
  session: Session,
  word: string,
  signal: AbortSignal
): Promise<DID> {
  const account = normalizeAccount(word)
  return account.startsWith('did:')
    ? (account as DID)
    : (await session.identities.resolve(account, { signal })).did
}

/** The handle that a DID document names; nobody has checked it. */
export function handleIn(document: string): string | undefined {
  let parsed: unknown
  try {
    parsed = JSON.parse(document)
  } catch {
    return undefined
  }
  const { alsoKnownAs } = Object(parsed) as { alsoKnownAs?: unknown }
  const names: unknown[] = Array.isArray(alsoKnownAs) ? alsoKnownAs : []
  const name = names.find(
    (name): name is string =>
      typeof name === 'string' && name.startsWith('at://')
  )
  return name?.slice('at://'.length)
}

function noBackups(account: string): NoBackupError {
  return new NoBackupError(
    `there are no backups of ${account} in this Space; make one with \`bluesky-backups backup run ${account}\``
  )
}
