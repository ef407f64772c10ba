import PQueue from 'p-queue'
import { CID } from 'multiformats/cid'
import {
  entries,
  getEntry,
  latestBackup,
  loadBlockIndex,
  PRIVATE_PARTS,
  readBackup,
  type BlockIndexReader,
} from '../space/index.ts'
import { DigestTable } from '../space/digest-table.ts'
import {
  fetchBlob,
  MissingBlobError,
  writeUnixFS,
  type VerifiedBlob,
} from './blob.ts'
import { BlockOverlay } from './block-overlay.ts'
import {
  AccountUnavailableError,
  HostUnavailableError,
  IncompleteRepoError,
  PartNotGrantedError,
} from './errors.ts'
import { IndexPublisher } from './index-publisher.ts'
import type {
  AbsentPart,
  AccountReader,
  AuthorizationJournal,
  Backup,
  Clock,
  CreateSpool,
  DID,
  Identity,
  IdentityResolver,
  IndexedShard,
  Journal,
  Link,
  MissingBlob,
  MissingBlobReason,
  Outcome,
  Part,
  PrivateParts,
  Progress,
  SpaceReader,
  SpaceWriter,
  Spool,
  Stage,
  Time,
  UnknownLink,
} from './interface.ts'
import { Packer, type UploadCounts } from './packer.ts'
import {
  openAccess,
  PrivateBackup,
  type Access,
  type PrivateContext,
  type PrivateOptions,
} from './private.ts'
import { BackupReader } from './read.ts'
import { trackProgress, type ProgressTracker } from './progress.ts'
import { readBase, recordBackup } from './record.ts'
import { verifyRepo, type KnownBlocks, type VerifiedRepo } from './repo.ts'
import type { CreateSha256 } from './sha256.ts'

/** Limits of what one run takes in and does at once. */
export interface BackupLimits {
  /** Largest blob that is backed up, in bytes. */
  maxBlobSize: number
  /** Blobs fetched from the host at the same time. */
  concurrentBlobs: number
  /** Size of the CARs that are put into the Space, in bytes. */
  shardSize: number
  /** Slices of shards that make an index before the end of the run. */
  indexSize: number
}

export const DEFAULT_LIMITS: BackupLimits = {
  maxBlobSize: 512 * 1024 * 1024,
  concurrentBlobs: 8,
  shardSize: 8 * 1024 * 1024,
  indexSize: 8_000,
}

/** Why a blob is missing where that is up to the host. */
const NOT_GIVEN = new Set<MissingBlobReason>(['not-found', 'taken-down'])

/** Reads of a repository that changes while it is read, before giving up. */
const MAX_READS = 3

/** What is backed up where nothing is said: conversations only by name. */
const DEFAULT_PARTS: readonly Part[] = [
  'blobs',
  ...PRIVATE_PARTS.filter((part) => part !== 'conversations'),
]

const NO_ACCESS: Access = { absent: { outcome: 'not-granted' } }

/** All that a run needs of the world. */
export interface BackupContext {
  identities: IdentityResolver
  accounts: AccountReader
  writer: SpaceWriter
  reader: SpaceReader
  clock: Clock
  journal: (account: DID) => Journal
  createSpool: CreateSpool
  createSha256: CreateSha256
  time: Time
  limits: BackupLimits
  /** Not there for an agent that reads nothing but what is public. */
  private?: PrivateContext
  /** The agent's own grants, which go along with backups. */
  authorizations?: AuthorizationJournal
  /** Told what did not end the run but should not go unseen. */
  onWarning?: (message: string, error: unknown) => void
}

export interface BackupRequest {
  /** DID or handle. */
  account: string
  /** What to back up beside the repository; all but conversations, if not given. */
  parts?: Part[]
  signal?: AbortSignal
  /** Called often, with the same object each time. */
  onProgress?: (progress: Readonly<Progress>) => void
}

interface PreviousBackup {
  timestamp: string
  link: Link<Backup>
  backup: Backup
  index: BlockIndexReader
}

/**
 * Backs an account up into a Space and tells its clock.
 *
 * Reads what is new since the last backup of the account in the Space,
 * verifies it, puts it into the Space in an order in which a crash at any
 * point leaves at most blocks that nothing refers to, and advances the clock.
 * A run that was interrupted is resumed from its journal.
 *
 * @throws the errors of `errors.ts`; nothing that was read is trusted before
 *   it is verified, and nothing unverified is put into the Space
 */
