/**
 * The index of an upload: which block lies where in which shard.
 *
 * Written here, and not with the library's maps, because an account has
 * hundreds of thousands of blocks: slices are encoded as they are.
 *
 * @see https://github.com/storacha/specs/blob/main/w3-index.md
 * @packageDocumentation
 */
import * as dagCBOR from '@ipld/dag-cbor'
import { create as createDigest } from 'multiformats/hashes/digest'
import { CID } from 'multiformats/cid'
import type { IndexedShard, UnknownLink } from '../backup/interface.ts'
import { digestOf, SHA2_256_CODE, type CreateSha256 } from '../backup/sha256.ts'
import { ShardBuilder } from '../backup/shard.ts'

const VERSION = 'index/sharded/dag@0.1'

/**
 * Encodes the index as a CAR.
 *
 * @param content - root of the upload
 * @param shards - with different digests
 */
export function encodeShardedIndex(
  content: UnknownLink,
  shards: IndexedShard[],
  createSha256: CreateSha256
): Uint8Array {
  const encode = (value: unknown) => {
    const bytes = dagCBOR.encode(value)
    const digest = digestOf(createSha256, bytes)
    const cid = CID.createV1(dagCBOR.code, createDigest(SHA2_256_CODE, digest))
    return { cid, digest, bytes }
  }
  const blocks = shards
    .toSorted((a, b) => compare(a.digest, b.digest))
    .map(({ digest, slices }) =>
      encode([
        digest,
        slices
          .toSorted((a, b) => compare(a.digest, b.digest))
          .map(({ digest, offset, length }) => [
            createDigest(SHA2_256_CODE, digest).bytes,
            [offset, length],
          ]),
      ])
    )
  const root = encode({
    [VERSION]: { content, shards: blocks.map(({ cid }) => cid) },
  })
  const car = new ShardBuilder(Infinity, { roots: [root.cid] })
  for (const { cid, digest, bytes } of [root, ...blocks]) {
    car.add(cid.bytes, digest, bytes)
  }
  return car.seal().bytes
}

function compare(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < a.length && i < b.length; i++) {
    const difference = (a[i] ?? 0) - (b[i] ?? 0)
    if (difference !== 0) return difference
  }
  return a.length - b.length
}
