import type { Link, UnknownLink } from 'multiformats'

export type { Link, UnknownLink } from 'multiformats'

/** A decentralized identifier, e.g. `did:plc:…` or `did:key:…`. */
export type DID = `did:${string}:${string}`

/** Bytes and the CID they hash to. */
export interface Block<T = unknown> {
  cid: Link<T>
  bytes: Uint8Array
}

/**
 * Where blocks are read from. `get` answers `undefined` for a block it does
 * not have. What it answers is trusted: an implementation that reads from the
 * network checks the hash itself.
 */
export interface BlockFetcher {
  get(link: UnknownLink): Promise<Block | undefined>
}

/**
 * Commit of an ATProto repository: its root block.
 *
 * @see https://atproto.com/specs/repository
 */
export interface Commit {
  did: string
  version: number
  data: UnknownLink
  rev: string
  prev?: UnknownLink | null
  sig: Uint8Array
}

/** Any JSON text, stored as a block with the `json` codec (0x0200). */
export type JSONText = unknown

/** Marks a link to the root shard of a Pail whose values link to `T`. */
export interface Pail<T = unknown> {
  values: T
}

/** A w3clock event: the new state, and the events it replaces. */
export interface Event {
  data: Link<State>
  parents: EventLink[]
}
export type EventLink = Link<Event>

/** Account DID → account. */
export type State = Record<DID, Link<Account>>

export interface Account {
  authorizations: Link<Authorizations>
  /** ISO-8601 UTC timestamp with milliseconds → backup (or a tombstone). */
  backups: Link<Pail<Backup>>
  /** Backups with an older timestamp are gone for good. Only ever grows. */
  prunedBefore?: string
  /** For whom private parts are sealed beside the agents. */
  recovery?: Recovery
  /** `<timestamp of the backup>/<DID of an agent>` → what opens it. */
  shares?: Link<Pail<Share>>
}

/** What the user set about recovery; the one with the greatest `seq` counts. */
export interface Recovery {
  /** age X25519 recipient, whose identity the user keeps; none was unset. */
  recipient?: string
  /** Grows by one with each change. */
  seq: number
}

/**
 * What one agent needs to open the private parts of one backup, which were
 * sealed before the agent was there.
 */
export interface Share {
  version: 1
  /** The key of each part's age file, as an age file for the agent. */
  keys: PartKeys
}
export type PartKeys = Partial<Record<PrivatePart, Uint8Array>>

/** Agent DID (`did:key`) → what that agent may do in the account. */
export type Authorizations = Record<DID, Link<Authorization>>

/** An agent's own grant, sealed by the agent for itself. */
export interface Authorization {
  sealed: Uint8Array
  /** Unix seconds. */
  expiration: number
  /** Grows by one each time the grant is renewed. */
  seq: number
  /** age X25519 recipient for private parts of backups. */
  recipient?: string
}

/** One backup of one account: the state of the account at one commit. */
export interface Backup {
  /** 2 with private parts, 1 without: programs that know only 1 say so. */
  version: 1 | 2
  /** The account the backup is of. */
  account: DID
  /** Revision of the commit, a TID. */
  rev: string
  repo: Link<Commit>
  /** CID of a blob → root of its UnixFS DAG in the Space. */
  blobs: Link<Pail>
  /** CID of a blob → why it is not in the Space. */
  missing?: Link<Pail<MissingBlob>>
  identity: BackupIdentity
  /** Whose signature the commit carries. */
  signature: CommitSignature
  /** What was backed up beside the repository and the private parts. */
  parts: 'blobs'[]
  /** What came of each private part that was asked for. */
  private?: PrivateParts
  /** Preferences that are not sealed, as the RFC has them. */
  preferences?: Link<JSONText>
  /** Where each block of repository and blobs lies in the Space. */
  index: Link<BlockIndex>
}

/**
 * A part of a backup beside the repository, which every backup has.
 * `blobs`: images, videos and other files that records refer to.
 */