export async function runBackup(
  context: BackupContext,
  request: BackupRequest
): Promise<Outcome> {
  const { time, writer } = context
  const requestsBefore = writer.requests
  const tracker = trackProgress({
    time,
    requests: () => writer.requests - requestsBefore,
    onProgress: request.onProgress,
  })
  try {
    return await backUp(
      { ...context, accounts: tracker.counting(context.accounts) },
      request,
      tracker
    )
  } finally {
    tracker.end()
  }
}

async function backUp(
  context: BackupContext,
  request: BackupRequest,
  { progress, report, end }: ProgressTracker
): Promise<Outcome> {
  const { time, reader, clock } = context
  const started = time.now()
  const asked = request.parts ?? DEFAULT_PARTS
  const parts = asked.filter((part) => part === 'blobs')
  const onUpload = ({ blocksUploaded, bytesUploaded }: UploadCounts) =>
    report({
      blocksUploaded: progress.blocksUploaded + blocksUploaded,
      bytesUploaded: progress.bytesUploaded + bytesUploaded,
    })
  const enter = (stage: Stage) => {
    request.signal?.throwIfAborted()
    report({ stage })
  }

  enter('resolve')
  const stop = new AbortController()
  const signal = request.signal
    ? AbortSignal.any([request.signal, stop.signal])
    : stop.signal
  const overlay = new BlockOverlay(reader)
  const [identity, base] = await Promise.all([
    context.identities.resolve(request.account, { signal }),
    readBase(clock, overlay, time, signal, context.onWarning),
  ])
  const latest = await latestBackup(overlay, base.state, identity.did)
  enter('read')
  const wanted = asked.filter((part) => part !== 'blobs')
  const opening =
    wanted.length > 0
      ? openAccess(context.private, identity.did, {
          signal,
          onWarning: context.onWarning,
        })
      : null
  const [previous, { commit, accounts }, access] = await Promise.all([
    latest && loadPrevious(overlay, latest),
    readCommit(context, identity, { opening, signal }),
    opening ?? NO_ACCESS,
  ])
  const covered =
    previous !== undefined &&
    parts.every((part) => previous.backup.parts.includes(part))
  const sameCommit =
    covered &&
    previous.backup.rev === commit.rev &&
    previous.backup.repo.toString() === commit.cid.toString()
  const journal = context.journal(identity.did)
  let outcomes: PrivateParts = {}
  const result = (
    kind: Outcome['kind'],
    backup: { timestamp: string; link: Link<Backup>; value: Backup },
    event?: { cid: { toString(): string } }
  ): Outcome => {
    end()
    const { stage: _stage, ...counts } = progress
    return {
      kind,
      account: identity.did,
      rev: backup.value.rev,
      commit: backup.value.repo.toString(),
      timestamp: backup.timestamp,
      backup: backup.link.toString(),
      ...(event ? { event: event.cid.toString() } : {}),
      signature: backup.value.signature,
      ...(wanted.length > 0 ? { private: inShort(outcomes) } : {}),
      ...counts,
      ms: time.now() - started,
    }
  }
  const unchanged = async (last: PreviousBackup) => {
    await journal.clear()
    return result('unchanged', {
      timestamp: last.timestamp,
      link: last.link,
      value: last.backup,
    })
  }
  const retryBlobs = parts.includes('blobs') && previous?.backup.missing
  await using privateParts = await readPrivate(context, {
    parts: wanted,
    identity,
    access,
    blocks: overlay,
    state: base.state,
    previous,
    signal,
  })
  outcomes = privateParts.records
  if (sameCommit && !retryBlobs && !privateParts.isNew) {
    return unchanged(previous)
  }

  const resumed = await loadJournal(journal)
  const known: KnownBlocks = {
    has: (digest) =>
      (previous?.index.has(digest) ?? false) || resumed.known.has(digest),
  }
  let root: UnknownLink = commit.cid
  const indexes = new IndexPublisher({
    writer: context.writer,
    content: () => root,
    size: context.limits.indexSize,
    signal,
    onUpload,
  })
  const packer = new Packer({
    writer: context.writer,
    journal,
    createSha256: context.createSha256,
    known,
    shardSize: context.limits.shardSize,
    signal,
    onUpload,
    onStored: (shard) => indexes.add(shard),
  })
  const blobs = new BlobBackup({
    ...context,
    accounts,
    identity,
    packer,
    previous: previous?.backup,
    resumed: resumed.blobs,
    overlay,
    progress,
    report,
    signal,
  })
  /**
   * A host that is to be left alone is asked again: what it gave goes into the
   * Space, so that the next run does not ask for it twice.
   */
  const keepWork = async () => {
    await blobs.settle()
    await packer.flush().catch((error: unknown) => {
      context.onWarning?.('what the host gave could not be kept', error)
    })
  }
  let spool: Spool | undefined
  try {
    const since = covered ? previous.backup.rev : undefined
    let repo: VerifiedRepo | undefined
    if (!sameCommit) {
      const read = await readRepo({ ...context, accounts }, identity, {
        since,
        known: previous?.index ?? new DigestTable(),
        signal,
        onReceived: (repoBytes) => report({ repoBytes }),
      })
      spool = read.spool
      repo = read.repo
      root = repo.root
      report({
        stage: 'verify',
        records: repo.records,
        repoBytes: repo.received,
      })
    }
    // Nothing goes into the Space before the repository is verified.
    enter('blobs')
    for (const shard of resumed.shards) indexes.add(shard)
    await privateParts.pack(packer)
    if (parts.includes('blobs')) blobs.start({ list: !sameCommit, since })
    if (repo) {
      for await (const { digest, bytes } of repo.blocks()) {
        await packer.addRepoBlock(digest, bytes)
      }
      if (parts.includes('blobs')) {
        for (const cid of repo.blobs.keys()) await blobs.consider(cid)
      }
    }
    await blobs.finish()
    if (!repo && previous && blobs.added.size === 0 && !privateParts.isNew) {
      return await unchanged(previous)
    }
    enter('upload')
    const last = await packer.finish()
    const unpublished = await indexes.finish()

    enter('record')
    const kind = previous ? 'incremental' : 'first'
    const recorded = await recordBackup(context, {
      identity,
      overlay,
      previous: previous?.backup,
      commit: repo
        ? { root: repo.root, rev: repo.commit.rev, signature: repo.signature }
        : undefined,
      blobs: blobs.added,
      missing: parts.includes('blobs') ? blobs.missing : undefined,
      parts: sameCommit ? previous.backup.parts : parts,
      private: privateParts,
      notBefore: previous ? Date.parse(previous.timestamp) + 1 : 0,
      shards: [...resumed.shards, ...packer.shards],
      unpublished,
      last,
      base,
      signal,
      onUpload,
      onAdvance: () => enter('advance'),
    })
    await journal.clear()
    return result(kind, recorded.backup, recorded.event)
  } catch (error) {
    if (error instanceof HostUnavailableError) await keepWork()
    stop.abort(error)
    await blobs.settle()
    await packer.settle()
    await indexes.settle()
    throw error
  } finally {
    await spool?.close()
  }
}

