import assert from 'node:assert/strict'
import * as Library from '@web3-storage/pail'
import type {
  BlockFetcher as PailFetcher,
  ShardLink,
} from '@web3-storage/pail/api'
import { ShardBlock } from '@web3-storage/pail/shard'
import fc from 'fast-check'
import type { Link, UnknownLink } from '../../src/space/index.ts'
import {
  DecodeError,
  MissingBlockError,
  TooLargeError,
  UnknownVersionError,
  buildPail,
  emptyPail,
  entries,
  getEntry,
  putAll,
} from '../../src/space/index.ts'
import { joinPails } from '../../src/space/pail-join.ts'
import { encodeShard, readShard } from '../../src/space/pail-shard.ts'
import { MemoryBlocks, blockOf, hour, linkOf } from './helpers.ts'

const values = await Promise.all([0, 1, 2, 3].map((n) => linkOf(n, 0x55)))

/** Short keys of few characters: prefixes of each other, most often. */
const key = fc.string({
  minLength: 1,
  maxLength: 5,
  unit: fc.constantFrom('a', 'b', ' ', '~'),
})
const value = fc.constantFrom(...values)
const entry = fc.tuple(key, value)
const entryList = fc.array(entry, { maxLength: 20 })

describe('pail', () => {
  it('holds what is put, in one shape, and gives it back in order', () =>
    fc.assert(
      fc.asyncProperty(entryList, entryList, async (first, second) => {
        const blocks = new MemoryBlocks()
        const model = new Map([...first, ...second])
        const base = blocks.keep(await buildPail(first))
        const revision = await putAll(blocks, base, second)
        const root = blocks.keep(revision)

        const whole = await buildPail(shuffled(model))
        assert.equal(root.toString(), whole.root.toString())
        assert.equal(root.toString(), await libraryRoot([...model]))
        assert.deepEqual(await list(blocks, root), sorted(model))
        for (const [key, value] of model) {
          const longer = `${key}b`
          for (const [tried, expected] of [
            [key, value],
            [longer, model.get(longer)],
          ] as const) {
            const found = await getEntry(blocks, root, tried)
            assert.equal(found?.toString(), expected?.toString())
          }
        }
      })
    ))

  it('lists ranges in both directions', () =>
    fc.assert(
      fc.asyncProperty(
        entryList,
        fc.option(key, { nil: undefined }),
        fc.option(key, { nil: undefined }),
        fc.boolean(),
        fc.nat({ max: 3 }),
        async (list, gte, lt, reverse, readAhead) => {
          const blocks = new MemoryBlocks()
          const root = blocks.keep(await buildPail(list))
          const expected = sorted(new Map(list)).filter(
            ([key]) =>
              (gte === undefined || key >= gte) &&
              (lt === undefined || key < lt)
          )
          const actual = await Array.fromAsync(
            entries(blocks, root, { gte, lt, reverse, readAhead })
          )
          assert.deepEqual(actual, reverse ? expected.reverse() : expected)
        }
      )
    ))

  it('reads ahead as far as it is told to', async () => {
    const blocks = new MemoryBlocks()
    const root = blocks.keep(await buildPail(hours(0, 1000)))
    for (const [readAhead, least, limit] of [
      [undefined, 1, 1],
      [4, 5, 15],
    ] as const) {
      let reading = 0
      let most = 0
      const slow = {
        get: async (link: UnknownLink) => {
          most = Math.max(most, ++reading)
          await new Promise(setImmediate)
          reading--
          return blocks.get(link)
        },
      }
      const all = await Array.fromAsync(entries(slow, root, { readAhead }))
      assert.equal(all.length, 1000)
      assert.ok(most >= least && most <= limit, `${most} at a time`)
    }
  })

  it('fails at the shard that is missing, not before', async () => {
    const blocks = new MemoryBlocks()
    const root = blocks.keep(await buildPail([...hours(0, 20), ...later(9)]))
    const rest = blocks.keep(await buildPail(hours(0, 20)))
    for (const id of [...blocks.blocks.keys()]) {
      const { bytes } = blocks.blocks.get(id)!
      if (Buffer.from(bytes).includes('2031')) blocks.blocks.delete(id)
    }
    assert.equal((await list(blocks, rest)).length, 20)
    const seen: string[] = []
    await assert.rejects(async () => {
      for await (const [key] of entries(blocks, root, { readAhead: 9 })) {
        seen.push(key)
      }
    }, MissingBlockError)
    assert.equal(seen.length, 20)
    // Who stops before is not bothered.
    for await (const [key] of entries(blocks, root, { readAhead: 9 })) {
      assert.equal(key, hour(0))
      break
    }
  })

  it('adds only shards that the root needs', async () => {
    const blocks = new MemoryBlocks()
    const base = blocks.keep(await buildPail(hours(0, 100)))
    const revision = await putAll(blocks, base, hours(100, 110))
    const fresh = new MemoryBlocks()
    fresh.put(...revision.additions)
    const used = new Set<string>()
    const reader = {
      get: async (link: UnknownLink) => {
        used.add(link.toString())
        return (await fresh.get(link)) ?? blocks.get(link)
      },
    }
    assert.equal((await list(reader, revision.root)).length, 110)
    for (const { cid } of revision.additions) {
      assert.ok(used.has(cid.toString()))
      assert.ok(!blocks.blocks.has(cid.toString()))
    }
  })

  it('changes nothing when nothing new is put', async () => {
    const blocks = new MemoryBlocks()
    const root = blocks.keep(await buildPail(hours(0, 10)))
    const same = await putAll(blocks, root, hours(3, 5))
    assert.equal(same.root.toString(), root.toString())
    assert.deepEqual(same.additions, [])
  })

  it('makes an empty pail of no entries', async () => {
    const { root, additions } = await buildPail([])
    const empty = await emptyPail()
    assert.equal(root.toString(), empty.root.toString())
    assert.equal(additions.length, 1)
    const blocks = new MemoryBlocks()
    blocks.put(...additions)
    assert.deepEqual(await list(blocks, root), [])
    assert.equal(await getEntry(blocks, root, 'a'), undefined)
  })

  it('refuses keys that a pail cannot have', async () => {
    for (const key of ['', 'ä', 'a\n', 'x'.repeat(4097)]) {
      await assert.rejects(buildPail([[key, values[0]!]]), DecodeError)
    }
  })

  it('says which shard is missing', async () => {
    const blocks = new MemoryBlocks()
    const root = await linkOf('missing')
    for (const read of [
      () => getEntry(blocks, root, 'a'),
      () => list(blocks, root),
      () => putAll(blocks, root, [['a', values[0]!]]),
    ]) {
      await assert.rejects(read, (error) => {
        assert.ok(error instanceof MissingBlockError)
        assert.match(error.message, new RegExp(root.toString()))
        return true
      })
    }
  })

  it('joins pails as one that was built of all entries', () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(entryList, { minLength: 1, maxLength: 4 }),
        fc.option(key, { nil: undefined }),
        async (lists, before) => {
          const blocks = new MemoryBlocks()
          const model = new Map<string, Link>()
          const sources = []
          for (const list of lists) {
            const root = blocks.keep(await buildPail(list))
            sources.push({ root, read: readShard.bind(null, blocks) })
            for (const [key, value] of new Map(list)) {
              model.set(key, greater(model.get(key) ?? value, value))
            }
          }
          for (const key of model.keys()) {
            if (before !== undefined && key < before) model.delete(key)
          }
          const joined = await joinPails(sources, { resolve: greater, before })
          const built = await buildPail(model)
          assert.equal(joined.root.toString(), built.root.toString())
          for (const { cid } of joined.additions) {
            assert.ok(!blocks.blocks.has(cid.toString()))
          }
          blocks.keep(joined)
          assert.deepEqual(await list(blocks, joined.root), sorted(model))
        }
      ),
      { numRuns: 300 }
    ))
})

