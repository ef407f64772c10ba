import { DigestMap } from '@storacha/blob-index'
import type { ShardedDAGIndexView } from '@storacha/blob-index/types'
import * as QueryResult from '@storacha/indexing-service-client/query-result'
import type {
  IndexingServiceAPI,
  IPNIService,
} from '@storacha/upload-api/types'
import { unwrap } from '@storacha/client/result'
import type { MultihashDigest } from 'multiformats'
import { base58btc } from 'multiformats/bases/base58'
import { ok } from '@ucanto/core'

/** Where a block lies. */
export interface IndexedSlice {
  shard: MultihashDigest
  /** Of the first byte in the shard. */
  offset: number
  /** In bytes. */
  length: number
  index: ShardedDAGIndexView
}

/** Knows where the blocks of all indexes lie that were added to a space. */
export class Indexer implements IPNIService {
  readonly #slices = new DigestMap<MultihashDigest, IndexedSlice>()
  readonly #claims: IndexingServiceAPI.Client

  /** @param claims where the claims of each digest are */
  constructor(claims: IndexingServiceAPI.Client) {
    this.#claims = claims
  }

  publish: IPNIService['publish'] = async (_space, _providers, index) => {
    for (const [shard, slices] of index.shards) {
      for (const [digest, [offset, length]] of slices) {
        this.#slices.set(digest, {
          shard,
          offset,
          length,
          index: index as ShardedDAGIndexView,
        })
      }
    }
    return ok({})
  }

  /** Where a block lies, or undefined if no index has it. */
  find(digest: MultihashDigest): IndexedSlice | undefined {
    return this.#slices.get(digest)
  }

  /**
   * Everything a reader needs to fetch the blocks with these digests: the
   * answer of the indexing service, as a CAR.
   *
   * @see https://github.com/storacha/indexing-service
   */
  async createAnswer(digests: MultihashDigest[]): Promise<Uint8Array> {
    const wanted = new DigestMap<MultihashDigest, true>()
    const indexes = new Map<string, ShardedDAGIndexView>()
    for (const digest of digests) {
      wanted.set(digest, true)
      const slice = this.#slices.get(digest)
      if (!slice) continue
      wanted.set(slice.shard, true)
      wanted.set(slice.index.content.multihash, true)
      indexes.set(base58btc.encode(slice.shard.bytes), slice.index)
    }
    const found = unwrap(
      await this.#claims.queryClaims({ hashes: [...wanted.keys()] })
    )
    const answer = unwrap(
      await QueryResult.from({ claims: [...found.claims.values()], indexes })
    )
    return unwrap(await answer.archive())
  }
}
