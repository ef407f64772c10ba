import assert from 'node:assert/strict'
import fc from 'fast-check'
import type { BlockIndex, Link, NewShard } from '../../src/space/index.ts'
import {
  DecodeError,
  MAX_BLOCK_SIZE,
  MissingBlockError,
  appendToBlockIndex,
  encodeBlockIndex,
  loadBlockIndex,
  readBlockIndex,
} from '../../src/space/index.ts'
import { MemoryBlocks, blockOf, digestOf, linkOf } from './helpers.ts'

const digests = await Promise.all(
  Array.from({ length: 60 }, (_, i) => digestOf(i))
)

describe('the block index', () => {
  it('does what a Map does', () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.array(
            fc.record({
              shard: fc.nat({ max: 5 }),
              located: fc.boolean(),
              slices: fc.array(
                fc.record({
                  digest: fc.nat({ max: 49 }),
                  offset: fc.nat({ max: 2 ** 40 }),
                  length: fc.nat({ max: 2 ** 32 - 1 }),
                }),
                { maxLength: 12 }
              ),
            }),
            { maxLength: 3 }
          ),
          { minLength: 1, maxLength: 8 }
        ),
        async (runs) => {
          const blocks = new MemoryBlocks()
          const model = new Map<string, string>()
          const locations = new Map<string, string | undefined>()
          let index: Link<BlockIndex> | undefined
          for (const [i, run] of runs.entries()) {
            const shards = run.map(({ shard, located, slices }): NewShard => ({
              digest: shardDigest(shard),
              size: 2 ** 41,
              location: located ? `https://a.test/${shard}/${i}` : undefined,
              slices: slices.map(({ digest, ...slice }) => ({
                digest: digests[digest]!,
                ...slice,
              })),
            }))
            for (const { digest, location, slices } of shards) {
              if (slices.length > 0) locations.set(hex(digest), location)
              for (const slice of slices) {
                model.set(
                  hex(slice.digest),
                  `${hex(digest)} ${slice.offset} ${slice.length}`
                )
              }
            }
            index = blocks.keep(await appendToBlockIndex(blocks, index, shards))
          }

          const reader = await loadBlockIndex(blocks, index!)
          assert.equal(reader.size, model.size)
          for (const digest of digests) {
            const slice = reader.get(digest)
            assert.equal(reader.has(digest), model.has(hex(digest)))
            assert.equal(
              slice &&
                `${hex(slice.shard.digest)} ${slice.offset} ${slice.length}`,
              model.get(hex(digest))
            )
          }
          const slices = [...reader.slices()]
          assert.equal(slices.length, model.size)
          for (const { digest, shard, offset, length } of slices) {
            const expected = `${hex(shard.digest)} ${offset} ${length}`
            assert.equal(model.get(hex(digest)), expected)
          }
          for (const shard of reader.shards()) {
            assert.ok(locations.has(hex(shard.digest)))
          }
          const known = reader.shards().map(({ digest }) => hex(digest))
          assert.equal(new Set(known).size, known.length)
        }
      ),
      { numRuns: 200 }
    ))

  it('is the same for the same shards', async () => {
    const blocks = new MemoryBlocks()
    const build = async () => {
      let index: Link<BlockIndex> | undefined
      for (let i = 0; i < 20; i++) {
        const shard = await shardOf(i, [i, i + 100])
        index = blocks.keep(await appendToBlockIndex(blocks, index, [shard]))
      }
      return index!.toString()
    }
    assert.equal(await build(), await build())
  })

  it('without slices is empty, and stays what it is', async () => {
    const blocks = new MemoryBlocks()
    const empty = blocks.keep(await appendToBlockIndex(blocks, undefined, []))
    assert.equal((await loadBlockIndex(blocks, empty)).size, 0)
    const same = await appendToBlockIndex(blocks, empty, [await shardOf(1, [])])
    assert.deepEqual(same, { root: empty, additions: [] })
  })

  it('has few segments after many runs, and each run writes little', async () => {
    const blocks = new MemoryBlocks()
    const runs = 300
    let index: Link<BlockIndex> | undefined
    let written = 0
    for (let i = 0; i < runs; i++) {
      const shard = await shardOf(i, [i * 3, i * 3 + 1, i * 3 + 2])
      const revision = await appendToBlockIndex(blocks, index, [shard])
      index = blocks.keep(revision)
      written += revision.additions.reduce((sum, b) => sum + b.bytes.length, 0)
    }
    const { segments } = await readBlockIndex(blocks, index!)
    assert.ok(segments.length <= 10, `${segments.length} segments`)
    for (const [i, { count }] of segments.entries()) {
      const next = segments[i + 1]
      assert.ok(next === undefined || count > next.count)
    }
    const reader = await loadBlockIndex(blocks, index!)
    assert.equal(reader.size, runs * 3)
    assert.equal(reader.shards().length, runs)
    const size = reader.size * 44 + runs * 100
    assert.ok(written < size * 16, `${written} bytes for ${size}`)
  })

  it('splits what does not fit in one segment', async () => {
    const blocks = new MemoryBlocks()
    const shard = await shardOf(1, range(0, 33_000))
    const index = blocks.keep(
      await appendToBlockIndex(blocks, undefined, [shard])
    )
    const { segments } = await readBlockIndex(blocks, index)
    assert.deepEqual(
      segments.map(({ count }) => count),
      [16_000, 16_000, 1000]
    )
    const more = await shardOf(2, range(32_900, 33_100))
    const next = blocks.keep(await appendToBlockIndex(blocks, index, [more]))
    const reader = await loadBlockIndex(blocks, next)
    assert.equal(reader.size, 33_100)
    const moved = reader.get(await digestOf(32_950))
    assert.equal(hex(moved!.shard.digest), hex(more.digest))
  })

  it('splits what refers to more shards than fit', async () => {
    const blocks = new MemoryBlocks()
    const location = `https://a.test/${'x'.repeat(200)}`
    const shards = await Promise.all(
      range(0, 9000).map(async (i) => ({
        ...(await shardOf(i, [i])),
        location,
      }))
    )
    const revision = await appendToBlockIndex(blocks, undefined, shards)
    for (const { bytes } of revision.additions) {
      assert.ok(bytes.length <= MAX_BLOCK_SIZE)
      assert.ok(bytes.length < 1000 || bytes.length > MAX_BLOCK_SIZE / 4)
    }
    const index = blocks.keep(revision)
    // Another run does not merge what would be too large.
    const more = await Promise.all(
      range(9000, 12_000).map(async (i) => ({
        ...(await shardOf(i, [i])),
        location,
      }))
    )
    const reader = await loadBlockIndex(
      blocks,
      blocks.keep(await appendToBlockIndex(blocks, index, more))
    )
    assert.equal(reader.shards().length, 12_000)
    assert.equal(reader.size, 12_000)
  })

  it('refuses slices that do not lie in their shard', async () => {
    const digest = digests[0]!
    for (const [size, slice] of [
      [10, { digest, offset: 5, length: 6 }],
      [10, { digest, offset: -1, length: 6 }],
      [10, { digest, offset: 0.5, length: 6 }],
      [2 ** 40, { digest, offset: 0, length: 2 ** 32 }],
      [2 ** 48, { digest, offset: 0, length: 1 }],
      [10, { digest: digest.subarray(1), offset: 0, length: 1 }],
    ] as const) {
      const shard = { digest: shardDigest(1), size, slices: [slice] }
      await assert.rejects(
        appendToBlockIndex(new MemoryBlocks(), undefined, [shard]),
        DecodeError
      )
    }
  })

  it('refuses digests of another length', async () => {
    const blocks = new MemoryBlocks()
    const index = blocks.keep(await appendToBlockIndex(blocks, undefined, []))
    const reader = await loadBlockIndex(blocks, index)
    assert.throws(() => reader.has(new Uint8Array(31)), RangeError)
    assert.throws(() => reader.get(new Uint8Array(34)), RangeError)
  })

  it('says which segment is missing or not what the index says', async () => {
    const blocks = new MemoryBlocks()
    const missing = await linkOf('segment')
    const index = await encodeBlockIndex({
      version: 1,
      segments: [{ segment: missing, count: 1 }],
    })
    blocks.put(index)
    await assert.rejects(loadBlockIndex(blocks, index.cid), (error) => {
      assert.ok(error instanceof MissingBlockError)
      assert.match(error.message, new RegExp(missing.toString()))
      return true
    })

    const good = blocks.keep(
      await appendToBlockIndex(blocks, undefined, [await shardOf(1, [1])])
    )
    const { segments } = await readBlockIndex(blocks, good)
    const lying = await blockOf<BlockIndex>({
      version: 1,
      segments: [{ ...segments[0]!, count: 2 }],
    })
    blocks.put(lying)
    await assert.rejects(loadBlockIndex(blocks, lying.cid), DecodeError)
    await assert.rejects(
      appendToBlockIndex(blocks, lying.cid, [await shardOf(2, [2])]),
      DecodeError
    )
  })
})

function shardDigest(n: number): Uint8Array {
  const digest = new Uint8Array(34)
  digest.set([0x12, 0x20])
  new DataView(digest.buffer).setUint32(2, n)
  return digest
}

async function shardOf(n: number, slices: number[]): Promise<NewShard> {
  return {
    digest: shardDigest(n),
    size: 2 ** 32,
    slices: await Promise.all(
      slices.map(async (i) => ({
        digest: await digestOf(i),
        offset: i * 100,
        length: 100,
      }))
    ),
  }
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i)
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