/**
 * Reads the commit that an account is at. One that its host gives to nobody
 * else is read with the owner's session.
 */
async function readCommit(
  { accounts, private: owner, onWarning }: BackupContext,
  identity: Identity,
  { opening, signal }: { opening: Promise<Access> | null; signal: AbortSignal }
): Promise<{
  commit: Awaited<ReturnType<AccountReader['latestCommit']>>
  accounts: AccountReader
}> {
  try {
    const commit = await accounts.latestCommit(identity, { signal })
    return { commit, accounts }
  } catch (error) {
    if (!(error instanceof AccountUnavailableError) || !owner) throw error
    const access = await (opening ??
      openAccess(owner, identity.did, { signal, onWarning }))
    if (!access.session) throw unavailable(error, access.absent)
    const owned = owner.accounts(access.session)
    try {
      const commit = await owned.latestCommit(identity, { signal })
      return { commit, accounts: owned }
    } catch (cause) {
      if (!(cause instanceof PartNotGrantedError)) throw cause
      throw unavailable(error, {
        outcome: 'not-granted',
        detail: cause.message,
      })
    }
  }
}

/**
 * Hosts end grants of accounts that they take down, and of some that are
 * deactivated, and let nobody consent anew meanwhile: to authorize again is of
 * no use before the account is back.
 *
 * @param access - what came of the owner's grant, if there was one
 */
