import assert from 'node:assert/strict'
import * as dagCbor from '@ipld/dag-cbor'
import fc from 'fast-check'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { sha512 } from 'multiformats/hashes/sha2'
import type { Block, Link } from '../../src/space/index.ts'
import {
  DecodeError,
  JSON_CODE,
  MAX_BLOCK_SIZE,
  MAX_EVENT_SIZE,
  MissingBlockError,
  TOMBSTONE,
  TooLargeError,
  UnknownVersionError,
  decodeAccount,
  decodeEvent,
  decodeJSONText,
  decodeState,
  encodeAuthorization,
  encodeAuthorizations,
  encodeBlockIndexSegment,
  encodeEvent,
  encodeJSONText,
  encodeState,
  isTombstone,
  verifyBlock,
} from '../../src/space/index.ts'
import { json, kinds, link, other, shardDigest, type Kind } from './kinds.ts'
import { MemoryBlocks, blockOf, linkOf } from './helpers.ts'

for (const kind of kinds) {
  const encode = kind.encode as (value: unknown) => Promise<Block>

  describe(kind.name, () => {
    it('decodes to what was encoded', async () => {
      const block = await encode(kind.value)
      assert.deepEqual(plain(kind.decode(block)), plain(kind.value))
      await verifyBlock(block)
    })

    for (const field of kind.optional ?? []) {
      it(`may lack ${field}`, async () => {
        const { [field]: _, ...rest } = kind.value
        const block = await encode(rest)
        assert.deepEqual(plain(kind.decode(block)), plain(rest))
        const same = await encode({ ...rest, [field]: undefined })
        assert.deepEqual(same, block)
      })
    }

    for (const [field, values] of Object.entries(kind.invalid)) {
      it(`refuses a wrong ${field.slice(0, 40) || 'empty key'}`, async () => {
        for (const value of values) {
          await assertRefused(kind, { ...kind.value, [field]: value })
        }
      })
    }

    if (!kind.isMap) {
      it('refuses missing and unknown fields', async () => {
        for (const field of Object.keys(kind.value)) {
          if (kind.optional?.includes(field)) continue
          const { [field]: _, ...rest } = kind.value
          await assertRefused(kind, rest)
        }
        await assertRefused(kind, { ...kind.value, extra: link })
        await assertRefused(kind, { ...kind.value, ['__proto__']: link })
      })
    }

    it('refuses other kinds of values', async () => {
      for (const value of [
        null,
        1,
        'text',
        true,
        [],
        new Uint8Array(1),
        link,
      ]) {
        await assertRefused(kind, value)
      }
    })

    it('refuses bytes that are not DAG-CBOR or not canonical', async () => {
      const { bytes } = await encode(kind.value)
      const entries = bytes[0]! & 0x1f
      for (const changed of [
        new Uint8Array(),
        bytes.subarray(0, -1),
        Uint8Array.from([...bytes, 0]),
        // The same map with its length in a byte of its own.
        Uint8Array.from([0xb8, entries, ...bytes.subarray(1)]),
        // Nested more deeply than any stack.
        new Uint8Array(500_000).fill(0x81),
      ]) {
        assertDecodeError(
          () => kind.decode({ cid: link, bytes: changed }),
          link
        )
      }
    })

    it('refuses too many bytes by name', async () => {
      const bytes = new Uint8Array(MAX_BLOCK_SIZE + 1)
      assert.throws(() => kind.decode({ cid: link, bytes }), TooLargeError)
    })

    it('refuses CIDs of another codec, hash or version', async () => {
      const { cid, bytes } = await encode(kind.value)
      for (const wrong of [
        CID.createV1(0x55, cid.multihash),
        CID.createV1(JSON_CODE, cid.multihash),
        CID.createV1(dagCbor.code, await sha512.digest(bytes)),
        CID.createV1(dagCbor.code, Digest.create(0x12, new Uint8Array(20))),
        CID.createV0(cid.multihash as never),
      ]) {
        assertDecodeError(
          () => kind.decode({ cid: wrong as Link, bytes }),
          wrong
        )
      }
    })

    it('never decodes changed bytes to a value that encodes otherwise', async () => {
      const block = await encode(kind.value)
      await fc.assert(
        fc.asyncProperty(
          fc.nat({ max: block.bytes.length - 1 }),
          fc.integer({ min: 1, max: 255 }),
          async (position, flip) => {
            const bytes = block.bytes.slice()
            bytes[position]! ^= flip
            let value
            try {
              value = kind.decode({ cid: block.cid, bytes })
            } catch (error) {
              assert.ok(error instanceof DecodeError, String(error))
              return
            }
            assert.deepEqual((await encode(value)).bytes, bytes)
          }
        ),
        { numRuns: 200 }
      )
    })

    if (kind.read) {
      const read = kind.read
      it('is read through a fetcher', async () => {
        const blocks = new MemoryBlocks()
        const block = await encode(kind.value)
        await assert.rejects(read(blocks, block.cid as never), (error) => {
          assert.ok(error instanceof MissingBlockError)
          assert.equal(error.name, 'MissingBlockError')
          assert.match(error.message, new RegExp(block.cid.toString()))
          return true
        })
        blocks.put(block)
        const value = await read(blocks, block.cid as never)
        assert.deepEqual(plain(value), plain(kind.value))
      })
    }

    if ('version' in kind.value) {
      it('refuses unknown versions by name, whatever else they have', async () => {
        const block = await blockOf({ version: 3, other: 'things' })
        assert.throws(
          () => kind.decode(block),
          (error) => {
            assert.ok(error instanceof UnknownVersionError)
            assert.equal(error.name, 'UnknownVersionError')
            assert.match(error.message, new RegExp(block.cid.toString()))
            return true
          }
        )
      })
    }
  })
}

