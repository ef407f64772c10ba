import type {
  Authorization,
  Block,
  CommitSignature,
  BlockFetcher,
  DID,
  EventLink,
  PrivatePart,
  ShardRef,
  UnknownLink,
} from '../space/interface.ts'

import type { AgentAuthorization } from '../space/mutate.ts'

export type * from '../space/interface.ts'
export type { AgentAuthorization } from '../space/mutate.ts'

/** Options of everything that may take long. */
export interface CallOptions {
  signal?: AbortSignal
}

/** Who an account is, and where and how it can be read, as of now. */
export interface Identity {
  did: DID
  /** Handle, if the DID document claims one and it points back to the DID. */
  handle?: string
  /** Base URL of the account's PDS. */
  pds: URL
  /** Public key of the repository, as `did:key`. */
  signingKey: DID
  /**
   * Keys that the account used earlier, as `did:key`, from the PLC log. A
   * commit they signed is accepted and marked (see `CommitSignature`).
   */
  previousSigningKeys: DID[]
  /** The DID document, as the JSON text that was received. */
  document: string
  /** The PLC directory's audit log as JSON text, for a `did:plc`. */
  log?: string
}

/** Finds accounts. Nothing is cached: a PDS may change between two runs. */
export interface IdentityResolver {
  /**
   * @param account - DID or handle
   * @throws {@link HandleNotFoundError} {@link DidNotFoundError}
   *   {@link NoPdsError} {@link IdentityUnavailableError}
   */
  resolve(account: string, options?: CallOptions): Promise<Identity>
}

/** Reads an account from its PDS. Every answer is unverified. */
export interface AccountReader {
  /** @throws {@link AccountUnavailableError} {@link HostError} */
  latestCommit(
    identity: Identity,
    options?: CallOptions
  ): Promise<{ cid: UnknownLink; rev: string }>

  /**
   * Streams the repository as a CAR.
   *
   * @param options.since - only blocks that are newer than this revision
   */
  repo(
    identity: Identity,
    options?: CallOptions & { since?: string }
  ): Promise<AsyncIterable<Uint8Array>>

  /**
   * CIDs of the account's blobs as text.
   *
   * @param options.since - only blobs that came after this revision
   */
  blobs(
    identity: Identity,
    options?: CallOptions & { since?: string }
  ): AsyncIterable<string>

  /**
   * Streams one blob.
   *
   * @throws {@link BlobNotFoundError} {@link BlobTakenDownError}
   *   {@link HostError}
   */
  blob(
    identity: Identity,
    cid: string,
    options?: CallOptions
  ): Promise<AsyncIterable<Uint8Array>>
}

/** A way into an account that its owner has opened. */
export interface AccountSession {
  account: DID
  /** Private parts that may be read. */
  parts: readonly string[]
  /**
   * Asks the host of the account.
   *
   * @param pathname - and query
   * @throws {@link PartNotGrantedError} when the way is closed by now
   */
  fetch(pathname: string, init?: RequestInit): Promise<Response>
}

/** Reads what only the owner may read. Every answer is unverified. */
export interface PrivateReader {
  /**
   * Streams a private part as JSON text; conversations as lines of JSON. What
   * changes without the owner's doing, as other people's profiles, is left out.
   *
   * @throws {@link PartNotGrantedError} {@link PartNotOfferedError}
   *   {@link HostError}, each also while the stream is read
   */
  read(
    identity: Identity,
    session: AccountSession,
    part: PrivatePart,
    options?: CallOptions
  ): Promise<PrivateContent>
}

export interface PrivateContent {
  chunks: AsyncIterable<Uint8Array>
  /** What the owner should know of it, as that something is withheld. */
  detail?: string
}

/** Puts things into one Space. */
export interface SpaceWriter {
  /** Number of HTTP requests that were needed so far. */
  readonly requests: number

  /**
   * Stores a CAR; when it answers, the Space has it.
   *
   * @throws {@link SpaceUnavailableError} {@link SpaceQuotaError}
   *   {@link SpaceUnauthorizedError}
   */
  putShard(
    shard: { digest: Uint8Array; bytes: Uint8Array },
    options?: CallOptions
  ): Promise<{ location?: string }>

  /**
   * Publishes which blocks lie in which shards, so that gateways find them.
   *
   * @param index.content - root of what the blocks belong to
   * @param index.stored - fulfilled when the Space has the shards; they are
   *   there already, if left out
   * @returns size of what was uploaded for it, in bytes
   * @throws the errors of {@link SpaceWriter.putShard}
   */
  publishIndex(
    index: {
      content: UnknownLink
      shards: IndexedShard[]
      stored?: Promise<unknown>
    },
    options?: CallOptions
  ): Promise<{ size: number }>

  /**
   * Lists the backup among the uploads of the Space.
   *
   * @param upload.root - what the upload shows as its root
   * @param upload.shards - what it consists of
   * @throws the errors of {@link SpaceWriter.putShard}
   */
  listUpload(
    upload: { root: UnknownLink; shards: Pick<IndexedShard, 'digest'>[] },
    options?: CallOptions
  ): Promise<void>
}

