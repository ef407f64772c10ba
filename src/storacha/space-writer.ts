import type { Delegation, Signer } from '@ucanto/interface'
import * as Link from 'multiformats/link'
import * as Digest from 'multiformats/hashes/digest'
import { Blob as SpaceBlob, Index, Upload } from '@storacha/upload-client'
import type { BackupError } from '../backup/errors.ts'
import {
  SpaceQuotaError,
  SpaceUnauthorizedError,
  SpaceUnavailableError,
} from '../backup/errors.ts'
import type { IndexedShard, SpaceWriter } from '../backup/interface.ts'
import { createSha256, digestOf, type CreateSha256 } from '../backup/sha256.ts'
import type { UploadServiceConnection } from './connection.ts'
import { encodeShardedIndex } from './sharded-index.ts'

const CAR_CODE = 0x0202
const SHA2_256_CODE = 0x12
/** Slices of one index, unless one shard has more. */
const MAX_INDEX_SLICES = 16_000

/** Who writes into which Space, and what allows it. */
export interface SpaceAuthority {
  issuer: Signer
  /** DID of the Space. */
  space: `did:key:${string}`
  proofs: Delegation[]
}

/**
 * Writes into a Space through its upload service.
 *
 * @param service - see `connectUploadService`
 */
export function createSpaceWriter(
  service: UploadServiceConnection,
  { issuer, space, proofs }: SpaceAuthority,
  { sha256 = createSha256 }: { sha256?: CreateSha256 } = {}
): SpaceWriter {
  const conf = { issuer, with: space, proofs, audience: service.audience }
  const options = (signal: AbortSignal | undefined) => ({
    connection: service.connection,
    receiptsEndpoint: service.receiptsUrl.href,
    fetch: service.fetch,
    // Requests repeat themselves; an answer is final.
    retries: 0,
    // An answer is cached by its invocation, errors too.
    nonce: crypto.randomUUID(),
    ...(signal ? { signal } : {}),
  })
  const put = async (
    digest: Uint8Array,
    bytes: Uint8Array,
    signal?: AbortSignal
  ) => {
    const { site } = await SpaceBlob.add(
      conf,
      Digest.decode(digest),
      bytes,
      options(signal)
    )
    return site.capabilities[0].nb.location[0]
  }
  return {
    get requests() {
      return service.requests
    },

    async putShard({ digest, bytes }, { signal } = {}) {
      const location = await named('storing a shard', signal, () =>
        put(digest, bytes, signal)
      )
      return location === undefined ? {} : { location }
    },

    async publishIndex(
      { content, shards, stored = Promise.resolve() },
      { signal } = {}
    ) {
      // Awaited below; until then nobody may be listening.
      stored.catch(() => {})
      let size = 0
      for (const group of groupsOf(shards)) {
        const bytes = encodeShardedIndex(content, group, sha256)
        const digest = Digest.create(SHA2_256_CODE, digestOf(sha256, bytes))
        await Promise.all([
          stored,
          named('storing the index', signal, () =>
            put(digest.bytes, bytes, signal)
          ),
        ])
        await named('publishing the index', signal, () =>
          Index.add(conf, Link.create(CAR_CODE, digest), options(signal))
        )
        size += bytes.length
      }
      return { size }
    },

    async listUpload({ root, shards }, { signal } = {}) {
      await named('listing the upload', signal, () =>
        Upload.add(
          conf,
          root,
          shards.map(({ digest }) =>
            Link.create(CAR_CODE, Digest.decode(digest))
          ),
          options(signal)
        )
      )
    },
  }
}

/**
 * Groups of shards with a limited number of slices each: an index is held in
 * memory, however many blocks the account has.
 */
function* groupsOf(shards: IndexedShard[]): Generator<IndexedShard[]> {
  let group: IndexedShard[] = []
  let slices = 0
  for (const shard of shards) {
    if (group.length > 0 && slices + shard.slices.length > MAX_INDEX_SLICES) {
      yield group
      group = []
      slices = 0
    }
    group.push(shard)
    slices += shard.slices.length
  }
  if (group.length > 0) yield group
}

/** Gives failures of the upload service the names that a run ends with. */
async function named<T>(
  doing: string,
  signal: AbortSignal | undefined,
  act: () => Promise<T>
): Promise<T> {
  try {
    return await act()
  } catch (error) {
    signal?.throwIfAborted()
    throw asBackupError(doing, error)
  }
}

function asBackupError(doing: string, error: unknown): BackupError {
  const names = new Set<string>()
  let message = error instanceof Error ? error.message : String(error)
  for (
    let cause: unknown = error;
    typeof cause === 'object' && cause !== null;
    cause = (cause as { cause?: unknown }).cause
  ) {
    const failure = cause as { name?: unknown; message?: unknown }
    if (typeof failure.name === 'string') names.add(failure.name)
    if (typeof failure.message === 'string') message = failure.message
  }
  const detail = `${doing} failed: ${message.slice(0, 500)}`
  const has = (...expected: string[]) =>
    expected.some((name) => names.has(name))
  if (
    has(
      'InsufficientStorage',
      'StorageQuotaExceeded',
      'BlobSizeOutsideOfSupportedRange'
    )
  ) {
    return new SpaceQuotaError(
      `the Space takes no more: it is full, or nobody pays for it; look at its plan at the upload service (${detail})`,
      { cause: error }
    )
  }
  if (has('Unauthorized', 'InvalidAudience', 'Revoked', 'SpaceNotFound')) {
    return new SpaceUnauthorizedError(
      `the upload service refused the delegation; delegate to the service again (${detail})`,
      { cause: error }
    )
  }
  if (has('ServiceUnavailable')) {
    return new SpaceUnavailableError(
      `the upload service takes no data at the moment; nothing is lost, the next run goes on (${detail})`,
      { cause: error }
    )
  }
  return new SpaceUnavailableError(
    `the upload service cannot be reached or does not work; the next run goes on from here (${detail})`,
    { cause: error }
  )
}