describe('limits', () => {
  it('an event has 32 parents at most, and 4 KiB', async () => {
    const parents = await Promise.all(
      Array.from({ length: 33 }, (_, i) => linkOf(i))
    )
    const block = await encodeEvent({ data: link, parents: parents.slice(1) })
    assert.ok(block.bytes.length < MAX_EVENT_SIZE)
    assert.equal(decodeEvent(block).parents.length, 32)
    await assert.rejects(encodeEvent({ data: link, parents }), TooLargeError)
    const bytes = new Uint8Array(MAX_EVENT_SIZE + 1)
    assert.throws(() => decodeEvent({ cid: link, bytes }), TooLargeError)
  })

  it('an event names its parents in order and once', async () => {
    const parents = [link, other, link]
    const block = await encodeEvent({ data: link, parents })
    const same = await encodeEvent({ data: link, parents: [other, link] })
    assert.deepEqual(block, same)
    const sorted = decodeEvent(block).parents
    assert.equal(sorted.length, 2)
    await assertRefused(kinds[0]!, { data: link, parents: sorted.toReversed() })
  })

  it('a state has 1,000 accounts at most, an account 1,000 agents', async () => {
    const map = (n: number) =>
      Object.fromEntries(
        Array.from({ length: n }, (_, i) => [`did:web:n${i}`, link])
      )
    for (const encode of [encodeState, encodeAuthorizations]) {
      assert.ok((await encode(map(1000))).bytes.length < MAX_BLOCK_SIZE)
      await assert.rejects(encode(map(1001)), TooLargeError)
    }
  })

  it('a segment has 16,000 slices at most', async () => {
    const slices = new Uint8Array(16_001 * 44)
    const view = new DataView(slices.buffer)
    for (let i = 0; i <= 16_000; i++) view.setUint32(i * 44, i)
    const shards = [{ digest: shardDigest, size: 0 }]
    const segment = (count: number) => ({
      version: 1 as const,
      shards,
      slices: slices.subarray(0, count * 44),
    })
    const block = await encodeBlockIndexSegment(segment(16_000))
    assert.ok(block.bytes.length < MAX_BLOCK_SIZE)
    await assert.rejects(
      encodeBlockIndexSegment(segment(16_001)),
      TooLargeError
    )
  })

  it('a sealed authorization fits in a block', async () => {
    const sealed = new Uint8Array(MAX_BLOCK_SIZE)
    await assert.rejects(
      encodeAuthorization({ sealed, expiration: 1, seq: 1 }),
      TooLargeError
    )
  })

  it('messages show a part of a hostile key', async () => {
    const block = await blockOf({ ['x'.repeat(10_000)]: link })
    for (const decode of [decodeState, decodeAccount]) {
      assert.throws(
        () => decode(block),
        (error: Error) => error.message.length < 300
      )
    }
  })
})

