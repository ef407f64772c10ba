/**
 * Nodes of a repository's Merkle search tree.
 *
 * @see https://atproto.com/specs/repository#mst-structure
 * @packageDocumentation
 */
import * as dagCBOR from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { isBytes } from '../space/bytes.ts'
import { InvalidRepoError } from './errors.ts'

const DAG_CBOR_CODE = 0x71
const SHA2_256_CODE = 0x12

/** Longest key (`collection/rkey`), in bytes. */
const MAX_KEY_SIZE = 1024

export interface MstNode {
  left: CID | null
  entries: MstEntry[]
}

export interface MstEntry {
  /** `collection/rkey` */
  key: string
  record: CID
  /** Subtree of the keys between this entry and the next. */
  right: CID | null
}

/**
 * Decodes one node.
 *
 * @throws {@link InvalidRepoError} for anything that is not exactly a node
 */
export function decodeMstNode(bytes: Uint8Array): MstNode {
  let value: unknown
  try {
    value = dagCBOR.decode(bytes)
  } catch (cause) {
    throw invalid('is not DAG-CBOR', cause)
  }
  const { l, e } = Object(value) as { l?: unknown; e?: unknown }
  if (!Array.isArray(e)) throw invalid('has no entries')
  let previous = ''
  const entries = e.map((item: unknown): MstEntry => {
    const { p, k, v, t } = Object(item) as Record<string, unknown>
    if (
      typeof p !== 'number' ||
      !(p >= 0 && p <= previous.length) ||
      !isBytes(k) ||
      p + k.length > MAX_KEY_SIZE
    ) {
      throw invalid('has an entry without a proper key')
    }
    const key = previous.slice(0, p) + asciiOf(k)
    if (key <= previous) throw invalid('has keys that are out of order')
    previous = key
    const record = linkOf(v)
    if (!record) throw invalid('has an entry without a record')
    return { key, record, right: linkOf(t) }
  })
  return { left: linkOf(l), entries }
}

function linkOf(value: unknown): CID | null {
  if (value === null || value === undefined) return null
  const cid = CID.asCID(value)
  if (
    cid?.version !== 1 ||
    cid.code !== DAG_CBOR_CODE ||
    cid.multihash.code !== SHA2_256_CODE
  ) {
    throw invalid('links to something that is not a dag-cbor sha2-256 block')
  }
  return cid
}

function asciiOf(bytes: Uint8Array): string {
  let text = ''
  for (const byte of bytes) {
    if (byte < 0x20 || byte > 0x7e) {
      throw invalid('has a key that is not printable ASCII')
    }
    text += String.fromCharCode(byte)
  }
  return text
}

function invalid(what: string, cause?: unknown): InvalidRepoError {
  return new InvalidRepoError(`a node of the repository's tree ${what}`, {
    cause,
  })
}
