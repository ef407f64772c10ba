import type { Block, Link, Pail, Revision, UnknownLink } from './interface.ts'
import {
  type Shard,
  type ShardEntry,
  type ShardPosition,
  childPosition,
  encodeShard,
  hasChild,
  rootPosition,
} from './pail-shard.ts'

/** A Pail, and how its shards are read. */
export interface PailSource {
  root: Link<Pail>
  read: ReadShard
}

type ReadShard = (position: ShardPosition) => Promise<Shard>

export interface JoinOptions {
  /** Chooses between two values of one key; commutative and associative. */
  resolve: (a: UnknownLink, b: UnknownLink) => UnknownLink
  /** Keys that are less than this are dropped. */
  before?: string
}

/** All keys below a prefix: a shard that may stay unread, or its entries. */
type Node = StoredNode | BuiltNode

interface StoredNode {
  position: ShardPosition
  read: ReadShard
}

interface BuiltNode {
  entries: ShardEntry[]
  /** Stored shards that the node was made of: it may equal one of them. */
  origins: Link<Shard>[]
}

/** One entry of one of the nodes that are joined, and its child. */
interface Branch {
  entry: ShardEntry
  child?: StoredNode
}

/**
 * Joins Pails into one that has the entries of all. Only shards are read in
 * which the Pails differ or that hold the bound: what stands below equal
 * links, or in one of the Pails alone, is taken over by its link.
 *
 * `merge` of the pail library loses entries and its `difference` invents keys;
 * the join of two tries needs neither.
 *
 * @param sources - at least one
 * @returns the root, and the shards that none of the Pails had, children first
 */
export async function joinPails<T>(
  sources: PailSource[],
  options: JoinOptions
): Promise<Revision<Pail<T>>> {
  const join = new Join(options)
  const root = await join.run(sources)
  return { root: root as Link as Link<Pail<T>>, additions: join.additions }
}

class Join {
  readonly additions: Block[] = []
  readonly #resolve: JoinOptions['resolve']
  readonly #before: string

  constructor({ resolve, before = '' }: JoinOptions) {
    this.#resolve = resolve
    this.#before = before
  }

  async run(sources: PailSource[]): Promise<Link<Shard>> {
    const nodes = sources.map(({ root, read }) => ({
      position: rootPosition(root),
      read,
    }))
    return this.#store('', await this.#join('', nodes))
  }

  async #join(prefix: string, nodes: Node[]): Promise<Node> {
    const distinct = withoutRepeats(nodes)
    const [only, ...others] = distinct
    if (others.length === 0 && !this.#isBound(prefix)) return only!
    const opened = await Promise.all(
      distinct.map((node) => this.#open(prefix, node))
    )
    const groups = Map.groupBy(opened.flat(), ({ entry }) => entry.key[0]!)
    const entries: ShardEntry[] = []
    for (const first of [...groups.keys()].sort()) {
      const entry = await this.#joinBranches(prefix, first, groups.get(first)!)
      if (entry !== undefined) entries.push(entry)
    }
    return { entries, origins: distinct.flatMap(originsOf) }
  }

  /** Whether keys with the prefix may lie on both sides of the bound. */
  #isBound(prefix: string): boolean {
    return prefix !== this.#before && this.#before.startsWith(prefix)
  }

  async #open(prefix: string, node: Node): Promise<Branch[]> {
    if ('entries' in node) return node.entries.map((entry) => ({ entry }))
    const { position, read } = node
    const { entries } = await read(position)
    return entries.flatMap((entry): Branch[] => {
      const key = prefix + entry.key
      const child = hasChild(entry)
        ? { position: childPosition(prefix, entry), read }
        : undefined
      if (key >= this.#before) return [{ entry, child }]
      // The key itself is dropped, not what is longer than the bound.
      return child !== undefined && this.#isBound(key)
        ? [{ entry: { key: entry.key }, child }]
        : []
    })
  }

  /** Joins entries that start with the same character. */
  async #joinBranches(
    prefix: string,
    first: string,
    branches: Branch[]
  ): Promise<ShardEntry | undefined> {
    const { key } = branches[0]!.entry
    const sameLeaf = branches.every(
      ({ entry, child }) => entry.key === key && child === undefined
    )
    if (sameLeaf) return { key, value: this.#resolveAll(branches) }
    const value = this.#resolveAll(
      branches.filter(({ entry }) => entry.key === first)
    )
    const nodes = branches.flatMap(nodeBelow)
    return this.#attach(prefix, first, {
      value,
      node: await this.#join(prefix + first, nodes),
    })
  }

  #resolveAll(branches: Branch[]): UnknownLink | undefined {
    const values = branches.flatMap(({ entry }) => entry.value ?? [])
    return values.length === 0 ? undefined : values.reduce(this.#resolve)
  }

  /**
   * Makes the entry for a character, its value and the keys below it, in the
   * one shape that a Pail has for them; none if nothing is left.
   */
  async #attach(
    prefix: string,
    first: string,
    { value, node }: { value?: UnknownLink; node: Node }
  ): Promise<ShardEntry | undefined> {
    if (value === undefined && 'entries' in node) {
      const [only, ...others] = node.entries
      if (only === undefined) return undefined
      if (others.length === 0 && !hasChild(only)) {
        return { key: first + only.key, value: only.value }
      }
    }
    return { key: first, value, child: await this.#store(prefix + first, node) }
  }

  /** Links to the shard of a node, which is new if no Pail had it. */
  async #store(prefix: string, node: Node): Promise<Link<Shard>> {
    if ('position' in node) return node.position.link
    const block = await encodeShard({ prefix, entries: node.entries })
    const isKnown = node.origins.some((origin) => origin.equals(block.cid))
    if (!isKnown) this.additions.push(block)
    return block.cid
  }
}

/** What an entry holds below its first character. */
function nodeBelow({ entry: { key, value }, child }: Branch): Node[] {
  if (child !== undefined) return [child]
  if (key.length === 1) return []
  return [{ entries: [{ key: key.slice(1), value }], origins: [] }]
}

function originsOf(node: Node): Link<Shard>[] {
  return 'position' in node ? [node.position.link] : node.origins
}

function withoutRepeats(nodes: Node[]): Node[] {
  const seen = new Set<string>()
  return nodes.filter((node) => {
    if ('entries' in node) return true
    const id = node.position.link.toString()
    if (seen.has(id)) return false
    seen.add(id)
    return true
  })
}
