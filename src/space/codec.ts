import * as dagCbor from '@ipld/dag-cbor'
import { equals } from 'multiformats/bytes'
import { identity } from 'multiformats/hashes/identity'
import { sha256 } from 'multiformats/hashes/sha2'
import * as Link from 'multiformats/link'
import { DecodeError, MissingBlockError, TooLargeError } from './errors.ts'
import type { Block, BlockFetcher, UnknownLink } from './interface.ts'
import { type Check, isSha256Link } from './schema.ts'

/** Size of a block in bytes, at most, unless its kind says less. */
export const MAX_BLOCK_SIZE = 1024 * 1024

/** Code of the `json` codec: any JSON text, as it was received. */
export const JSON_CODE = 0x0200

/** How values of one kind become blocks and blocks become values. */
export interface Codec<T> {
  encode: (value: T) => Promise<Block<T>>
  decode: (block: Block) => T
  read: (fetcher: BlockFetcher, link: Link.Link<T>) => Promise<T>
}

/**
 * Makes the codec of one kind of DAG-CBOR block. Only canonical DAG-CBOR
 * decodes: a value has exactly one block, and a block exactly one meaning.
 *
 * @param kind - name of the kind, for messages
 * @param options.check - what a value must be
 * @param options.maxSize - of a block, in bytes
 */
export function createCodec<T>(
  kind: string,
  { check, maxSize = MAX_BLOCK_SIZE }: { check: Check<T>; maxSize?: number }
): Codec<T> {
  const codec: Codec<T> = {
    async encode(value) {
      const bytes = dagCbor.encode(check(value, `new ${kind}`))
      checkSize(bytes, maxSize, `new ${kind}`)
      return { cid: await linkTo<T>(dagCbor.code, bytes), bytes }
    },
    decode({ cid, bytes }) {
      const subject = `${kind} ${cid.toString()}`
      checkLink(cid, dagCbor.code, subject)
      checkSize(bytes, maxSize, subject)
      const value = check(decodeDagCbor(bytes, subject), subject)
      if (!equals(dagCbor.encode(value), bytes)) {
        throw new DecodeError(`${subject} is not canonical DAG-CBOR`)
      }
      return value
    },
    async read(fetcher, link) {
      return codec.decode(await readBlock(fetcher, link, kind))
    },
  }
  return codec
}

/**
 * Reads one block.
 *
 * @param kind - what the block should be, for the message
 * @throws {@link MissingBlockError}
 */
export async function readBlock(
  fetcher: BlockFetcher,
  link: UnknownLink,
  kind: string
): Promise<Block> {
  const block = await fetcher.get(link)
  if (block === undefined) {
    throw new MissingBlockError(
      `${kind} ${link.toString()} could not be read: check that the Space still has it`
    )
  }
  return { cid: link as Link.Link, bytes: block.bytes }
}

/**
 * Checks that a block's bytes are those of its CID. Only sha2-256 and
 * identity are accepted as hash functions.
 *
 * @throws {@link DecodeError}
 */
export async function verifyBlock({ cid, bytes }: Block): Promise<void> {
  const { code, digest } = cid.multihash
  if (code !== sha256.code && code !== identity.code) {
    throw new DecodeError(
      `Block ${cid.toString()} is hashed with 0x${code.toString(16)}: only sha2-256 and identity are accepted`
    )
  }
  const actual =
    code === sha256.code ? (await sha256.digest(bytes)).digest : bytes
  if (!equals(actual, digest)) {
    throw new DecodeError(
      `Block ${cid.toString()} has other bytes than its CID says`
    )
  }
}

/**
 * Makes a block of any JSON text, byte for byte as it was received.
 *
 * @throws {@link DecodeError} when the text is not JSON
 */
export async function encodeJSONText(text: string): Promise<Block> {
  checkJSON(text, 'new JSON text')
  if (!text.isWellFormed()) {
    throw new DecodeError('new JSON text has a lone surrogate')
  }
  const bytes = new TextEncoder().encode(text)
  return { cid: await linkTo(JSON_CODE, bytes), bytes }
}

/**
 * @param options.maxSize - of the block, in bytes
 * @throws {@link DecodeError} {@link TooLargeError}
 */
export function decodeJSONText(
  { cid, bytes }: Block,
  { maxSize = MAX_BLOCK_SIZE }: { maxSize?: number } = {}
): string {
  const subject = `JSON text ${cid.toString()}`
  checkLink(cid, JSON_CODE, subject)
  checkSize(bytes, maxSize, subject)
  let text
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(
      bytes
    )
  } catch (cause) {
    throw new DecodeError(`${subject} is not UTF-8`, { cause })
  }
  checkJSON(text, subject)
  return text
}

async function linkTo<T>(
  code: number,
  bytes: Uint8Array
): Promise<Link.Link<T>> {
  return Link.create(code, await sha256.digest(bytes))
}

function checkLink(cid: Link.Link, code: number, subject: string): void {
  if (!isSha256Link(cid, code)) {
    throw new DecodeError(
      `${subject} must have a CIDv1 with codec 0x${code.toString(16)} and sha2-256`
    )
  }
}

function checkSize(bytes: Uint8Array, maxSize: number, subject: string): void {
  if (bytes.length > maxSize) {
    throw new TooLargeError(
      `${subject} has ${bytes.length} bytes, more than ${maxSize}`
    )
  }
}

function checkJSON(text: string, subject: string): void {
  try {
    JSON.parse(text)
  } catch {
    // Without the cause: the parser quotes the text, which may be private.
    throw new DecodeError(`${subject} is not JSON`)
  }
}

function decodeDagCbor(bytes: Uint8Array, subject: string): unknown {
  try {
    return dagCbor.decode(bytes)
  } catch (cause) {
    throw new DecodeError(`${subject} is not DAG-CBOR`, { cause })
  }
}
