import * as dagCbor from '@ipld/dag-cbor'
import { createCodec } from './codec.ts'
import { DecodeError, TooLargeError } from './errors.ts'
import type {
  BlockFetcher,
  BlockIndex,
  BlockIndexSegment,
  BlockIndexSegmentRef,
  ShardRef,
} from './interface.ts'
import {
  type Check,
  SHA_256_LENGTH,
  bytes,
  checkAscending,
  integer,
  link,
  list,
  optional,
  sha256Multihash,
  struct,
  text,
  versioned,
} from './schema.ts'

/** Slices of one segment, at most: its block stays below 1 MiB. */
export const MAX_SLICES = 16000

/** Length of one slice in bytes: digest, shard, offset, length. */
export const SLICE_LENGTH = SHA_256_LENGTH + 2 + 6 + 4

/** Length of a shard's location in UTF-16 code units, at most. */
export const MAX_LOCATION_LENGTH = 2048

/** Segments of one index, at most: more would not fit in a block. */
const MAX_SEGMENTS = 20_000

/** One slice of a segment, as numbers. */
export interface PackedSlice {
  /** Position in the segment's `shards`. */
  shard: number
  /** Offset in the shard, in bytes. */
  offset: number
  /** Length in bytes. */
  length: number
}

const index = createCodec<BlockIndex>('BlockIndex', {
  check: versioned({
    segments: list(
      struct<BlockIndexSegmentRef>({
        segment: link(dagCbor.code),
        count: integer,
      }),
      MAX_SEGMENTS
    ),
  }),
})

const checkFields: Check<BlockIndexSegment> = versioned({
  shards: list(
    struct<ShardRef>({
      digest: sha256Multihash,
      size: integer,
      location: optional(text(MAX_LOCATION_LENGTH)),
    }),
    MAX_SLICES
  ),
  slices: bytes,
})

const segment = createCodec<BlockIndexSegment>('BlockIndexSegment', {
  check: (value, path) => {
    const fields = checkFields(value, path)
    checkAscending(
      fields.shards.map(({ digest }) => digest),
      `${path}.shards`
    )
    checkSlices(fields, `${path}.slices`)
    return fields
  },
})

/** @throws {@link DecodeError} {@link TooLargeError} */
export const encodeBlockIndex = index.encode

/** @throws {@link DecodeError} {@link UnknownVersionError} {@link TooLargeError} */
export const decodeBlockIndex = index.decode

/**
 * @throws {@link MissingBlockError} {@link DecodeError}
 *   {@link UnknownVersionError} {@link TooLargeError}
 */
export const readBlockIndex = index.read

/** @throws {@link DecodeError} {@link TooLargeError} */
export const encodeBlockIndexSegment = segment.encode

/** @throws {@link DecodeError} {@link UnknownVersionError} {@link TooLargeError} */
export const decodeBlockIndexSegment = segment.decode

/**
 * Reads a segment of an index.
 *
 * @throws {@link MissingBlockError} {@link DecodeError}
 *   {@link UnknownVersionError} {@link TooLargeError}
 */
export async function readBlockIndexSegment(
  fetcher: BlockFetcher,
  { segment: link, count }: BlockIndexSegmentRef
): Promise<BlockIndexSegment> {
  const value = await segment.read(fetcher, link)
  if (countSlices(value.slices) !== count) {
    throw new DecodeError(
      `BlockIndexSegment ${link.toString()} must have ${count} slices, as its index says`
    )
  }
  return value
}

/** Number of slices in the bytes of a segment. */
export function countSlices(slices: Uint8Array): number {
  return slices.length / SLICE_LENGTH
}

/** Reads the slice at a position, without its digest. */
export function readSlice(slices: Uint8Array, position: number): PackedSlice {
  const at = position * SLICE_LENGTH + SHA_256_LENGTH
  return {
    shard: readNumber(slices, at, 2),
    offset: readNumber(slices, at + 2, 6),
    length: readNumber(slices, at + 8, 4),
  }
}

/** Writes the slice at a position, without its digest. */
export function writeSlice(
  slices: Uint8Array,
  position: number,
  { shard, offset, length }: PackedSlice
): void {
  const at = position * SLICE_LENGTH + SHA_256_LENGTH
  writeNumber(slices, at, 2, shard)
  writeNumber(slices, at + 2, 6, offset)
  writeNumber(slices, at + 8, 4, length)
}

/** The digest of the slice at a position: a view, not a copy. */
export function digestAt(slices: Uint8Array, position: number): Uint8Array {
  const at = position * SLICE_LENGTH
  return slices.subarray(at, at + SHA_256_LENGTH)
}

function checkSlices(
  { shards, slices }: BlockIndexSegment,
  path: string
): void {
  const count = countSlices(slices)
  if (!Number.isInteger(count) || count === 0) {
    throw new DecodeError(`${path} must be slices of ${SLICE_LENGTH} bytes`)
  }
  if (count > MAX_SLICES) {
    throw new TooLargeError(`${path} has ${count}, more than ${MAX_SLICES}`)
  }
  checkAscending(digests(slices, count), path)
  const used = new Set<number>()
  for (let i = 0; i < count; i++) {
    const { shard, offset, length } = readSlice(slices, i)
    const ref = shards[shard]
    if (ref === undefined || offset + length > ref.size) {
      throw new DecodeError(`${path}[${i}] does not lie in a shard`)
    }
    used.add(shard)
  }
  if (used.size !== shards.length) {
    throw new DecodeError(`${path} must use all shards`)
  }
}

function* digests(slices: Uint8Array, count: number): Generator<Uint8Array> {
  for (let i = 0; i < count; i++) yield digestAt(slices, i)
}

function readNumber(bytes: Uint8Array, at: number, length: number): number {
  let value = 0
  for (let i = 0; i < length; i++) value = value * 256 + bytes[at + i]!
  return value
}

function writeNumber(
  bytes: Uint8Array,
  at: number,
  length: number,
  value: number
): void {
  let rest = value
  for (let i = length - 1; i >= 0; i--) {
    bytes[at + i] = rest % 256
    rest = Math.floor(rest / 256)
  }
}