describe('JSON text', () => {
  it('is kept byte for byte', async () => {
    const text = '{ "b": 1,\n"a": "ä😀" }'
    const block = await encodeJSONText(text)
    assert.equal(block.cid.code, JSON_CODE)
    await verifyBlock(block)
    assert.equal(decodeJSONText(block), text)
  })

  it('must be JSON, and is not quoted when it is not', async () => {
    const lone = `"${String.fromCharCode(0xd800)}"`
    for (const text of ['', '{', 'secret', '\ufeff{}', lone]) {
      await assert.rejects(encodeJSONText(text), (error) => {
        assert.ok(error instanceof DecodeError)
        assert.doesNotMatch(error.message, /secret/)
        assert.equal(error.cause, undefined)
        return true
      })
    }
    const encoder = new TextEncoder()
    for (const bytes of [
      encoder.encode('secret'),
      encoder.encode('\ufeff{}'),
      Uint8Array.from([0x22, 0xff, 0x22]),
      new Uint8Array(500_000).fill(0x5b),
    ]) {
      assertDecodeError(() => decodeJSONText({ cid: json, bytes }), json)
    }
  })

  it('has the size that the reader allows', async () => {
    const block = await encodeJSONText('[1]')
    assert.equal(decodeJSONText(block, { maxSize: 3 }), '[1]')
    assert.throws(() => decodeJSONText(block, { maxSize: 2 }), TooLargeError)
    const large = await encodeJSONText(`[${'1,'.repeat(MAX_BLOCK_SIZE / 2)}1]`)
    assert.throws(() => decodeJSONText(large), TooLargeError)
  })

  it('has its own codec', async () => {
    const bytes = new TextEncoder().encode('1')
    assertDecodeError(() => decodeJSONText({ cid: link, bytes }), link)
  })
})

describe('verifyBlock', () => {
  it('accepts true blocks, inline ones too', async () => {
    await verifyBlock(await blockOf('anything'))
    await verifyBlock({ cid: TOMBSTONE, bytes: new Uint8Array() })
  })

  it('refuses other bytes and other hash functions', async () => {
    const bytes = new Uint8Array(3)
    const hash = await sha512.digest(bytes)
    for (const cid of [link, TOMBSTONE, CID.createV1(0x55, hash) as Link]) {
      await assert.rejects(verifyBlock({ cid, bytes }), DecodeError)
    }
  })
})

describe('the tombstone', () => {
  it('is the identity CID of nothing', () => {
    assert.equal(TOMBSTONE.toString(), 'bafkqaaa')
    assert.ok(isTombstone(CID.parse('bafkqaaa')))
    assert.ok(!isTombstone(link))
  })
})

async function assertRefused(kind: Kind, value: unknown): Promise<void> {
  if (!kind.sorts) {
    await assert.rejects(
      kind.encode(value as never),
      DecodeError,
      `encoded ${String(JSON.stringify(plain(value)))}`
    )
  }
  const block = await blockOf(value)
  assertDecodeError(() => kind.decode(block), block.cid)
}

function assertDecodeError(decode: () => unknown, cid: CID | Link): void {
  assert.throws(decode, (error) => {
    assert.ok(error instanceof DecodeError, String(error))
    assert.match(error.name, /^(Decode|TooLarge|UnknownVersion)Error$/)
    assert.ok(error.message.includes(cid.toString()), error.message)
    return true
  })
}

/** Links as text, for comparing. */
function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex')
  if (typeof value === 'bigint') return value.toString()
  if (typeof value !== 'object' || value === null) return value
  const cid = CID.asCID(value)
  if (cid) return cid.toString()
  if (Array.isArray(value)) return value.map(plain)
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => [key, plain(item)])
  )
}
