import {
  AccountNotFoundError,
  accounts,
  addShares,
  findFileKey,
  findShare,
  isInForce,
  isSealed,
  listAuthorizations,
  listBackups,
  MAX_HEADER_SIZE,
  PRIVATE_PARTS,
  readBackup,
  recipientOf,
  sealFileKey,
  UnsealError,
  type FileKey,
  type ListedBackup,
  type PartKeys,
} from '../space/index.ts'
import { concat } from './bytes.ts'
import { AgentNotAuthorizedError, GatewayError } from './errors.ts'
import type {
  BlockFetcher,
  DID,
  Link,
  PrivatePart,
  SealedPart,
  SpaceReader,
  State,
  Time,
} from './interface.ts'
import { openBackup, type BackupReader } from './read.ts'
import type { recordChange } from './record.ts'
import type { CreateSha256 } from './sha256.ts'

/** Backups whose keys go into the Space at once. */
export const SHARE_LIMIT = 500

/** Backups that are looked at before they are needed. */
const LOOK_AHEAD = 8

/** What sharing needs of the world. */
export interface ShareContext {
  /** The state that it goes by, and blocks to read it with. */
  blocks: BlockFetcher
  state: Link<State> | undefined
  reader: SpaceReader
  /** The identity of the agent that shares, see `deriveIdentity`. */
  identity(account: DID): Promise<CryptoKey>
  /** Changes the state in the Space, see {@link recordChange}. */
  record(change: Parameters<typeof recordChange>[1]): Promise<unknown>
  createSha256: CreateSha256
  time: Pick<Time, 'now'>
  onWarning?: ((message: string, error: unknown) => void) | undefined
}

/** What is shared, and with whom. */
export interface ShareRequest {
  account: DID
  /** The agent that gets the keys, a `did:key`. */
  agent: DID
  /** Only backups from before this time; from the latest on, if left out. */
  before?: string | undefined
  /** Backups that are shared at most. */
  limit?: number
  /** Once it aborts, no more backups are looked at. */
  enough?: AbortSignal
  signal?: AbortSignal
}

/** What was shared with an agent. */
export interface Shared {
  /** Backups that the agent can open now and could not before. */
  backups: number
  /** Backups with parts that who shares cannot open itself. */
  closed: number
  /** Backups that could not be read. */
  unreadable: number
  /** There are more: those from before this time. */
  before?: string
}

/**
 * Seals the keys of private parts that an agent can open for another one, from
 * the latest backup on, and puts them into the Space. Whoever it is sealed for
 * is read from the state alone: nobody names a recipient.
 *
 * It ends after {@link SHARE_LIMIT} backups, or when it was `enough`, and says
 * where to go on. What the agent can open already is passed over, so that
 * sharing again changes nothing.
 *
 * @throws {@link AccountNotFoundError} {@link AgentNotAuthorizedError}
 *   {@link GatewayError} and what `record` throws
 */
export async function shareParts(
  context: ShareContext,
  request: ShareRequest
): Promise<Shared> {
  const { account, agent } = request
  const recipient = await findRecipient(context, context, request)
  const { shares, ...shared } = await findShares(context, request, recipient)
  if (shares.length > 0) {
    await context.record(async (blocks, state) => {
      // It may have been given back meanwhile.
      const now = await findRecipient({ blocks, state }, context, request)
      if (now !== recipient) throw notAuthorized(request, 'has another key now')
      return addShares(blocks, state, { account, agent, shares })
    })
  }
  return { backups: shares.length, ...shared }
}

/**
 * For whom the keys are sealed.
 *
 * @throws {@link AccountNotFoundError} {@link AgentNotAuthorizedError} also
 *   when the authorization has ended, or was given back
 */
async function findRecipient(
  { blocks, state }: Pick<ShareContext, 'blocks' | 'state'>,
  { time }: Pick<ShareContext, 'time'>,
  request: ShareRequest
): Promise<string> {
  const { account, agent } = request
  if (!(await accounts(blocks, state)).includes(account)) {
    throw new AccountNotFoundError(
      `the Space has no account ${account}; there is nothing to share before its first backup`
    )
  }
  const [own] = await listAuthorizations(blocks, state, account, { agent })
  if (!own) throw notAuthorized(request, 'is not authorized')
  const { recipient, expiration } = own.authorization
  if (!isInForce(own.authorization, time.now())) {
    const when =
      expiration > 0
        ? `: that ended on ${new Date(expiration * 1000).toISOString()},`
        : ''
    throw notAuthorized(request, `is not authorized any more${when}`)
  }
  if (recipient === undefined) {
    throw notAuthorized(request, 'has no key that can be sealed for')
  }
  try {
    // Some that look valid cannot be sealed for.
    await sealFileKey(recipient, { fileKey: new Uint8Array(16) })
  } catch {
    throw notAuthorized(request, 'has a key that is not valid')
  }
  return recipient
}

function notAuthorized({ account, agent }: ShareRequest, why: string) {
  return new AgentNotAuthorizedError(
    `${agent} ${why} for ${account}; have it run \`bluesky-backups authorize ${account} --here\` first`
  )
}

