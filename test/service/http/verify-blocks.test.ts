import assert from 'node:assert/strict'
import * as dagCBOR from '@ipld/dag-cbor'
import { CAR } from '@ucanto/core'
import * as fc from 'fast-check'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { identity } from 'multiformats/hashes/identity'
import { sha256 } from 'multiformats/hashes/sha2'
import { verifyBlocks } from '../../../src/service/http/verify-blocks.ts'

describe('verifyBlocks', () => {
  const carOf = (...blocks: { cid: CID; bytes: Uint8Array }[]) =>
    CAR.encode({
      roots: [],
      blocks: new Map(blocks.map((block, i) => [`${i}`, block])) as never,
    })

  const blockOf = async (bytes: Uint8Array) => ({
    cid: CID.createV1(raw.code, await sha256.digest(bytes)),
    bytes,
  })

  it('takes true blocks', async () => {
    const bytes = new Uint8Array([1, 2, 3])
    await verifyBlocks(carOf())
    await verifyBlocks(
      carOf(await blockOf(bytes), {
        cid: CID.createV1(raw.code, identity.digest(bytes)),
        bytes,
      })
    )
  })

  it('refuses maps that would pass for something else', async () => {
    const bytes = dagCBOR.encode({
      issuer: { ['__proto__']: new Uint8Array() },
    })
    assert.ok(
      (dagCBOR.decode(bytes) as { issuer: unknown }).issuer instanceof
        Uint8Array,
      'that is why'
    )
    for (const cid of [
      (await blockOf(bytes)).cid,
      CID.createV1(dagCBOR.code, identity.digest(bytes)),
    ]) {
      await assert.rejects(verifyBlocks(carOf({ cid, bytes })), {
        name: 'InvalidBodyError',
        message: /__proto__/,
      })
    }
  })

  it('refuses a CAR of which any byte of a block is another', async () => {
    const blocks = await Promise.all(
      ['one', 'two'].map((text) => blockOf(new TextEncoder().encode(text)))
    )
    const car = carOf(...blocks)
    const header = carOf().length
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: header, max: car.length - 1 }),
        fc.integer({ min: 1, max: 255 }),
        async (index, mask) => {
          const changed = new Uint8Array(car)
          changed[index]! ^= mask
          const same = await verifyBlocks(changed).then(
            () => true,
            (error: Error) => {
              assert.equal(error.name, 'InvalidBodyError')
              return false
            }
          )
          if (!same) return
          // Another codec in a CID names another block with the same bytes.
          const { blocks: read } = CAR.decode(changed)
          for (const { cid, bytes } of read.values()) {
            const digest = await sha256.digest(bytes)
            assert.deepEqual(cid.multihash.bytes, digest.bytes)
          }
        }
      ),
      { numRuns: 500 }
    )
  })

  it('refuses whatever is no CAR', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => {
        await assert.rejects(verifyBlocks(bytes), { name: 'InvalidBodyError' })
      })
    )
  })
})