/** A shard and what lies in it. */
export interface IndexedShard extends ShardRef {
  slices: ShardSlice[]
}

export interface ShardSlice {
  /** SHA-256 of the block, 32 bytes. */
  digest: Uint8Array
  /** Offset of the block's bytes in the shard, in bytes. */
  offset: number
  /** Length of the block in bytes. */
  length: number
}

/**
 * Reads blocks back from one Space; every block is hash-checked.
 *
 * @throws {@link GatewayError} when no gateway gives a true answer
 */
export interface SpaceReader extends BlockFetcher {
  get(link: UnknownLink, options?: CallOptions): Promise<Block | undefined>

  /** Remembers blocks that were just put into the Space, to read them sooner. */
  keep(blocks: Block[]): void

  /** Reads part of a shard. The caller checks the hashes of what is in it. */
  getShardRange(
    shard: ShardRef,
    range: { offset: number; length: number },
    options?: CallOptions
  ): Promise<Uint8Array | undefined>
}

/** The Merkle clock of one Space. */
export interface Clock {
  head(options?: CallOptions): Promise<EventLink[]>
  /**
   * @param blocks - the event, its unknown ancestors and its metadata
   * @returns the head after the advance
   */
  advance(
    event: EventLink,
    blocks: Block[],
    options?: CallOptions
  ): Promise<EventLink[]>
}

/**
 * Keeps what a run has uploaded, so that an interrupted run of the same
 * account is resumed. Losing it costs repeated uploads, never correctness.
 */
export interface Journal {
  load(): Promise<JournalEntry[]>
  /** Durable when it answers. */
  append(entry: JournalEntry): Promise<void>
  /** Called when the backup is in the clock. */
  clear(): Promise<void>
}

/** Where an agent keeps those of its grants that the clock does not know yet. */
export interface AuthorizationJournal {
  /** @returns the grant for an account, unless the clock has it */
  pending(account: DID): Promise<AgentAuthorization | undefined>
  /**
   * Called when the clock has it, or has a greater one that it had before.
   *
   * @param found - what the clock has
   */
  recorded(account: DID, found: Authorization): Promise<void>
}

/** One uploaded shard and the blobs that are complete with it. */
export interface JournalEntry {
  /** Not there if all blocks of the blobs were in the Space already. */
  shard?: IndexedShard
  /** CID of a blob → root of its UnixFS DAG, both as text. */
  blobs: [cid: string, root: string][]
}

/** Temporary storage for bytes that are not verified yet. */
export interface Spool {
  /** Number of bytes written. */
  readonly size: number
  write(bytes: Uint8Array): void | Promise<void>
  read(offset: number, length: number): Uint8Array | Promise<Uint8Array>
  /** Frees the storage. */
  close(): Promise<void>
}

export type CreateSpool = () => Spool

/** SHA-256 of bytes that come in pieces. */
export interface Sha256 {
  update(bytes: Uint8Array): void
  digest(): Uint8Array
}

/** Time, injected so that tests can hold it. */
export interface Time {
  /** Unix milliseconds. */
  now(): number
  /** @param ms - milliseconds */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

/** Stages of a run, in their order. */
export type Stage =
  'resolve' | 'read' | 'verify' | 'blobs' | 'upload' | 'record' | 'advance'

/** When a stage of a run began and ended, in Unix milliseconds. */
export interface StageTime {
  stage: Stage
  began: number
  /** Left out while it goes on. */
  ended?: number
}

/** How far a run is. All sizes in bytes. */
export interface Progress {
  stage: Stage
  /** Stages so far in their order; of a run that was resumed, those since then. */
  stages: StageTime[]
  /** Size of all that the host sent, also of what had to be read again. */
  bytesRead: number
  /** Records that are new in this run and were verified. */
  records: number
  /** Size of what the host sent as the repository. */
  repoBytes: number
  /** Blobs that this run has to fetch, as far as it knows yet. */
  blobs: number
  blobsDone: number
  /** Blobs that the host does not have, or does not give. */
  blobsMissing: number
  /** Blobs that are too large, not to be fetched, or not what their CIDs say. */
  blobsFailed: number
  blobBytes: number
  /** Blocks of repository, blobs and metadata that the Space took. */
  blocksUploaded: number
  /** Size of all that the Space took: shards and indexes. */
  bytesUploaded: number
  blobsUploaded: number
  /** HTTP requests to the upload service and its storage. */
  requests: number
}

/** What a run came to. */
export interface Outcome extends Omit<Progress, 'stage'> {
  /**
   * `first`: the whole account. `incremental`: what is new since the last
   * backup. `unchanged`: nothing is new, and nothing was recorded.
   */
  kind: 'first' | 'incremental' | 'unchanged'
  account: DID
  rev: string
  /** CID of the commit. */
  commit: string
  /** Key of the backup in the Space; of the last backup if unchanged. */
  timestamp: string
  /** CID of the backup's block. */
  backup: string
  /** CID of the event that tells the clock about it, unless unchanged. */
  event?: string
  signature: CommitSignature
  /** What came of each private part that was asked for. */
  private?: Partial<Record<PrivatePart, { outcome: string; detail?: string }>>
  /** Duration in milliseconds. */
  ms: number
}
