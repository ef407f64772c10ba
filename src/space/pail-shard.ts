import * as dagCbor from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { createCodec, readBlock } from './codec.ts'
import { DecodeError, TooLargeError } from './errors.ts'
import type { Block, BlockFetcher, Link, UnknownLink } from './interface.ts'
import { link, list, oneOf, text, versioned } from './schema.ts'

/** Length of a key in bytes, at most: what `@web3-storage/pail` allows. */
export const MAX_KEY_LENGTH = 4096

/** Printable ASCII characters: a shard has one entry for each, at most. */
const MAX_ENTRIES = 95

const PRINTABLE_ASCII = /^[\x20-\x7e]+$/

/**
 * One node of a Pail, which is a trie. The entries of a shard start with
 * different characters. Keys that share a first character are in a child
 * shard under that one character; a key that nobody shares the first
 * character with is in the entry whole. So a set of keys has one shape only.
 */
export interface Shard {
  /** What all keys in the shard start with. */
  prefix: string
  /** Sorted by key. */
  entries: ShardEntry[]
}

/** Has a value, a child, or both. */
export interface ShardEntry {
  /** What follows the prefix; one character if there is a child. */
  key: string
  /** Value of the key itself. */
  value?: UnknownLink
  /** Shard with the longer keys that start with this one. */
  child?: Link<Shard>
}

/** The form of a shard as `@web3-storage/pail` defines it. */
interface EncodedShard {
  version: 1
  keyChars: 'ascii'
  maxKeySize: number
  prefix: string
  entries: EncodedEntry[]
}

type EncodedEntry = [
  key: string,
  value: UnknownLink | [Link<Shard>] | [Link<Shard>, UnknownLink],
]

const codec = createCodec<EncodedShard>('Pail shard', {
  check: versioned({
    keyChars: oneOf(['ascii']),
    maxKeySize: oneOf([MAX_KEY_LENGTH]),
    prefix: text(MAX_KEY_LENGTH),
    entries: list(encodedEntry, MAX_ENTRIES),
  }),
})

/** Where a shard stands, which its parent knows. */
export interface ShardPosition {
  link: Link<Shard>
  prefix: string
  /** Keys that it holds at least; with fewer it would not be a shard. */
  minimum: number
}

/** Position of the shard that the others hang from. It alone may be empty. */
export function rootPosition(link: Link): ShardPosition {
  return { link: link as Link<Shard>, prefix: '', minimum: 0 }
}

/** Position of the child of an entry; the caller knows that there is one. */
export function childPosition(
  prefix: string,
  { key, value, child }: ShardEntry & { child: Link<Shard> }
): ShardPosition {
  const minimum = value === undefined ? 2 : 1
  return { link: child, prefix: prefix + key, minimum }
}

/** Whether an entry has a child. */
export function hasChild(
  entry: ShardEntry
): entry is ShardEntry & { child: Link<Shard> } {
  return entry.child !== undefined
}

/** @throws {@link DecodeError} */
export async function encodeShard({
  prefix,
  entries,
}: Shard): Promise<Block<Shard>> {
  const block = await codec.encode({
    version: 1,
    keyChars: 'ascii',
    maxKeySize: MAX_KEY_LENGTH,
    prefix,
    entries: entries.map(encodeEntry),
  })
  return block as Block as Block<Shard>
}

/**
 * Decodes a shard and checks that it has the one shape that its keys allow.
 *
 * @throws {@link DecodeError} {@link UnknownVersionError} {@link TooLargeError}
 */
export function decodeShard(
  block: Block,
  { prefix, minimum }: Omit<ShardPosition, 'link'>
): Shard {
  const subject = `Pail shard ${block.cid.toString()}`
  const shard = codec.decode(block)
  if (shard.prefix !== prefix) {
    throw new DecodeError(`${subject} has another prefix than its place says`)
  }
  const entries = shard.entries.map(decodeEntry)
  let previous = ''
  for (const { key } of entries) {
    if (prefix.length + key.length > MAX_KEY_LENGTH) {
      throw new TooLargeError(
        `${subject} has a key of more than ${MAX_KEY_LENGTH} characters`
      )
    }
    if (key[0]! <= previous) {
      throw new DecodeError(
        `${subject} must be sorted, with one entry for each first character`
      )
    }
    previous = key[0]!
  }
  const atLeast = entries.length + (entries.some(hasChild) ? 1 : 0)
  if (atLeast < minimum) {
    throw new DecodeError(`${subject} has too few keys to be a shard`)
  }
  return { prefix, entries }
}

/**
 * @throws {@link MissingBlockError} {@link DecodeError}
 *   {@link UnknownVersionError} {@link TooLargeError}
 */
export async function readShard(
  fetcher: BlockFetcher,
  position: ShardPosition
): Promise<Shard> {
  const block = await readBlock(fetcher, position.link, 'Pail shard')
  return decodeShard(block, position)
}

/** Fails unless the key may stand in a Pail. */
export function checkKey(key: string): void {
  if (!PRINTABLE_ASCII.test(key) || key.length > MAX_KEY_LENGTH) {
    throw new DecodeError(
      `Pail key must be 1 to ${MAX_KEY_LENGTH} printable ASCII characters`
    )
  }
}

function encodedEntry(value: unknown, path: string): EncodedEntry {
  const [key, target] = tuple(value, [2], path)
  if (typeof key !== 'string' || !PRINTABLE_ASCII.test(key)) {
    throw new DecodeError(`${path}[0] must be printable ASCII characters`)
  }
  if (!Array.isArray(target)) return [key, anyLink(target, `${path}[1]`)]
  const [child, ...values] = tuple(target, [1, 2], `${path}[1]`)
  if (key.length !== 1) {
    throw new DecodeError(`${path} must have one character, having a child`)
  }
  const childLink = link<Shard>(dagCbor.code)(child, `${path}[1][0]`)
  return values.length === 0
    ? [key, [childLink]]
    : [key, [childLink, anyLink(values[0], `${path}[1][1]`)]]
}

function tuple(value: unknown, lengths: number[], path: string): unknown[] {
  if (!Array.isArray(value) || !lengths.includes(value.length)) {
    throw new DecodeError(`${path} must be a list of ${lengths.join(' or ')}`)
  }
  return value
}

function anyLink(value: unknown, path: string): UnknownLink {
  const cid = CID.asCID(value)
  if (cid === null) throw new DecodeError(`${path} must be a link`)
  return cid
}

function encodeEntry({ key, value, child }: ShardEntry): EncodedEntry {
  if (child === undefined) return [key, value!]
  return [key, value === undefined ? [child] : [child, value]]
}

function decodeEntry([key, target]: EncodedEntry): ShardEntry {
  if (!Array.isArray(target)) return { key, value: target }
  const [child, value] = target
  return value === undefined ? { key, child } : { key, child, value }
}
