/**
 * CAR files as ATProto hosts send them and as the Space stores them. A hostile
 * one cannot make us hold more than one block.
 *
 * @see https://ipld.io/specs/transport/car/carv1/
 * @packageDocumentation
 */
import * as dagCBOR from '@ipld/dag-cbor'
import { varint } from 'multiformats'
import { CID } from 'multiformats/cid'
import { ByteReader } from './bytes.ts'
import { InvalidRepoError } from './errors.ts'

/** Largest block that is accepted in a repository, in bytes. */
export const MAX_REPO_BLOCK_SIZE = 2 * 1024 * 1024
const MAX_CAR_HEADER_SIZE = 4096
const DIGEST_SIZE = 32
/** CIDv1, dag-cbor, sha2-256, 32 bytes: all that a repository may contain. */
const REPO_CID_PREFIX = Uint8Array.of(0x01, 0x71, 0x12, 0x20)
const REPO_CID_SIZE = REPO_CID_PREFIX.length + DIGEST_SIZE

/** A block of a repository's CAR; its hash was not checked yet. */
export interface CarBlock {
  /** The SHA-256 that the CAR claims, 32 bytes. */
  digest: Uint8Array
  bytes: Uint8Array
}

/**
 * Reads the CAR of a repository as it comes in.
 *
 * @throws {@link InvalidRepoError} when it is not such a CAR or ends too early
 */
export async function readRepoCar(chunks: AsyncIterable<Uint8Array>): Promise<{
  root: CID | undefined
  blocks: AsyncGenerator<CarBlock, void>
  received: () => number
}> {
  const reader = new ByteReader(chunks)
  try {
    const root = await readHeader(reader)
    return { root, blocks: readBlocks(reader), received: () => reader.received }
  } catch (error) {
    await reader.close()
    throw error
  }
}

async function readHeader(reader: ByteReader): Promise<CID | undefined> {
  const size = await readVarint(reader)
  if (size === undefined || size === 0 || size > MAX_CAR_HEADER_SIZE) {
    throw new InvalidRepoError(
      'the host did not answer with a CAR file: its start is not a CAR header'
    )
  }
  const bytes = await takeAll(reader, size)
  let header: unknown
  try {
    header = dagCBOR.decode(bytes)
  } catch (cause) {
    throw new InvalidRepoError(
      'the host did not answer with a CAR file: its header is not DAG-CBOR',
      { cause }
    )
  }
  const { version, roots } = Object(header) as {
    version?: unknown
    roots?: unknown
  }
  if (version !== 1 || !Array.isArray(roots) || roots.length > 1) {
    throw new InvalidRepoError(
      'the CAR of the repository must be version 1 with one root'
    )
  }
  return roots[0] === undefined ? undefined : (CID.asCID(roots[0]) ?? undefined)
}

async function* readBlocks(reader: ByteReader): AsyncGenerator<CarBlock, void> {
  try {
    for (;;) {
      const size = await readVarint(reader)
      if (size === undefined) return
      if (size < REPO_CID_SIZE || size > REPO_CID_SIZE + MAX_REPO_BLOCK_SIZE) {
        throw new InvalidRepoError(
          `the CAR of the repository has a block of ${size} bytes; at most ${MAX_REPO_BLOCK_SIZE} are accepted`
        )
      }
      const section = await takeAll(reader, size)
      if (!REPO_CID_PREFIX.every((byte, i) => section[i] === byte)) {
        throw new InvalidRepoError(
          'the CAR of the repository has a block whose CID is not CIDv1, dag-cbor, sha2-256'
        )
      }
      yield {
        digest: section.subarray(REPO_CID_PREFIX.length, REPO_CID_SIZE),
        bytes: section.subarray(REPO_CID_SIZE),
      }
    }
  } finally {
    await reader.close()
  }
}

async function takeAll(reader: ByteReader, size: number): Promise<Uint8Array> {
  const bytes = await reader.take(size)
  if (!bytes) {
    throw new InvalidRepoError(
      'the CAR of the repository was cut off in the middle of a block'
    )
  }
  return bytes
}

/** `undefined` at the end of the stream. */
async function readVarint(reader: ByteReader): Promise<number | undefined> {
  let value = 0
  for (let position = 0; position < 5; position++) {
    const byte = (await reader.take(1))?.[0]
    if (byte === undefined) {
      if (position === 0) return undefined
      throw new InvalidRepoError(
        'the CAR of the repository was cut off in the middle of a length'
      )
    }
    value += (byte & 0x7f) * 2 ** (7 * position)
    if (byte < 0x80) return value
  }
  throw new InvalidRepoError('the CAR of the repository has a length too large')
}

/** Bytes at the start of a CAR file with these roots. */
export function encodeCarHeader(roots: CID[]): Uint8Array {
  const header = dagCBOR.encode({ version: 1, roots })
  return withLength(header)
}

/** What stands before a block's bytes in a CAR file. */
export function encodeCarSection(
  cid: Uint8Array,
  blockSize: number
): Uint8Array {
  const size = cid.length + blockSize
  const prefix = new Uint8Array(varint.encodingLength(size) + cid.length)
  varint.encodeTo(size, prefix)
  prefix.set(cid, prefix.length - cid.length)
  return prefix
}

/** CID bytes of a block of a repository. */
export function repoCidBytes(digest: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(REPO_CID_SIZE)
  bytes.set(REPO_CID_PREFIX)
  bytes.set(digest, REPO_CID_PREFIX.length)
  return bytes
}

function withLength(bytes: Uint8Array): Uint8Array {
  const length = varint.encodingLength(bytes.length)
  const whole = new Uint8Array(length + bytes.length)
  varint.encodeTo(bytes.length, whole)
  whole.set(bytes, length)
  return whole
}
