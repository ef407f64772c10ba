import type { CID } from 'multiformats/cid'
import {
  addBackup,
  appendToBlockIndex,
  buildPail,
  createEvent,
  encodeBackup,
  encodeJSONText,
  encodeMissingBlob,
  listAuthorizations,
  mergeHeads,
  putAll,
  setAuthorization,
} from '../space/index.ts'
import { BlockOverlay } from './block-overlay.ts'
import type {
  Authorization,
  Backup,
  Block,
  BlockFetcher,
  CallOptions,
  Clock,
  CommitSignature,
  DID,
  Event,
  EventLink,
  Identity,
  IndexedShard,
  Link,
  MissingBlob,
  Revision,
  State,
  Time,
  UnknownLink,
} from './interface.ts'
import {
  shardDigestOf,
  type UnstoredShard,
  type UploadCounts,
} from './packer.ts'
import type { PrivateBackup } from './private.ts'
import type { BackupContext } from './run.ts'
import { ShardBuilder } from './shard.ts'

/** Merges of a head that others keep moving, before leaving it to the next. */
const MAX_MERGES = 2
const MERGE_BACKOFF_MS = 50
/**
 * A head that was read so long ago is read again, in milliseconds. One that
 * has moved nevertheless costs a merge, nothing else.
 */
const FRESH_BASE_MS = 2_000
/** Metadata that goes along with `clock/advance`, in bytes. */
const MAX_ATTACHED_SIZE = 256 * 1024

/** What new states build upon: the state at the head of the clock. */
export interface Base extends Awaited<ReturnType<typeof mergeHeads>> {
  /** Unix milliseconds of the reading. */
  read: number
}

/** Reads the head of the clock and its state; several heads are merged. */
export async function readBase(
  clock: Clock,
  overlay: BlockOverlay,
  time: Time,
  signal: AbortSignal,
  onWarning?: BackupContext['onWarning']
): Promise<Base> {
  const read = time.now()
  const merged = await mergeHeads(overlay, await clock.head({ signal }))
  signal.throwIfAborted()
  for (const { head, error } of merged.unreadable) {
    onWarning?.(
      `the event ${head} at the head of the clock cannot be read; it is left in place`,
      error
    )
  }
  overlay.put(merged.additions)
  return { ...merged, read }
}

/** What a run found, ready to be recorded. */
export interface NewBackup {
  identity: Identity
  overlay: BlockOverlay
  previous: Backup | undefined
  /** Not there if only blobs were added to the last backup. */
  commit: { root: CID; rev: string; signature: CommitSignature } | undefined
  /** New blobs: CID → root of the UnixFS DAG. */
  blobs: Map<string, CID>
  /** All blobs that are missing now; not there if blobs were left out. */
  missing: Map<string, MissingBlob> | undefined
  parts: 'blobs'[]
  private: Pick<PrivateBackup, 'records' | 'preferences'>
  /** Unix milliseconds: backups of an account stay in the order of their runs. */
  notBefore: number
  /** Shards that are in the Space and in no backup's index yet. */
  shards: IndexedShard[]
  /** Those of the shards that are in no published index yet. */
  unpublished: IndexedShard[]
  /** A shard that is to be stored along with the metadata. */
  last: UnstoredShard | undefined
  /** The head of the clock when the run began. */
  base: Base
  signal: AbortSignal
  onUpload: (counts: UploadCounts) => void
  onAdvance: () => void
}

/**
 * Puts the backup's metadata into the Space and advances the clock to it. When
 * other agents moved the head meanwhile, merges with them.
 *
 * @throws {@link BackupError} when the Space or the clock takes no more
 */
export async function recordBackup(
  context: BackupContext,
  found: NewBackup
): Promise<{
  backup: { timestamp: string; link: Link<Backup>; value: Backup }
  event: Block<Event>
}> {
  const { clock, time } = context
  const { overlay, signal } = found
  const { block, value, additions } = await createBackup(found)
  overlay.put(additions)

  const base =
    time.now() - found.base.read < FRESH_BASE_MS
      ? found.base
      : await readBase(clock, overlay, time, signal, context.onWarning)
  const timestamp = new Date(
    Math.max(time.now(), found.notBefore)
  ).toISOString()
  const account = found.identity.did
  const authorization = await context.authorizations?.pending(account)
  const added = await addBackup(overlay, base.state, {
    account,
    timestamp,
    backup: block.cid,
    ...(authorization ? { authorization } : {}),
  })
  const event = await recordEvent(
    context,
    { base, state: added.root, additions: [...additions, ...added.additions] },
    { ...found, root: block.cid }
  )
  if (authorization) {
    const { agent } = authorization
    const found = await findAuthorization(overlay, added.root, account, agent)
    if (found) await context.authorizations?.recorded(account, found)
  }
  return { backup: { timestamp, link: block.cid, value }, event }
}

/** What changes of a state need of the world. */
export type RecordContext = Pick<
  BackupContext,
  | 'writer'
  | 'reader'
  | 'clock'
  | 'createSha256'
  | 'time'
  | 'limits'
  | 'onWarning'
