import assert from 'node:assert/strict'
import fc from 'fast-check'
import { DigestTable } from '../../src/space/index.ts'
import { digestOf } from './helpers.ts'

describe('DigestTable', () => {
  it('does what a Map does', () =>
    fc.assert(
      fc.property(
        fc.array(
          fc.tuple(
            fc.nat({ max: 50 }),
            fc.nat({ max: 2 ** 48 - 1 }),
            fc.nat({ max: 2 ** 32 - 1 })
          ),
          { maxLength: 100 }
        ),
        (entries) => {
          const table = new DigestTable()
          const model = new Map<number, [number, number]>()
          for (const [key, first, second] of entries) {
            table.set(similar(key), first, second)
            model.set(key, [first, second])
          }
          assert.equal(table.size, model.size)
          for (let key = 0; key <= 51; key++) {
            assert.deepEqual(table.get(similar(key)), model.get(key))
            assert.equal(table.has(similar(key)), model.has(key))
          }
        }
      )
    ))

  it('grows', async () => {
    const table = new DigestTable()
    const digests = await Promise.all(
      Array.from({ length: 40_000 }, (_, i) => digestOf(i))
    )
    for (const [i, digest] of digests.entries()) {
      assert.equal(table.get(digest), undefined)
      table.set(digest, i * 2 ** 30, i)
    }
    assert.equal(table.size, digests.length)
    for (const [i, digest] of digests.entries()) {
      assert.deepEqual(table.get(digest), [i * 2 ** 30, i])
    }
    assert.ok(!table.has(await digestOf('other')))
  })

  it('copies the digests', async () => {
    const table = new DigestTable()
    const digest = await digestOf(1)
    table.set(digest, 1, 1)
    digest.fill(0)
    assert.ok(table.has(await digestOf(1)))
    assert.ok(!table.has(digest))
  })

  it('refuses what it cannot hold', async () => {
    const table = new DigestTable()
    const digest = await digestOf(1)
    for (const [first, second] of [
      [2 ** 48, 0],
      [0, 2 ** 32],
      [-1, 0],
      [0, -1],
      [0.5, 0],
      [0, NaN],
    ] as const) {
      assert.throws(() => table.set(digest, first, second), RangeError)
    }
    const short = digest.subarray(1)
    assert.throws(() => table.set(short, 0, 0), RangeError)
    assert.throws(() => table.get(short), RangeError)
    assert.throws(() => table.has(new Uint8Array(33)), RangeError)
    assert.equal(table.size, 0)
  })
})

/** Digests that differ in their last byte only. */
function similar(key: number): Uint8Array {
  const digest = new Uint8Array(32)
  digest[31] = key
  return digest
}
