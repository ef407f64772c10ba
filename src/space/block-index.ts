import * as dagCbor from '@ipld/dag-cbor'
import { toHex } from 'multiformats/bytes'
import {
  MAX_SLICES,
  SLICE_LENGTH,
  countSlices,
  digestAt,
  encodeBlockIndex,
  encodeBlockIndexSegment,
  readBlockIndex,
  readBlockIndexSegment,
  readSlice,
  writeSlice,
} from './block-index-codec.ts'
import { compareBytes } from './bytes.ts'
import { MAX_BLOCK_SIZE } from './codec.ts'
import { DecodeError } from './errors.ts'
import type {
  Block,
  BlockFetcher,
  BlockIndex,
  BlockIndexSegment,
  Link,
  Revision,
  ShardRef,
} from './interface.ts'
import { SHA_256_LENGTH, integer } from './schema.ts'

/** Bytes of a segment besides slices and shards, at most. */
const SEGMENT_OVERHEAD = 128

/**
 * A segment is merged with what comes after it while it is not more than so
 * many times larger. So segments get larger towards the oldest, and there are
 * about log(n) of them that are not full.
 */
const COMPACTION_FACTOR = 2

/** Greatest size of a shard, in bytes: offsets have 48 bits. */
const MAX_SHARD_SIZE = 2 ** 48 - 1

/** Greatest length of a slice, in bytes: lengths have 32 bits. */
const MAX_SLICE_SIZE = 2 ** 32 - 1

/** A shard and the blocks that are in it. */
export interface NewShard extends ShardRef {
  slices: NewSlice[]
}

export interface NewSlice {
  /** SHA-256 of the block, 32 bytes. */
  digest: Uint8Array
  /** Offset of the block's bytes in the shard, in bytes. */
  offset: number
  /** Length of the block in bytes. */
  length: number
}

/**
 * Adds shards to an index, as new segments. Small segments at the end of the
 * index are merged with the new ones (a log-structured merge), so that an
 * index that grew by many runs has few segments, and each run writes little.
 * A digest that is in the index already is from now on where it was added
 * last.
 *
 * @param link - index to add to; without it a new one is made
 * @param shards - in the order in which they were stored
 * @throws {@link MissingBlockError} {@link DecodeError}
 *   {@link UnknownVersionError} {@link TooLargeError}
 */
export async function appendToBlockIndex(
  fetcher: BlockFetcher,
  link: Link<BlockIndex> | undefined,
  shards: NewShard[]
): Promise<Revision<BlockIndex>> {
  const kept = link ? (await readBlockIndex(fetcher, link)).segments : []
  let count = shards.reduce((sum, { slices }) => sum + slices.length, 0)
  if (link && count === 0) return { root: link, additions: [] }
  let size = count * SLICE_LENGTH + sizeOf(shards)
  const merged: BlockIndexSegment[] = []
  for (;;) {
    const last = kept.at(-1)
    if (
      last === undefined ||
      last.count > COMPACTION_FACTOR * count ||
      last.count + count > MAX_SLICES
    ) {
      break
    }
    const segment = await readBlockIndexSegment(fetcher, last)
    size += segment.slices.length + sizeOf(segment.shards)
    if (size + SEGMENT_OVERHEAD > MAX_BLOCK_SIZE) break
    count += last.count
    merged.unshift(segment)
    kept.pop()
  }
  const table = new SliceTable(count)
  for (const segment of merged) table.addSegment(segment)
  for (const shard of shards) table.addShard(shard)
  const additions: Block[] = []
  for (const segment of table.segments()) {
    const block = await encodeBlockIndexSegment(segment)
    additions.push(block)
    kept.push({ segment: block.cid, count: countSlices(segment.slices) })
  }
  const index = await encodeBlockIndex({ version: 1, segments: kept })
  return { root: index.cid, additions: [...additions, index] }
}

/** Encoded size of shards in bytes. */
function sizeOf(shards: ShardRef[]): number {
  return shards.reduce((sum, shard) => sum + shardSize(shard), 0)
}

function shardSize({ digest, size, location }: ShardRef): number {
  return dagCbor.encode({
    digest,
    size,
    ...(location === undefined ? {} : { location }),
  }).length
}

/**
 * Slices that are to be sorted, in typed arrays: a row each, in the order in
 * which they were stored.
 */
class SliceTable {
  readonly #digests: Uint8Array
  /** First 32 bits of each digest, which decide nearly every comparison. */
  readonly #heads: Uint32Array
  /** Position of each row's shard in `#shards`. */
  readonly #shardOf: Uint32Array
  readonly #offsets: Float64Array
  readonly #lengths: Uint32Array
  readonly #shards: ShardRef[] = []
  /** Digest of a shard in hexadecimal → its position in `#shards`. */
  readonly #positions = new Map<string, number>()
  #rows = 0