function unavailable(
  error: AccountUnavailableError,
  { outcome, detail }: AbsentPart
): AccountUnavailableError {
  if (detail === undefined) return error
  const grant =
    outcome === 'not-granted'
      ? 'The grant of its owner has ended; authorize again when the account is back.'
      : `The grant of its owner could not be used: ${detail}`
  return new AccountUnavailableError(`${error.message} ${grant}`, {
    cause: error,
  })
}

async function readPrivate(
  context: BackupContext,
  {
    previous,
    ...options
  }: Pick<
    PrivateOptions,
    'parts' | 'identity' | 'access' | 'blocks' | 'state' | 'signal'
  > & { previous: PreviousBackup | undefined }
): Promise<PrivateBackup> {
  const { reader, createSha256, createSpool, time, onWarning } = context
  const parts = new PrivateBackup({
    ...options,
    context: context.private,
    createSha256,
    createSpool,
    time,
    onWarning,
    previous:
      previous &&
      new BackupReader(
        reader,
        previous.link,
        previous.backup,
        previous.index,
        createSha256
      ),
  })
  try {
    await parts.read()
    return parts
  } catch (error) {
    await parts[Symbol.asyncDispose]()
    throw error
  }
}

/** Outcomes of private parts, without where they are. */
function inShort(parts: PrivateParts): Outcome['private'] {
  return Object.fromEntries(
    Object.entries(parts).map(([part, { outcome, detail }]) => [
      part,
      { outcome, ...(detail === undefined ? {} : { detail }) },
    ])
  )
}

async function loadPrevious(
  overlay: BlockOverlay,
  { timestamp, backup: link }: { timestamp: string; backup: Link<Backup> }
): Promise<PreviousBackup> {
  const backup = await readBackup(overlay, link)
  const index = await loadBlockIndex(overlay, backup.index)
  return { timestamp, link, backup, index }
}

/** What an interrupted run has put into the Space. */
async function loadJournal(journal: Journal) {
  const shards: IndexedShard[] = []
  const blobs = new Map<string, string>()
  const known = new DigestTable()
  for (const entry of await journal.load()) {
    for (const [cid, root] of entry.blobs) blobs.set(cid, root)
    if (!entry.shard) continue
    shards.push(entry.shard)
    for (const { digest } of entry.shard.slices) known.set(digest, 0, 0)
  }
  return { shards, blobs, known }
}

/**
 * Reads and verifies the repository. An account that changes while it is read
 * may come with holes: it is read again, at last without `since`.
 */
async function readRepo(
  { accounts, createSpool, createSha256 }: BackupContext,
  identity: Identity,
  options: {
    since: string | undefined
    known: KnownBlocks
    signal: AbortSignal
    onReceived: (bytes: number) => void
  }
): Promise<{ repo: VerifiedRepo; spool: Spool }> {
  const { signal, known } = options
  for (let attempt = 1; ; attempt++) {
    const last = attempt === MAX_READS
    const since = last ? undefined : options.since
    const spool = createSpool()
    try {
      const chunks = await accounts.repo(identity, {
        signal,
        ...(since === undefined ? {} : { since }),
      })
      const repo = await verifyRepo(counted(chunks, options.onReceived), {
        identity,
        known,
        spool,
        createSha256,
      })
      return { repo, spool }
    } catch (error) {
      await spool.close()
      if (last || !(error instanceof IncompleteRepoError)) throw error
    }
  }
}

async function* counted(
  chunks: AsyncIterable<Uint8Array>,
  onReceived: (bytes: number) => void
): AsyncGenerator<Uint8Array> {
  let received = 0
  for await (const chunk of chunks) {
    received += chunk.length
    onReceived(received)
    yield chunk
  }
}

/**
 * The blobs of one run. Each is fetched, verified and packed on its own; one
 * that cannot be had is noted with its reason and ends nothing.
 */
class BlobBackup {
  /** CID of a blob → root of its UnixFS DAG. */
  readonly added = new Map<string, CID>()
  readonly missing = new Map<string, MissingBlob>()
  readonly #seen = new Set<string>()
  readonly #fetches: PQueue
  readonly #packing = new PQueue({ concurrency: 1 })
  readonly #options: BlobBackupOptions
  #started: Promise<void> = Promise.resolve()
  #failure: { error: unknown } | undefined

  constructor(options: BlobBackupOptions) {
    this.#options = options
    this.#fetches = new PQueue({ concurrency: options.limits.concurrentBlobs })
  }

