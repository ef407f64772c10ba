import assert from 'node:assert/strict'
import { ShardedDAGIndex } from '@storacha/blob-index'
import * as Digest from 'multiformats/hashes/digest'
import { CID } from 'multiformats/cid'
import { createNativeSha256 } from '../../src/node/index.ts'
import { encodeShardedIndex } from '../../src/storacha/sharded-index.ts'

const SHA2_256_CODE = 0x12
const content = CID.parse(
  'bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
)

describe('the index of shards', () => {
  for (const [shards, slices] of [
    [1, 1],
    [1, 300],
    [3, 24],
    [0, 0],
  ] as const) {
    it(`of ${shards} shards with ${slices} slices is the one of the library`, async () => {
      const indexed = Array.from({ length: shards }, (_, shard) => ({
        digest: Digest.create(SHA2_256_CODE, digest(1000 + shard)).bytes,
        size: 2 ** 33,
        slices: Array.from({ length: slices }, (_, slice) => ({
          digest: digest(shard * slices + slice),
          offset: slice * 2 ** 24,
          length: slice + 1,
        })),
      }))
      const theirs = ShardedDAGIndex.create(content)
      for (const { digest, slices } of indexed) {
        for (const slice of slices) {
          theirs.setSlice(
            Digest.decode(digest),
            Digest.create(SHA2_256_CODE, slice.digest),
            [slice.offset, slice.length]
          )
        }
      }
      const archived = await theirs.archive()
      assert.ok(archived.ok)
      assert.deepEqual(
        Buffer.from(encodeShardedIndex(content, indexed, createNativeSha256)),
        Buffer.from(archived.ok)
      )
    })
  }
})

function digest(seed: number): Uint8Array {
  return createNativeSha256.of(Uint8Array.of(seed >> 8, seed))
}