export type Part = 'blobs' | PrivatePart

/** A part that only the owner of the account may read. */
export type PrivatePart =
  | 'preferences'
  | 'mutes'
  | 'muted-lists'
  | 'blocked-lists'
  | 'bookmarks'
  | 'notification-preferences'
  | 'drafts'
  | 'conversations'

export type PrivateParts = Partial<Record<PrivatePart, PrivatePartRecord>>

/** What came of a private part. */
export type PrivatePartRecord = SealedPart | PlainPart | AbsentPart

/** A private part that is in the Space as an age file. */
export interface SealedPart {
  outcome: 'ok'
  /** What the user should know of it, at most 256 characters. */
  detail?: string
  /** The age file: its one raw block, or the root of its UnixFS DAG. */
  sealed: UnknownLink
  /** Size of the age file in bytes. */
  size: number
  /** Whom it is sealed for: age recipients, sorted. */
  recipients: string[]
}

/** A private part that everybody can read, as the user wished. */
export interface PlainPart {
  outcome: 'ok'
  /** What the user should know of it, at most 256 characters. */
  detail?: string
  /** The JSON text, its one raw block, or the root of its UnixFS DAG. */
  plain: UnknownLink
  /** Size in bytes. */
  size: number
}

/**
 * A private part that is not in the backup. `not-granted`: the user has not
 * allowed it. `not-offered`: the host does not have such a thing. `failed`: it
 * could not be read this time.
 */
export interface AbsentPart {
  outcome: 'not-granted' | 'not-offered' | 'failed'
  /** Why, at most 256 characters. */
  detail?: string
}

/**
 * `current`: by the key in the account's DID document. `previous`: by a key
 * that the account used before, as after a migration until the next write.
 */
export type CommitSignature = 'current' | 'previous'

export interface BackupIdentity {
  /** The DID document as it was resolved. */
  document: Link<JSONText>
  /** The audit log of the PLC directory, for a `did:plc`. */
  log?: Link<JSONText>
}

/** Why a blob that the repository refers to is not in the backup. */
export interface MissingBlob {
  reason: MissingBlobReason
  /** What the host said, at most 256 characters. */
  detail: string
  /** Unix milliseconds of the last try. */
  tried: number
}

/**
 * `not-found`: the host does not have it. `taken-down`: the host withholds it.
 * `too-large`: larger than the limit of the agent that made the backup.
 * `wrong-hash`: the bytes are not those of the CID. `failed`: the host did not
 * deliver it in time.
 */
export type MissingBlobReason =
  'not-found' | 'taken-down' | 'too-large' | 'wrong-hash' | 'failed'

/**
 * Where blocks lie in the Space, for reading them directly from the shards and
 * for knowing what need not be uploaded again.
 */
export interface BlockIndex {
  version: 1
  /** Oldest first; later ones are never much larger than earlier ones. */
  segments: BlockIndexSegmentRef[]
}

export interface BlockIndexSegmentRef {
  segment: Link<BlockIndexSegment>
  /** Number of slices in the segment. */
  count: number
}

export interface BlockIndexSegment {
  version: 1
  shards: ShardRef[]
  /**
   * Slices, sorted by digest, 44 bytes each: the 32 bytes of the block's
   * SHA-256, then big-endian the position of its shard in `shards` (16 bits),
   * its offset in the shard (48 bits) and its length (32 bits), in bytes.
   */
  slices: Uint8Array
}

/** A CAR file that the Space stores. */
export interface ShardRef {
  /** Multihash of the shard (sha2-256). */
  digest: Uint8Array
  /** Size in bytes. */
  size: number
  /** Where the shard was stored when it was added. */
  location?: string
}

/** Where one block lies: in which shard, and where in it, in bytes. */
export interface Slice {
  shard: ShardRef
  offset: number
  length: number
}

/** The answer of everything that writes: a new root and the new blocks. */
export interface Revision<T> {
  root: Link<T>
  additions: Block[]
}