describe('pail shards', () => {
  const config = { version: 1, keyChars: 'ascii', maxKeySize: 4096, prefix: '' }
  const link: Link = values[0]!
  let child: Link

  before(async () => {
    child = await linkOf('child')
  })

  const invalid: [string, () => unknown][] = [
    ['a prefix at the root', () => ({ ...config, prefix: 'a', entries: [] })],
    ['other characters', () => ({ ...config, keyChars: 'utf8', entries: [] })],
    ['another key size', () => ({ ...config, maxKeySize: 64, entries: [] })],
    ['an unknown field', () => ({ ...config, entries: [], extra: 1 })],
    ['no entries', () => config],
    ['entries that are no list', () => ({ ...config, entries: {} })],
    ['an entry that is no pair', () => ({ ...config, entries: [['a']] })],
    ['an empty key', () => ({ ...config, entries: [['', link]] })],
    [
      'a key of other characters',
      () => ({ ...config, entries: [['ä', link]] }),
    ],
    ['a key that is no text', () => ({ ...config, entries: [[1, link]] })],
    ['a value that is no link', () => ({ ...config, entries: [['a', 'b']] })],
    [
      'a child of a long key',
      () => ({ ...config, entries: [['ab', [child]]] }),
    ],
    ['a child that is raw', () => ({ ...config, entries: [['a', [link]]] })],
    ['no child', () => ({ ...config, entries: [['a', []]] })],
    [
      'a null value beside a child',
      () => ({ ...config, entries: [['a', [child, null]]] }),
    ],
    [
      'entries out of order',
      () => ({
        ...config,
        entries: [
          ['b', link],
          ['a', link],
        ],
      }),
    ],
    [
      'entries that should share a child',
      () => ({
        ...config,
        entries: [
          ['ab', link],
          ['ac', link],
        ],
      }),
    ],
    [
      'a key that is too long',
      () => ({ ...config, entries: [['a'.repeat(4097), link]] }),
    ],
  ]
  for (const [what, make] of invalid) {
    it(`with ${what} are refused`, async () => {
      const blocks = new MemoryBlocks()
      const block = await blockOf(make())
      blocks.put(block)
      for (const read of [
        () => list(blocks, block.cid),
        () => putAll(blocks, block.cid, [['x', link]]),
      ]) {
        await assert.rejects(read, (error) => {
          assert.ok(error instanceof DecodeError)
          assert.match(error.message, new RegExp(block.cid.toString()))
          return true
        })
      }
    })
  }

  it('of an unknown version are refused by name', async () => {
    const blocks = new MemoryBlocks()
    const block = await blockOf({ ...config, version: 2, entries: [], more: 1 })
    blocks.put(block)
    await assert.rejects(list(blocks, block.cid), UnknownVersionError)
  })

  it('with too many entries are refused by name', async () => {
    const blocks = new MemoryBlocks()
    const entries = Array.from({ length: 96 }, () => ['a', link])
    const block = await blockOf({ ...config, entries })
    blocks.put(block)
    await assert.rejects(list(blocks, block.cid), TooLargeError)
  })

  it('that should not be shards are refused', async () => {
    const blocks = new MemoryBlocks()
    for (const [entries, own] of [
      [[{ key: 'b', value: link }], []],
      [[], [link]],
    ] as const) {
      const inner = await encodeShard({ prefix: 'a', entries: [...entries] })
      const outer = await blockOf({
        ...config,
        entries: [['a', [inner.cid, ...own]]],
      })
      blocks.put(inner, outer)
      await assert.rejects(list(blocks, outer.cid), DecodeError)
      await assert.rejects(
        putAll(blocks, outer.cid, [['ac', link]]),
        DecodeError
      )
    }
  })

  it('that lie about their prefix are refused', async () => {
    const blocks = new MemoryBlocks()
    const inner = await encodeShard({
      prefix: 'z',
      entries: [
        { key: 'a', value: link },
        { key: 'b', value: link },
      ],
    })
    const outer = await blockOf({ ...config, entries: [['a', [inner.cid]]] })
    blocks.put(inner, outer)
    await assert.rejects(list(blocks, outer.cid), DecodeError)
    await assert.rejects(putAll(blocks, outer.cid, [['ac', link]]), DecodeError)
  })
})

