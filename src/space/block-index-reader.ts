import { toHex } from 'multiformats/bytes'
import {
  SLICE_LENGTH,
  countSlices,
  digestAt,
  readBlockIndex,
  readBlockIndexSegment,
  readSlice,
} from './block-index-codec.ts'
import type {
  BlockFetcher,
  BlockIndex,
  BlockIndexSegment,
  Link,
  ShardRef,
  Slice,
} from './interface.ts'
import { SHA_256_LENGTH } from './schema.ts'

/** Segments that are read at the same time. */
const CONCURRENCY = 8

/**
 * Reads an index into memory: 44 bytes for each slice.
 *
 * @throws {@link MissingBlockError} {@link DecodeError}
 *   {@link UnknownVersionError} {@link TooLargeError}
 */
export async function loadBlockIndex(
  fetcher: BlockFetcher,
  link: Link<BlockIndex>
): Promise<BlockIndexReader> {
  const { segments: refs } = await readBlockIndex(fetcher, link)
  const segments: BlockIndexSegment[] = []
  for (let i = 0; i < refs.length; i += CONCURRENCY) {
    segments.push(
      ...(await Promise.all(
        refs
          .slice(i, i + CONCURRENCY)
          .map((ref) => readBlockIndexSegment(fetcher, ref))
      ))
    )
  }
  return new BlockIndexReader(segments)
}

/** A slice together with the block's digest. */
export interface DigestSlice extends Slice {
  /** SHA-256 of the block, 32 bytes. */
  digest: Uint8Array
}

/**
 * An index in memory. It searches the bytes of the segments as they are; a
 * digest that several segments have is where the newest of them says.
 */
export class BlockIndexReader {
  readonly #segments: BlockIndexSegment[]
  #size: number | undefined

  /** @param segments - oldest first */
  constructor(segments: BlockIndexSegment[]) {
    this.#segments = segments
  }

  /** Number of blocks; counted when it is first asked for. */
  get size(): number {
    this.#size ??= this.#count()
    return this.#size
  }

  /** @param digest - SHA-256 of a block, 32 bytes */
  has(digest: Uint8Array): boolean {
    return this.#find(digest, 0) !== undefined
  }

  /** @param digest - SHA-256 of a block, 32 bytes */
  get(digest: Uint8Array): Slice | undefined {
    const found = this.#find(digest, 0)
    return found && sliceAt(found.segment, found.position)
  }

  /** All slices, in no particular order. The digests are views, not copies. */
  *slices(): Generator<DigestSlice> {
    for (const { segment, position, digest } of this.#current()) {
      yield { digest, ...sliceAt(segment, position) }
    }
  }

  /** All shards, each once. */
  shards(): ShardRef[] {
    const byDigest = new Map(
      this.#segments
        .flatMap(({ shards }) => shards)
        .map((shard) => [toHex(shard.digest), shard])
    )
    return [...byDigest.values()]
  }

  #count(): number {
    let count = 0
    for (const _ of this.#current()) count++
    return count
  }

  /** Slices that no newer segment has. */
  *#current(): Generator<{
    segment: BlockIndexSegment
    position: number
    digest: Uint8Array
  }> {
    for (const [i, segment] of this.#segments.entries()) {
      const { slices } = segment
      for (let position = 0; position < countSlices(slices); position++) {
        const digest = digestAt(slices, position)
        if (this.#find(digest, i + 1) === undefined) {
          yield { segment, position, digest }
        }
      }
    }
  }

  /**
   * Finds a digest in the newest segment that has it.
   *
   * @param oldest - position of the first segment that is searched
   */
  #find(
    digest: Uint8Array,
    oldest: number
  ): { segment: BlockIndexSegment; position: number } | undefined {
    if (digest.length !== SHA_256_LENGTH) {
      throw new RangeError(`Digest must have ${SHA_256_LENGTH} bytes`)
    }
    for (let i = this.#segments.length - 1; i >= oldest; i--) {
      const segment = this.#segments[i]!
      const position = search(segment.slices, digest)
      if (position !== undefined) return { segment, position }
    }
    return undefined
  }
}

function sliceAt(segment: BlockIndexSegment, position: number): Slice {
  const { shard, offset, length } = readSlice(segment.slices, position)
  return { shard: segment.shards[shard]!, offset, length }
}

/** Binary search in sorted slices. */
function search(slices: Uint8Array, digest: Uint8Array): number | undefined {
  let low = 0
  let high = countSlices(slices) - 1
  while (low <= high) {
    const middle = (low + high) >>> 1
    const order = compareAt(slices, middle * SLICE_LENGTH, digest)
    if (order === 0) return middle
    if (order < 0) low = middle + 1
    else high = middle - 1
  }
  return undefined
}

function compareAt(
  slices: Uint8Array,
  offset: number,
  digest: Uint8Array
): number {
  for (let i = 0; i < SHA_256_LENGTH; i++) {
    const difference = slices[offset + i]! - digest[i]!
    if (difference !== 0) return difference
  }
  return 0
}