>

/**
 * Changes the state in a Space: puts what is new into the Space and advances
 * the clock to it. When other agents moved the head meanwhile, merges with
 * them.
 *
 * @param change - one of those of `src/space`, as `setAuthorization`
 * @returns `event`, unless the state was so already
 * @throws {@link BackupError} when the Space or the clock takes no more, and
 *   what the change throws
 */
export async function recordChange(
  context: RecordContext,
  change: (
    fetcher: BlockFetcher,
    state: Link<State> | undefined
  ) => Promise<Revision<State>>,
  { signal = new AbortController().signal }: CallOptions = {}
): Promise<{ state: Link<State>; event?: Block<Event> }> {
  const { clock, time } = context
  const overlay = new BlockOverlay(context.reader)
  const base = await readBase(clock, overlay, time, signal, context.onWarning)
  const { root: state, additions } = await change(overlay, base.state)
  if (base.state?.equals(state)) return { state }
  const event = await recordEvent(
    context,
    { base, state, additions },
    { overlay, signal }
  )
  return { state, event }
}

/**
 * Puts the authorization of an agent into a Space, unless there is a greater
 * one of the same agent.
 *
 * @returns what the Space has
 * @throws {@link BackupError} when the Space or the clock takes no more
 */
export async function recordAuthorization(
  context: RecordContext,
  {
    account,
    agent,
    authorization,
  }: { account: DID; agent: DID; authorization: Authorization },
  options: CallOptions = {}
): Promise<Authorization | undefined> {
  let found: Authorization | undefined
  await recordChange(
    context,
    async (fetcher, state) => {
      const change = { account, agent, authorization }
      const revision = await setAuthorization(fetcher, state, change)
      const overlay = new BlockOverlay(fetcher)
      overlay.put(revision.additions)
      found = await findAuthorization(overlay, revision.root, account, agent)
      return revision
    },
    options
  )
  return found
}

async function findAuthorization(
  fetcher: BlockFetcher,
  state: Link<State>,
  account: DID,
  agent: DID
): Promise<Authorization | undefined> {
  const [own] = await listAuthorizations(fetcher, state, account, { agent })
  return own?.authorization
}

/** Makes an event of a new state, and has the Space and the clock take it. */
async function recordEvent(
  context: RecordContext,
  {
    base,
    state,
    additions,
  }: { base: Base; state: Link<State>; additions: Block[] },
  options: {
    overlay: BlockOverlay
    signal: AbortSignal
    /** What it is listed under in the Space; the event, if left out. */
    root?: UnknownLink
    onAdvance?: () => void
  } & Partial<Pick<NewBackup, 'shards' | 'unpublished' | 'last' | 'onUpload'>>
): Promise<Block<Event>> {
  const { clock, time } = context
  const { overlay, signal, shards = [], unpublished = [] } = options
  const event = await createEvent(state, base.heads)
  const metadata = [...base.additions, ...additions, event]
  overlay.put(metadata)
  const root = options.root ?? event.cid
  await put(context, options, root, metadata, {
    ...options,
    shards,
    unpublished,
  })

  options.onAdvance?.()
  let heads = await clock.advance(event.cid, attachable(metadata), { signal })
  for (let merge = 0; heads.length > 1 && merge < MAX_MERGES; merge++) {
    await time.sleep(MERGE_BACKOFF_MS * 2 ** merge * Math.random(), signal)
    try {
      const merged = await mergeEvents(context, heads, { ...options, root })
      if (!merged) break
      heads = merged.heads
    } catch (error) {
      // The event is in the clock. What could not be merged now, as with a
      // head that nobody can read, is left in place for the next agent.
      context.onWarning?.('heads of the clock could not be merged', error)
      break
    }
  }
  return event
}

/** What a merge of events came to. */
export interface MergedEvents {
  event: Block<Event>
  state: Link<State>
  /** The head of the clock after it. */
  heads: EventLink[]
}

/**
 * Merges the states of several events, puts what comes of it into the Space,
 * and advances the clock to one event in their place.
 *
 * @param heads - of the clock
 * @param options.root - what the merge is listed under in the Space; its event,
 *   if left out
 * @returns nothing if there are not two heads that can be read
 * @throws {@link UnreadableStateError} {@link MissingBlockError} when none of
 *   the heads can be read, {@link ClockError} when the clock does not take the
 *   event
 */
export async function mergeEvents(
  context: Pick<
    BackupContext,
    'writer' | 'reader' | 'createSha256' | 'limits' | 'clock'
  >,
  heads: EventLink[],
  {
    signal,
    root,
    overlay = new BlockOverlay(context.reader),
    onUpload,
  }: {
    signal: AbortSignal
    root?: UnknownLink
    overlay?: BlockOverlay
    onUpload?: (counts: UploadCounts) => void
  }
): Promise<MergedEvents | undefined> {
  const merged = await mergeHeads(overlay, heads)
  signal.throwIfAborted()
  const { state } = merged
  // The others cannot be read: they are left for an agent that can.
  if (!state || merged.heads.length < 2) return undefined
  const event = await createEvent(state, merged.heads)
  const metadata = [...merged.additions, event]
  overlay.put(metadata)
  await put(context, { signal, onUpload }, root ?? event.cid, metadata, {
    shards: [],
    unpublished: [],
  })
  return {
    event,
    state,
    heads: await context.clock.advance(event.cid, attachable(metadata), {
      signal,
    }),
  }
}

