import * as Assert from '@storacha/capabilities/assert'
import * as Blob from '@storacha/capabilities/blob'
import * as Claim from '@storacha/capabilities/claim'
import type { IndexingServiceAPI } from '@storacha/upload-api/types'
import { connect } from '@ucanto/client'
import type {
  ConnectionView,
  PrincipalResolver,
  Signer,
} from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import * as Server from '@ucanto/server'
import { CAR } from '@ucanto/transport'
import type { MultihashDigest } from 'multiformats'
import { base58btc } from 'multiformats/bases/base58'
import { base64pad } from 'multiformats/bases/base64'
import * as Digest from 'multiformats/hashes/digest'
import { DigestMap } from '@storacha/blob-index'
import { parseVerifier, withNativeSigning } from '../../src/node/index.ts'
import type { BlobFiles } from './blob-files.ts'

/** How long a blob may be uploaded after it was allocated, in seconds. */
const UPLOAD_EXPIRES = 24 * 60 * 60

/** Path under which blobs are uploaded and downloaded. */
export const BLOB_PATH = '/blob/'

export interface StorageNodeOptions extends PrincipalResolver {
  /** Where the HTTP server of the node is, without a slash at the end. */
  url: `http:${string}`
  blobs: BlobFiles
  indexingService: IndexingServiceAPI.ClientConfig
}

/** A storage node: the upload service asks it to keep blobs. */
export interface StorageNode {
  id: Signer

  connection: ConnectionView<any>
  /** Size of a blob that the upload service announced, in bytes. */
  allocated(digest: MultihashDigest): number | undefined
}

/**
 * Creates a storage node that keeps its blobs in files. What it does not do is
 * to replicate blobs and to prove that it has them.
 */
export async function createStorageNode({
  url,
  blobs,
  indexingService,
  resolveDIDKey,
}: StorageNodeOptions): Promise<StorageNode> {
  const id = withNativeSigning(await ed25519.generate())
  const allocations = new DigestMap<MultihashDigest, number>()
  const locationOf = (digest: MultihashDigest) =>
    `${url}${BLOB_PATH}${base58btc.encode(digest.bytes)}` as const

  const allocate = Server.provideAdvanced({
    capability: Blob.allocate,
    handler: async ({ capability }) => {
      const { blob } = capability.nb
      const digest = Digest.decode(blob.digest)
      if ((await blobs.size(digest)) !== undefined) {
        return Server.ok({ size: 0 })
      }
      const size = allocations.has(digest) ? 0 : blob.size
      allocations.set(digest, blob.size)
      return Server.ok({
        size,
        address: {
          url: locationOf(digest),
          headers: {
            'x-amz-checksum-sha256': base64pad.baseEncode(digest.digest),
          },
          expires: UPLOAD_EXPIRES,
        },
      })
    },
  })

  const accept = Server.provideAdvanced({
    capability: Blob.accept,
    handler: async ({ capability }) => {
      const { blob, space } = capability.nb
      const digest = Digest.decode(blob.digest)
      if ((await blobs.size(digest)) === undefined) {
        return Server.error({
          name: 'AllocatedMemoryHadNotBeenWrittenTo',
          message: 'The blob was not uploaded: upload it first',
        })
      }
      const site = await Assert.location.delegate({
        issuer: id,
        audience: space,
        with: id.did(),
        nb: {
          content: { digest: digest.bytes },
          location: [locationOf(digest)],
          space,
        },
        expiration: Infinity,
      })
      const cached = await Claim.cache
        .invoke({
          issuer: id,
          audience: indexingService.invocationConfig.audience,
          with: id.did(),
          nb: { claim: site.cid, provider: { addresses: [] } },
          expiration: Infinity,
          proofs: [site],
        })
        .execute(indexingService.connection)
      if (cached.out.error) return cached.out
      return Server.ok({ site: site.cid }).fork(site)
    },
  })

  const server = Server.create({
    id,
    codec: CAR.inbound,
    principal: { parse: parseVerifier },
    service: { blob: { allocate, accept } },
    resolveDIDKey,
    validateAuthorization: () => ({ ok: {} }),
  })
  return {
    id,
    connection: connect({ id, codec: CAR.outbound, channel: server }),
    allocated: (digest) => allocations.get(digest),
  }
}
