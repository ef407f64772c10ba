import * as UnixFS from '@ipld/unixfs'
import { withMaxChunkSize } from '@ipld/unixfs/file/chunker/fixed'
import { withWidth } from '@ipld/unixfs/file/layout/balanced'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import * as Digest from 'multiformats/hashes/digest'
import { bytesEqual, concat } from './bytes.ts'
import {
  BlobNotFoundError,
  BlobTakenDownError,
  HostUnavailableError,
} from './errors.ts'
import type { CreateSpool, MissingBlobReason, Spool } from './interface.ts'
import { SHA2_256_CODE, type CreateSha256 } from './sha256.ts'

/** Size of a leaf of a UnixFS file, in bytes: that of `@storacha/client`. */
const CHUNK_SIZE = 1024 * 1024
/** Links of an inner node of a UnixFS file: those of `@storacha/client`. */
const NODE_WIDTH = 1024
const MAX_DETAIL_LENGTH = 256

const UNIXFS_SETTINGS = UnixFS.configure({
  fileChunkEncoder: raw,
  smallFileEncoder: raw,
  chunker: withMaxChunkSize(CHUNK_SIZE),
  fileLayout: withWidth(NODE_WIDTH),
})

/** A blob whose bytes are those of its CID. */
export interface VerifiedBlob {
  cid: string
  size: number
  /** The bytes in order, each part at most 1 MiB. */
  parts(): AsyncGenerator<Uint8Array>
  /** Frees what holds the bytes. */
  close(): Promise<void>
}

/** Why there is no blob; becomes part of the backup. */
export class MissingBlobError extends Error {
  override readonly name = 'MissingBlobError'
  readonly reason: MissingBlobReason

  constructor(
    reason: MissingBlobReason,
    message: string,
    options?: ErrorOptions
  ) {
    super(message.slice(0, MAX_DETAIL_LENGTH), options)
    this.reason = reason
  }
}

/**
 * Fetches a blob and checks its hash. Up to 1 MiB is held in memory, what is
 * larger goes to a spool.
 *
 * @param options.maxSize - of the blob, in bytes
 * @throws {@link MissingBlobError} for whatever keeps this blob away
 * @throws {@link HostUnavailableError} when it was not asked for
 */
export async function fetchBlob(
  cid: string,
  open: () => Promise<AsyncIterable<Uint8Array>>,
  {
    createSpool,
    createSha256,
    maxSize,
    signal,
  }: {
    createSpool: CreateSpool
    createSha256: CreateSha256
    maxSize: number
    signal?: AbortSignal
  }
): Promise<VerifiedBlob> {
  const expected = digestIn(cid)
  let spool: Spool | undefined
  try {
    const hash = createSha256()
    let held: Uint8Array[] = []
    let size = 0
    for await (const chunk of await open()) {
      size += chunk.length
      if (size > maxSize) {
        throw new MissingBlobError(
          'too-large',
          `larger than the limit of ${maxSize} bytes`
        )
      }
      hash.update(chunk)
      if (!spool && size > CHUNK_SIZE) {
        spool = createSpool()
        for (const part of held) await spool.write(part)
        held = []
      }
      if (spool) await spool.write(chunk)
      else held.push(chunk)
    }
    if (!bytesEqual(hash.digest(), expected)) {
      throw new MissingBlobError(
        'wrong-hash',
        'the host sent bytes that are not those of the CID'
      )
    }
    const whole = spool
    const small = whole ? undefined : concat(held, size)
    return {
      cid,
      size,
      async *parts() {
        if (small) {
          yield small
          return
        }
        for (let offset = 0; whole && offset < size; offset += CHUNK_SIZE) {
          yield await whole.read(offset, Math.min(CHUNK_SIZE, size - offset))
        }
      },
      async close() {
        await whole?.close()
      },
    }
  } catch (error) {
    await spool?.close()
    signal?.throwIfAborted()
    throw asMissing(error)
  }
}

function digestIn(cid: string): Uint8Array {
  try {
    const { multihash } = CID.parse(cid)
    if (multihash.code === SHA2_256_CODE) return multihash.digest
  } catch (cause) {
    throw new MissingBlobError('failed', 'the CID of the blob is not valid', {
      cause,
    })
  }
  throw new MissingBlobError(
    'failed',
    'the CID of the blob has a hash other than sha2-256'
  )
}

function asMissing(error: unknown): unknown {
  if (error instanceof MissingBlobError) return error
  // It says nothing about the blob.
  if (error instanceof HostUnavailableError) return error
  const reason =
    error instanceof BlobNotFoundError
      ? 'not-found'
      : error instanceof BlobTakenDownError
        ? 'taken-down'
        : 'failed'
  const message = error instanceof Error ? error.message : String(error)
  return new MissingBlobError(reason, message, { cause: error })
}

/**
 * Writes a blob as a UnixFS file, as `@storacha/client` would.
 *
 * @param write - takes the file's blocks, the root last
 * @returns the root
 */
export async function writeUnixFS(
  blob: VerifiedBlob,
  write: (block: { cid: CID; bytes: Uint8Array }) => Promise<void>
): Promise<CID> {
  // A file of one leaf is that leaf, whose hash was checked already.
  if (blob.size > 0 && blob.size <= CHUNK_SIZE) {
    const cid = CID.createV1(raw.code, CID.parse(blob.cid).multihash)
    for await (const bytes of blob.parts()) await write({ cid, bytes })
    return cid
  }
  let failure: { error: unknown } | undefined
  const writer = UnixFS.createWriter({
    writable: new WritableStream<UnixFS.Block>({
      async write({ cid, bytes }) {
        try {
          await write({ cid: asCID(cid), bytes })
        } catch (error) {
          failure = { error }
          throw error
        }
      },
    }),
    settings: UNIXFS_SETTINGS,
  })
  try {
    const file = UnixFS.createFileWriter(writer)
    for await (const part of blob.parts()) await file.write(part)
    const { cid } = await file.close()
    await writer.close()
    return asCID(cid)
  } catch (error) {
    // The stream only says that it is closed; why, it does not keep.
    throw failure ? failure.error : error
  }
}

function asCID(link: UnixFS.Block['cid']): CID {
  return CID.createV1(link.code, Digest.decode(link.multihash.bytes))
}