  /** @param capacity - number of slices that will be added */
  constructor(capacity: number) {
    this.#digests = new Uint8Array(capacity * SHA_256_LENGTH)
    this.#heads = new Uint32Array(capacity)
    this.#shardOf = new Uint32Array(capacity)
    this.#offsets = new Float64Array(capacity)
    this.#lengths = new Uint32Array(capacity)
  }

  addShard(shard: NewShard): void {
    const position = this.#position(shard)
    for (const { digest, offset, length } of shard.slices) {
      checkSlice(shard, { digest, offset, length })
      this.#addRow(digest, position, offset, length)
    }
  }

  addSegment({ shards, slices }: BlockIndexSegment): void {
    const positions = shards.map((shard) => this.#position(shard))
    for (let i = 0; i < countSlices(slices); i++) {
      const { shard, offset, length } = readSlice(slices, i)
      this.#addRow(digestAt(slices, i), positions[shard]!, offset, length)
    }
  }

  /** The slices as segments, each as large as it may be. */
  *segments(): Generator<BlockIndexSegment> {
    const rows = this.#sortedRows()
    const sizes = this.#shards.map(shardSize)
    let start = 0
    while (start < rows.length) {
      const used = new Set<number>()
      let size = SEGMENT_OVERHEAD
      let end = start
      while (end < rows.length && end - start < MAX_SLICES) {
        const shard = this.#shardOf[rows[end]!]!
        size += SLICE_LENGTH + (used.has(shard) ? 0 : sizes[shard]!)
        if (size > MAX_BLOCK_SIZE) break
        used.add(shard)
        end++
      }
      yield this.#segment(rows.subarray(start, end), used)
      start = end
    }
  }

  #segment(rows: Uint32Array, used: Set<number>): BlockIndexSegment {
    const positions = [...used].sort((a, b) =>
      compareBytes(this.#shards[a]!.digest, this.#shards[b]!.digest)
    )
    const ranks = new Map(positions.map((position, rank) => [position, rank]))
    const slices = new Uint8Array(rows.length * SLICE_LENGTH)
    for (const [i, row] of rows.entries()) {
      slices.set(this.#digest(row), i * SLICE_LENGTH)
      writeSlice(slices, i, {
        shard: ranks.get(this.#shardOf[row]!)!,
        offset: this.#offsets[row]!,
        length: this.#lengths[row]!,
      })
    }
    const shards = positions.map((position) => this.#shards[position]!)
    return { version: 1, shards, slices }
  }

  /** Rows by digest; of those with the same digest, the last one only. */
  #sortedRows(): Uint32Array {
    const rows = new Uint32Array(this.#rows)
    for (let row = 0; row < rows.length; row++) rows[row] = row
    rows.sort((a, b) => this.#compareDigests(a, b) || a - b)
    return rows.filter((row, i) => {
      const next = rows[i + 1]
      return next === undefined || this.#compareDigests(row, next) !== 0
    })
  }

  #compareDigests(a: number, b: number): number {
    return (
      this.#heads[a]! - this.#heads[b]! ||
      compareBytes(this.#digest(a), this.#digest(b))
    )
  }

  #digest(row: number): Uint8Array {
    const at = row * SHA_256_LENGTH
    return this.#digests.subarray(at, at + SHA_256_LENGTH)
  }

  #addRow(
    digest: Uint8Array,
    shard: number,
    offset: number,
    length: number
  ): void {
    const row = this.#rows++
    this.#digests.set(digest, row * SHA_256_LENGTH)
    this.#heads[row] =
      ((digest[0]! << 24) |
        (digest[1]! << 16) |
        (digest[2]! << 8) |
        digest[3]!) >>>
      0
    this.#shardOf[row] = shard
    this.#offsets[row] = offset
    this.#lengths[row] = length
  }

  /** Position of a shard; of a shard that comes again, the news count. */
  #position({ digest, size, location }: ShardRef): number {
    const key = toHex(digest)
    const position = this.#positions.get(key) ?? this.#shards.length
    this.#positions.set(key, position)
    this.#shards[position] = { digest, size, location }
    return position
  }
}

function checkSlice(
  shard: ShardRef,
  { digest, offset, length }: NewSlice
): void {
  const path = 'new slice'
  if (digest.length !== SHA_256_LENGTH) {
    throw new DecodeError(`${path} must have a digest of 32 bytes`)
  }
  const end = integer(offset, `${path}.offset`) + integer(length, path)
  if (
    length > MAX_SLICE_SIZE ||
    shard.size > MAX_SHARD_SIZE ||
    end > shard.size
  ) {
    throw new DecodeError(`${path} must lie in its shard`)
  }
}