  /**
   * Begins with the blobs that the last backup misses and with the host's own
   * list. Not every host has one, and records
   * tell the same: a list that fails is only a warning.
   */
  start({ list, since }: { list: boolean; since: string | undefined }): void {
    const { accounts, identity, overlay, previous, signal } = this.#options
    const considerAll = async () => {
      if (previous?.missing) {
        for await (const [cid] of entries(overlay, previous.missing)) {
          await this.consider(cid)
        }
      }
      if (!list) return
      const listed = accounts.blobs(identity, {
        signal,
        ...(since === undefined ? {} : { since }),
      })
      try {
        for await (const cid of listed) await this.consider(cid)
      } catch (error) {
        if (signal.aborted) return
        if (error instanceof HostUnavailableError) throw error
        this.#options.onWarning?.(
          'the host did not list the blobs of the account; those that records refer to are backed up',
          error
        )
      }
    }
    this.#started = considerAll().catch((error: unknown) => {
      this.#failure ??= { error }
    })
  }

  /** Fetches the blob, unless the Space has it. Waits while many are due. */
  async consider(text: string): Promise<void> {
    const { previous, overlay, resumed, limits, progress } = this.#options
    const cid = canonical(text)
    if (this.#seen.has(cid)) return
    this.#seen.add(cid)
    if (previous && (await getEntry(overlay, previous.blobs, cid))) return
    const root = resumed.get(cid)
    if (root !== undefined) {
      this.added.set(cid, CID.parse(root))
      return
    }
    this.#options.report({ blobs: progress.blobs + 1 })
    await this.#fetches.onSizeLessThan(limits.concurrentBlobs)
    void this.#fetches.add(() => this.#backup(cid))
  }

  /** Waits for all that was considered. */
  async finish(): Promise<void> {
    await this.settle()
    // What a fetch or an upload threw goes on as it is.

    if (this.#failure) throw this.#failure.error
  }

  /** Waits until nothing is under way, whatever came of it. */
  async settle(): Promise<void> {
    await this.#started
    await this.#fetches.onIdle()
  }

  async #backup(cid: string): Promise<void> {
    const { accounts, identity, limits, signal, progress, report } =
      this.#options
    if (this.#failure || signal.aborted) return
    try {
      const blob = await fetchBlob(
        cid,
        () => accounts.blob(identity, cid, { signal }),
        {
          createSpool: this.#options.createSpool,
          createSha256: this.#options.createSha256,
          maxSize: limits.maxBlobSize,
          signal,
        }
      )
      try {
        await this.#packing.add(() => this.#pack(blob))
      } finally {
        await blob.close()
      }
      report({
        blobsDone: progress.blobsDone + 1,
        blobsUploaded: progress.blobsUploaded + 1,
        blobBytes: progress.blobBytes + blob.size,
      })
    } catch (error) {
      if (!(error instanceof MissingBlobError)) {
        this.#failure ??= { error }
        return
      }
      this.missing.set(cid, {
        reason: error.reason,
        detail: error.message,
        tried: this.#options.time.now(),
      })
      report(
        NOT_GIVEN.has(error.reason)
          ? { blobsMissing: progress.blobsMissing + 1 }
          : { blobsFailed: progress.blobsFailed + 1 }
      )
    }
  }

  async #pack(blob: VerifiedBlob): Promise<void> {
    const { packer } = this.#options
    const root = await writeUnixFS(blob, ({ cid, bytes }) =>
      packer.addBlock(cid.bytes, cid.multihash.digest, bytes)
    )
    packer.completeBlob(blob.cid, root.toString())
    this.added.set(blob.cid, root)
  }
}

interface BlobBackupOptions extends Pick<
  BackupContext,
  'accounts' | 'createSpool' | 'createSha256' | 'time' | 'limits' | 'onWarning'
> {
  identity: Identity
  packer: Packer
  /** The last backup, whose blobs the Space has. */
  previous: Backup | undefined
  /** Blobs that an interrupted run has put into the Space, with their roots. */
  resumed: Map<string, string>
  overlay: BlockOverlay
  progress: Readonly<Progress>
  report: (changes: Partial<Progress>) => void
  signal: AbortSignal
}

/** One text for one CID; what is no CID stays, and is noted as missing. */
function canonical(text: string): string {
  try {
    return CID.parse(text).toString()
  } catch {
    return [...text.slice(0, 128)]
      .map((character) => (/[!-~]/.test(character) ? character : '?'))
      .join('')
  }
}
