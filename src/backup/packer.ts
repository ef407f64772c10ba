import PQueue from 'p-queue'
import { create as createDigest } from 'multiformats/hashes/digest'
import { DigestTable } from '../space/digest-table.ts'
import type { IndexedShard, Journal, SpaceWriter } from './interface.ts'
import { repoCidBytes } from './car.ts'
import type { KnownBlocks } from './repo.ts'
import { digestOf, SHA2_256_CODE, type CreateSha256 } from './sha256.ts'
import { ShardBuilder, type SealedShard } from './shard.ts'

/** Shards that are uploaded side by side. */
const CONCURRENT_UPLOADS = 2

/** A last shard of up to this size goes along with the metadata, in bytes. */
const SMALL_SHARD_SIZE = 256 * 1024

/** A shard that the Space does not have yet. */
export interface UnstoredShard {
  bytes: Uint8Array
  indexed: IndexedShard
}

/** Multihash of a shard. */
export function shardDigestOf(
  createSha256: CreateSha256,
  bytes: Uint8Array
): Uint8Array {
  return createDigest(SHA2_256_CODE, digestOf(createSha256, bytes)).bytes
}

/** What was uploaded, for progress. */
export interface UploadCounts {
  blocksUploaded: number
  bytesUploaded: number
}

/**
 * Packs verified blocks into shards and uploads them while more come in. No
 * more than a few shards are in memory: adding waits for the uploads.
 */
export class Packer {
  readonly #options: PackerOptions
  readonly #added = new DigestTable()
  readonly #uploads = new PQueue({ concurrency: CONCURRENT_UPLOADS })
  readonly #shards: IndexedShard[] = []
  #builder: ShardBuilder
  /** Memory of shards that were uploaded, for those to come. */
  readonly #free: Uint8Array[] = []
  #journalled: Promise<unknown> = Promise.resolve()
  #failure: { error: unknown } | undefined

  constructor(options: PackerOptions) {
    this.#options = options
    this.#builder = new ShardBuilder(options.shardSize)
  }

  /** Shards that are in the Space by now. */
  get shards(): IndexedShard[] {
    return this.#shards
  }

  /** Adds a block of the repository. */
  async addRepoBlock(digest: Uint8Array, bytes: Uint8Array): Promise<void> {
    await this.addBlock(repoCidBytes(digest), digest, bytes)
  }

  /**
   * Adds a block, unless the Space has it.
   *
   * @param cid - bytes of the CID
   * @param digest - SHA-256 in the CID, 32 bytes
   */
  async addBlock(
    cid: Uint8Array,
    digest: Uint8Array,
    bytes: Uint8Array
  ): Promise<void> {
    const isThere = () =>
      this.#added.has(digest) || this.#options.known.has(digest)
    if (isThere()) return
    // Others add blocks too while this one waits.
    while (!this.#builder.fits(bytes.length)) await this.#flush()
    if (isThere()) return
    this.#added.set(digest, 0, 0)
    this.#builder.add(cid, digest, bytes)
  }

  /** Notes that all blocks of a blob were added. */
  completeBlob(cid: string, root: string): void {
    this.#builder.blobs.push([cid, root])
  }

  /**
   * Waits until the Space has everything but for a last shard that is small:
   * that one is left to be stored along with the metadata, which saves the time
   * of its requests, and where it lies is found by its CID.
   */
  async finish(): Promise<UnstoredShard | undefined> {
    const builder = this.#builder
    const isSmall = !builder.isEmpty && builder.size <= SMALL_SHARD_SIZE
    if (!isSmall) {
      await this.flush()
      return undefined
    }
    await this.#stored()
    const { bytes, slices } = builder.seal()
    return {
      bytes,
      indexed: {
        digest: shardDigestOf(this.#options.createSha256, bytes),
        size: bytes.length,
        slices,
      },
    }
  }

  /** Waits until the Space and the journal have all that was added. */
  async flush(): Promise<void> {
    await this.#flush()
    await this.#stored()
  }

  /**
   * Waits until no upload is under way, whatever came of it. Those that wait
   * for their turn give up by the signal: cleared from the queue, they would
   * never end.
   */
  async settle(): Promise<void> {
    await this.#uploads.onIdle()
    await this.#journalled
  }

  /** Waits for what is under way. */
  async #stored(): Promise<void> {
    await this.settle()
    this.#throwIfFailed()
  }

  async #flush(): Promise<void> {
    this.#throwIfFailed()
    if (this.#builder.isEmpty && this.#builder.blobs.length === 0) return
    const sealed = this.#builder.seal()
    this.#builder = new ShardBuilder(this.#options.shardSize, {
      buffer: this.#free.pop(),
    })
    const previous = this.#journalled
    // Started here, awaited by later calls: failures are kept in #failure.
    const uploaded = this.#uploads.add(() => this.#upload(sealed))
    this.#journalled = this.#record(sealed, previous, uploaded)
    await this.#uploads.onSizeLessThan(1)
    this.#throwIfFailed()
  }

  async #upload(sealed: SealedShard): Promise<IndexedShard | undefined> {
    const { writer, createSha256, signal } = this.#options
    signal?.throwIfAborted()
    if (sealed.slices.length === 0) return undefined
    const digest = shardDigestOf(createSha256, sealed.bytes)
    const size = sealed.bytes.length
    const { location } = await writer.putShard(
      { digest, bytes: sealed.bytes },
      { signal }
    )
    this.#free.push(sealed.buffer)
    return {
      digest,
      size,
      ...(location === undefined ? {} : { location }),
      slices: sealed.slices,
    }
  }

  /**
   * Entries are written in the order of the shards: a blob is complete only if
   * the shards before the one that completes it are there too.
   */
  async #record(
    sealed: SealedShard,
    previous: Promise<unknown>,
    uploaded: Promise<IndexedShard | undefined>
  ): Promise<void> {
    try {
      const shard = await uploaded
      await previous
      if (this.#failure) return
      await this.#options.journal.append({
        ...(shard ? { shard } : {}),
        blobs: sealed.blobs,
      })
      if (!shard) return
      this.#shards.push(shard)
      this.#options.onStored(shard)
      this.#options.onUpload({
        blocksUploaded: sealed.slices.length,
        bytesUploaded: shard.size,
      })
    } catch (error) {
      this.#failure ??= { error }
    }
  }

  #throwIfFailed(): void {
    // What an upload threw goes on as it is.

    if (this.#failure) throw this.#failure.error
  }
}

export interface PackerOptions {
  writer: SpaceWriter
  journal: Journal
  createSha256: CreateSha256
  /** What the Space has and need not be uploaded. */
  known: KnownBlocks
  /** Size of a shard in bytes. */
  shardSize: number
  onUpload: (counts: UploadCounts) => void
  /** Told of each shard that the Space and the journal have. */
  onStored: (shard: IndexedShard) => void
  signal?: AbortSignal
}