function hours(from: number, to: number): [string, Link][] {
  return Array.from({ length: to - from }, (_, i) => [
    hour(from + i),
    values[0]!,
  ])
}

function later(count: number): [string, Link][] {
  return Array.from({ length: count }, (_, i) => [
    `2031-01-0${i + 1}T00:00:00.000Z`,
    values[0]!,
  ])
}

function greater<T extends UnknownLink>(a: T, b: T): T {
  return Buffer.compare(a.bytes, b.bytes) >= 0 ? a : b
}

async function list(
  ...[fetcher, root]: Parameters<typeof entries>
): Promise<[string, UnknownLink][]> {
  return Array.fromAsync(entries(fetcher, root))
}

function sorted<T>(model: Map<string, T>): [string, T][] {
  return [...model].sort(([a], [b]) => (a < b ? -1 : 1))
}

function shuffled<T>(model: Map<string, T>): [string, T][] {
  return [...model].reverse()
}

/** Puts one entry after the other with the library. */
async function libraryRoot(list: [string, UnknownLink][]): Promise<string> {
  const blocks = new MemoryBlocks()
  const empty = await ShardBlock.create()
  blocks.put(empty)
  let root: ShardLink = empty.cid
  for (const [key, value] of list) {
    const put = await Library.put(blocks as PailFetcher, root, key, value)
    blocks.put(...put.additions)
    root = put.root
  }
  return root.toString()
}
