import assert from 'node:assert/strict'
import { CarWriter } from '@ipld/car/writer'
import * as dagCBOR from '@ipld/dag-cbor'
import fc from 'fast-check'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import {
  MAX_REPO_BLOCK_SIZE,
  readRepoCar,
  repoCidBytes,
} from '../../src/backup/car.ts'
import { InvalidRepoError } from '../../src/backup/index.ts'
import { chunksOf, collect } from './harness.ts'

describe('CAR of a repository', () => {
  async function blockOf(value: unknown, code: number = dagCBOR.code) {
    const bytes = code === raw.code ? new Uint8Array(3) : dagCBOR.encode(value)
    return { cid: CID.createV1(code, await sha256.digest(bytes)), bytes }
  }

  async function carOf(
    roots: CID[],
    blocks: { cid: CID; bytes: Uint8Array }[]
  ): Promise<Uint8Array> {
    const { writer, out } = CarWriter.create(roots)
    const written = collect(out)
    for (const block of blocks) await writer.put(block)
    await writer.close()
    return written
  }

  async function readAll(chunks: AsyncIterable<Uint8Array>) {
    const { root, blocks, received } = await readRepoCar(chunks)
    const read = []
    for await (const { digest, bytes } of blocks) {
      read.push({
        cid: CID.decode(repoCidBytes(digest)).toString(),
        bytes: bytes.slice(),
      })
    }
    return { root, read, received: received() }
  }

  it('is read however its bytes come in', async () => {
    const blocks = await Promise.all(
      ['a', 'b'.repeat(300), 'c'.repeat(40_000)].map((value) =>
        blockOf({ value })
      )
    )
    const [first] = blocks
    assert.ok(first)
    const car = await carOf([first.cid], blocks)
    const expected = blocks.map(({ cid, bytes }) => ({
      cid: cid.toString(),
      bytes,
    }))
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 5000 }), async (size) => {
        const { root, read, received } = await readAll(chunksOf(car, size))
        assert.equal(root?.toString(), first.cid.toString())
        assert.deepEqual(read, expected)
        assert.equal(received, car.length)
      }),
      { numRuns: 30, examples: [[1], [2], [40]] }
    )
  })

  it('is never read past where it was cut off', async () => {
    const block = await blockOf({ value: 'x' })
    const car = await carOf([block.cid], [block])
    const whole = car.length
    const afterHeader = whole - block.bytes.length - 37
    for (let length = 0; length < whole; length++) {
      if (length === afterHeader) continue
      await assert.rejects(
        readAll(chunksOf(car.subarray(0, length))),
        InvalidRepoError
      )
    }
  })

  it('may have no root, and nothing else that is odd', async () => {
    const block = await blockOf({ value: 'x' })
    const { root } = await readAll(chunksOf(await carOf([], [block])))
    assert.equal(root, undefined)
    const foreign = await blockOf(undefined, raw.code)
    const header = (value: unknown) => {
      const bytes = dagCBOR.encode(value)
      return Buffer.concat([Uint8Array.of(bytes.length), bytes])
    }
    for (const car of [
      await carOf([block.cid, block.cid], [block]),
      await carOf([block.cid], [foreign]),
      header({ version: 2, roots: [] }),
      header({ version: 1 }),
      header('CAR'),
      Uint8Array.of(2, 0xff, 0xff),
      Uint8Array.of(0),
      Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0xff, 0x0f),
    ]) {
      await assert.rejects(readAll(chunksOf(car)), InvalidRepoError)
    }
  })

  it('has blocks of a limited size', async () => {
    const block = await blockOf({ value: 'x'.repeat(MAX_REPO_BLOCK_SIZE) })
    await assert.rejects(
      readAll(chunksOf(await carOf([block.cid], [block]))),
      /at most/
    )
    const tiny = Buffer.concat([
      (await carOf([block.cid], [])).slice(),
      Uint8Array.of(3, 1, 2, 3),
    ])
    await assert.rejects(readAll(chunksOf(tiny)), InvalidRepoError)
  })

  it('lets go of its source when nobody reads on', async () => {
    let closed = false
    async function* source() {
      try {
        const block = await blockOf({ value: 'x' })
        yield* chunksOf(await carOf([block.cid], [block, block]))
        for (;;) yield new Uint8Array(1)
      } finally {
        closed = true
      }
    }
    const { blocks } = await readRepoCar(source())
    for await (const _block of blocks) break
    assert.equal(closed, true)
  })
})
