import * as Batch from '@web3-storage/pail/batch'
import type {
  BlockFetcher as PailFetcher,
  ShardLink,
} from '@web3-storage/pail/api'
import type {
  Block,
  BlockFetcher,
  Link,
  Pail,
  Revision,
  UnknownLink,
} from './interface.ts'
import {
  type Shard,
  type ShardPosition,
  checkKey,
  childPosition,
  decodeShard,
  encodeShard,
  hasChild,
  readShard,
  rootPosition,
} from './pail-shard.ts'
import { readBlock } from './codec.ts'

/** Which entries of a Pail, and in which order. */
export interface EntriesOptions {
  /** Only keys that are not less. */
  gte?: string
  /** Only keys that are less. */
  lt?: string
  /** From the greatest key to the least. */
  reverse?: boolean
  /** Shards that are read before they are needed, at each level; default 0. */
  readAhead?: number
}

/** A Pail without entries. */
export async function emptyPail<T = unknown>(): Promise<Revision<Pail<T>>> {
  const block = await encodeShard({ prefix: '', entries: [] })
  return { root: block.cid as Link as Link<Pail<T>>, additions: [block] }
}

/** A new Pail with the entries. The same entries in any order give one root. */
export async function buildPail<T = unknown>(
  entries: Iterable<[key: string, value: UnknownLink]>
): Promise<Revision<Pail<T>>> {
  const nothing: BlockFetcher = { get: async () => undefined }
  return putAll(nothing, undefined, entries)
}

/**
 * Puts entries into a Pail; a key that it has already gets the new value. The
 * root depends on nothing but the entries that the Pail has in the end.
 *
 * @param root - of the Pail; without it a new Pail is made
 * @returns the new root, and those of its shards that are new, children first
 * @throws {@link MissingBlockError} {@link DecodeError} also when a key is not
 *   printable ASCII
 */
export async function putAll<T = unknown>(
  fetcher: BlockFetcher,
  root: Link<Pail<T>> | undefined,
  entries: Iterable<[key: string, value: UnknownLink]>
): Promise<Revision<Pail<T>>> {
  const empty = await emptyPail<T>()
  const base = root ?? empty.root
  const reader = new CheckedReader(fetcher, base, empty.additions)
  const batch = await Batch.create(
    reader as PailFetcher,
    base as Link as ShardLink
  )
  for (const [key, value] of entries) {
    checkKey(key)
    await batch.put(key, value)
  }
  const revision = await batch.commit()
  const result = {
    root: revision.root as Link as Link<Pail<T>>,
    additions: revision.additions.map(({ cid, bytes }) => ({ cid, bytes })),
  }
  return root === undefined && result.root.equals(empty.root) ? empty : result
}

/**
 * Finds the value of a key.
 *
 * @throws {@link MissingBlockError} {@link DecodeError}
 */
export async function getEntry(
  fetcher: BlockFetcher,
  root: Link<Pail>,
  key: string
): Promise<UnknownLink | undefined> {
  let position = rootPosition(root)
  for (;;) {
    const shard = await readShard(fetcher, position)
    const rest = key.slice(shard.prefix.length)
    const entry = shard.entries.find((entry) => rest.startsWith(entry.key))
    if (entry === undefined) return undefined
    if (entry.key === rest) return entry.value
    if (!hasChild(entry)) return undefined
    position = childPosition(shard.prefix, entry)
  }
}

/**
 * Lists a Pail in the order of its keys. Without `readAhead`, no shard is read
 * before it is needed.
 *
 * @throws {@link MissingBlockError} {@link DecodeError}
 */
export async function* entries(
  fetcher: BlockFetcher,
  root: Link<Pail>,
  options: EntriesOptions = {}
): AsyncGenerator<[key: string, value: UnknownLink]> {
  yield* walk(fetcher, readShard(fetcher, rootPosition(root)), options)
}

async function* walk(
  fetcher: BlockFetcher,
  shard: Promise<Shard>,
  options: EntriesOptions
): AsyncGenerator<[key: string, value: UnknownLink]> {
  const { gte = '', lt, reverse = false, readAhead = 0 } = options
  const { prefix, entries } = await shard
  const inRange = entries.filter((entry) => {
    const key = prefix + entry.key
    // Longer keys may be in range although this one is less than the bound.
    return (lt === undefined || key < lt) && key >= gte.slice(0, key.length)
  })
  if (reverse) inRange.reverse()
  const children: (Promise<Shard> | undefined)[] = []
  for (const [i, { key: rest, value }] of inRange.entries()) {
    while (
      children.length < inRange.length &&
      children.length <= i + readAhead
    ) {
      const ahead = inRange[children.length]!
      children.push(
        hasChild(ahead)
          ? readSoon(fetcher, childPosition(prefix, ahead))
          : undefined
      )
    }
    const key = prefix + rest
    const own: [string, UnknownLink][] =
      value !== undefined && key >= gte ? [[key, value]] : []
    if (!reverse) yield* own
    const child = children[i]
    if (child !== undefined) yield* walk(fetcher, child, options)
    // Longer keys are greater: the key itself comes last.
    if (reverse) yield* own
  }
}

/** Starts to read a shard. An error is thrown to who awaits it, if any. */
function readSoon(
  fetcher: BlockFetcher,
  position: ShardPosition
): Promise<Shard> {
  const shard = readShard(fetcher, position)
  shard.catch(() => {})
  return shard
}

/**
 * Checks every shard before the pail library sees it: the library takes any
 * map that has the right field names, and trusts the prefixes in it.
 */
class CheckedReader implements BlockFetcher {
  readonly #fetcher: BlockFetcher
  readonly #known: Map<string, Block>
  /** Link as text → where the parent says the shard stands. */
  readonly #positions: Map<string, ShardPosition>

  constructor(fetcher: BlockFetcher, root: Link, known: Block[]) {
    this.#fetcher = fetcher
    this.#known = new Map(known.map((block) => [block.cid.toString(), block]))
    this.#positions = new Map([[root.toString(), rootPosition(root)]])
  }

  async get(link: UnknownLink): Promise<Block> {
    const id = link.toString()
    const block =
      this.#known.get(id) ??
      (await readBlock(this.#fetcher, link, 'Pail shard'))
    const shard: Shard = decodeShard(block, this.#positions.get(id)!)
    for (const entry of shard.entries.filter(hasChild)) {
      const position = childPosition(shard.prefix, entry)
      this.#positions.set(position.link.toString(), position)
    }
    return block
  }
}