/** What was found of backups that an agent cannot open yet. */
interface Found extends Omit<Shared, 'backups'> {
  shares: [timestamp: string, keys: PartKeys][]
}

async function findShares(
  context: ShareContext,
  request: ShareRequest,
  recipient: string
): Promise<Found> {
  const { blocks, state, onWarning } = context
  const { account, before, limit = SHARE_LIMIT, enough, signal } = request
  const found: Found = { shares: [], closed: 0, unreadable: 0 }
  const finder = await createKeyFinder(context, request, recipient)
  let last: string | undefined
  try {
    const backups = listBackups(blocks, state, account, {
      reverse: true,
      ...(before === undefined ? {} : { before }),
    })
    for await (const { listed, seen } of lookAhead(backups, finder.look)) {
      signal?.throwIfAborted()
      enough?.throwIfAborted()
      if (found.shares.length >= limit) return endedAt(found, last)
      const { timestamp } = listed
      try {
        const { keys, isClosed } = await finder.find(listed, await seen)
        if (isClosed) found.closed++
        if (Object.keys(keys).length > 0) found.shares.push([timestamp, keys])
      } catch (error) {
        signal?.throwIfAborted()
        enough?.throwIfAborted()
        // One that is lost keeps nobody from those before it.
        if (found.unreadable++ === 0) {
          onWarning?.(
            `the backup of ${timestamp} cannot be read, so that it is not shared: ${error instanceof Error ? error.message : String(error)}`,
            error
          )
        }
      }
      last = timestamp
    }
  } catch (error) {
    signal?.throwIfAborted()
    if (!enough?.aborted) throw error
    if (last === undefined) {
      throw new GatewayError(
        'the Space is read too slowly to share anything of it; try again later, or name another gateway',
        { cause: error }
      )
    }
    return endedAt(found, last)
  }
  return found
}

/**
 * Looks at backups before they are needed: each takes several ways to a
 * gateway.
 */
async function* lookAhead<T>(
  backups: AsyncIterable<ListedBackup>,
  look: (backup: ListedBackup) => Promise<T>
): AsyncGenerator<{ listed: ListedBackup; seen: Promise<T> }> {
  const ahead: { listed: ListedBackup; seen: Promise<T> }[] = []
  for await (const listed of backups) {
    const seen = look(listed)
    // An error is thrown to who awaits it, if any.
    seen.catch(() => {})
    ahead.push({ listed, seen })
    if (ahead.length > LOOK_AHEAD) yield ahead.shift()!
  }
  yield* ahead
}

function endedAt(found: Found, last: string | undefined): Found {
  return last === undefined ? found : { ...found, before: last }
}

/** A part that an agent cannot open yet. */
interface Lacking {
  part: PrivatePart
  record: SealedPart
}

/** Finds the keys of parts that one agent can open and another cannot. */
async function createKeyFinder(
  context: ShareContext,
  { account, agent, signal }: ShareRequest,
  recipient: string
) {
  const { blocks, state, reader, createSha256 } = context
  const own = await context.identity(account)
  const ownRecipient = await recipientOf(own)
  // Backups have parts in common that did not change: each is opened once.
  const known = new Map<string, Promise<FileKey>>()
  return {
    /** The parts that the agent cannot open yet. */
    look: async ({ timestamp, backup }: ListedBackup): Promise<Lacking[]> => {
      const { private: parts = {} } = await readBackup(reader, backup)
      const lacking = PRIVATE_PARTS.flatMap((part): Lacking[] => {
        const record = parts[part]
        return isSealed(record) && !record.recipients.includes(recipient)
          ? [{ part, record }]
          : []
      })
      if (lacking.length === 0) return []
      const share = await findShare(blocks, state, {
        account,
        timestamp,
        agent,
      })
      return lacking.filter(({ part }) => !share[part])
    },

    async find(
      { backup: link }: ListedBackup,
      lacking: Lacking[]
    ): Promise<{ keys: PartKeys; isClosed: boolean }> {
      const keys: PartKeys = {}
      let isClosed = false
      let opened: BackupReader | undefined
      for (const { part, record } of lacking) {
        signal?.throwIfAborted()
        if (!record.recipients.includes(ownRecipient)) {
          isClosed = true
          continue
        }
        const file = record.sealed.toString()
        try {
          let key = known.get(file)
          if (!key) {
            // The index of a backup is large: most need none.
            opened ??= await openBackup(reader, link, { createSha256 })
            key = readFileKey(opened, record, own)
            known.set(file, key)
          }
          keys[part] = await sealFileKey(recipient, await key)
        } catch (error) {
          if (!(error instanceof UnsealError)) throw error
          isClosed = true
        }
      }
      return { keys, isClosed }
    },
  }
}

/**
 * Finds the key of a sealed part.
 *
 * @throws {@link UnsealError} {@link GatewayError} {@link InvalidRepoError}
 */
async function readFileKey(
  backup: BackupReader,
  part: SealedPart,
  identity: CryptoKey
): Promise<FileKey> {
  const start: Uint8Array[] = []
  let size = 0
  for await (const chunk of backup.privateFile(part)) {
    start.push(chunk)
    size += chunk.length
    if (size >= MAX_HEADER_SIZE) break
  }
  return findFileKey(identity, concat(start, size))
}