async function createBackup(found: NewBackup): Promise<{
  block: Block<Backup>
  value: Backup
  additions: Block[]
}> {
  const { overlay, previous, identity } = found
  const repo = found.commit?.root ?? previous?.repo
  const rev = found.commit?.rev ?? previous?.rev
  const signature = found.commit?.signature ?? previous?.signature
  if (!repo || rev === undefined || !signature) {
    throw new TypeError('a backup without a commit')
  }
  const additions: Block[] = []
  const blobs = await putAll(overlay, previous?.blobs, found.blobs)
  additions.push(...blobs.additions)

  let missing = previous?.missing
  if (found.missing) {
    const values: [string, UnknownLink][] = []
    for (const [cid, why] of found.missing) {
      const block = await encodeMissingBlob(why)
      additions.push(block)
      values.push([cid, block.cid])
    }
    missing = undefined
    if (values.length > 0) {
      const pail = await buildPail(values)
      additions.push(...pail.additions)
      missing = pail.root as Link<never>
    }
  }

  const document = await encodeJSONText(identity.document)
  additions.push(document)
  const log =
    identity.log === undefined ? undefined : await encodeJSONText(identity.log)
  if (log) additions.push(log)

  const index = await appendToBlockIndex(
    overlay,
    previous?.index,
    found.last ? [...found.shards, found.last.indexed] : found.shards
  )
  additions.push(...index.additions)

  const { records, preferences } = found.private
  const hasPrivate = Object.keys(records).length > 0
  const value: Backup = {
    version: hasPrivate ? 2 : 1,
    account: identity.did,
    rev,
    repo: repo as Backup['repo'],
    blobs: blobs.root,
    ...(missing ? { missing } : {}),
    identity: {
      document: document.cid,
      ...(log ? { log: log.cid } : {}),
    },
    signature,
    parts: found.parts,
    ...(hasPrivate ? { private: records } : {}),
    ...(preferences ? { preferences } : {}),
    index: index.root,
  }
  const block = await encodeBackup(value)
  additions.push(block)
  const inherited = new Set(
    [previous?.identity.document, previous?.identity.log].map(String)
  )
  return {
    block,
    value,
    additions: additions.filter(({ cid }) => !inherited.has(cid.toString())),
  }
}

/** Puts metadata into the Space, and lets gateways find all that is new. */
async function put(
  {
    writer,
    reader,
    createSha256,
    limits,
  }: Pick<BackupContext, 'writer' | 'reader' | 'createSha256' | 'limits'>,
  {
    signal,
    onUpload,
  }: {
    signal: AbortSignal
    onUpload?: ((counts: UploadCounts) => void) | undefined
  },
  root: UnknownLink,
  blocks: Block[],
  {
    shards,
    unpublished,
    last,
  }: Pick<NewBackup, 'shards' | 'unpublished'> & {
    last?: NewBackup['last']
  }
): Promise<void> {
  const added: IndexedShard[] = []
  const storing: Promise<void>[] = []
  const store = async ({ bytes, indexed }: UnstoredShard) => {
    added.push(indexed)
    await writer.putShard({ digest: indexed.digest, bytes }, { signal })
    onUpload?.({
      blocksUploaded: indexed.slices.length,
      bytesUploaded: indexed.size,
    })
  }
  if (last) storing.push(store(last))
  let builder = new ShardBuilder(limits.shardSize)
  const flush = () => {
    const { bytes, slices } = builder.seal()
    builder = new ShardBuilder(limits.shardSize)
    const digest = shardDigestOf(createSha256, bytes)
    storing.push(
      store({ bytes, indexed: { digest, size: bytes.length, slices } })
    )
  }
  const seen = new Set<string>()
  for (const { cid, bytes } of blocks) {
    if (seen.has(cid.toString())) continue
    seen.add(cid.toString())
    if (!builder.fits(bytes.length)) flush()
    builder.add(cid.bytes, cid.multihash.digest, bytes)
  }
  flush()
  const stored = Promise.all(storing)
  const [{ size }] = await Promise.all([
    writer.publishIndex(
      { content: root, shards: [...unpublished, ...added], stored },
      { signal }
    ),
    stored.then(() =>
      writer.listUpload({ root, shards: [...shards, ...added] }, { signal })
    ),
  ])
  onUpload?.({ blocksUploaded: 0, bytesUploaded: size })
  reader.keep(blocks)
}

/** The event and as much of what is below it as fits into a request. */
function attachable(metadata: Block[]): Block[] {
  const attached: Block[] = []
  let size = 0
  for (const block of metadata.toReversed()) {
    size += block.bytes.length
    if (size > MAX_ATTACHED_SIZE) break
    attached.push(block)
  }
  return attached
}
