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
  decodeAuthorization,
  decodeAuthorizations,
  decodeBackup,
  decodeBlockIndex,
  decodeBlockIndexSegment,
  decodeEvent,
  decodeJSONText,
  decodeMissingBlob,
  decodeState,
  encodeAccount,
  encodeAuthorization,
  encodeAuthorizations,
  encodeBackup,
  encodeBlockIndex,
  encodeBlockIndexSegment,
  encodeEvent,
  encodeJSONText,
  encodeMissingBlob,
  encodeState,
  isTombstone,
  readAccount,
  readAuthorization,
  readAuthorizations,
  readBackup,
  readBlockIndex,
  readEvent,
  readMissingBlob,
  readState,
  verifyBlock,
} from '../../src/space/index.ts'
import { MemoryBlocks, alice, blockOf, linkOf, phone } from './helpers.ts'

const link = await linkOf('a')
const other = await linkOf('b')
const raw = await linkOf('raw', 0x55)
const json = await linkOf('json', JSON_CODE)
const recipient =
  'age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p'
const shardDigest = Uint8Array.from([0x12, 0x20, ...Array<number>(32).fill(7)])

interface Kind {
  name: string
  /** A value with every field. */
  value: Record<string, unknown>
  encode: (value: never) => Promise<Block>
  decode: (block: Block) => unknown
  read?: (fetcher: MemoryBlocks, link: never) => Promise<unknown>
  /** Field or key → values that it must not have. */
  invalid: Record<string, unknown[]>
  optional?: string[]
  /** Whether the keys are data. */
  isMap?: boolean
  /** Whether encoding puts the value in order first. */
  sorts?: boolean
}

const notLinks = [null, 'text', 1, [], {}, raw, json, TOMBSTONE]
const notIntegers = [-1, 0.5, 2n ** 63n, '1', null, true]
const kinds: Kind[] = [
  {
    name: 'Event',
    value: { data: link, parents: [link] },
    encode: encodeEvent,
    decode: decodeEvent,
    read: readEvent,
    invalid: {
      data: notLinks,
      parents: [null, {}, link, [raw], [null], [link, link]],
    },
    sorts: true,
  },
  {
    name: 'State',
    value: { [alice]: link },
    encode: encodeState,
    decode: decodeState,
    read: readState,
    invalid: { [alice]: notLinks, 'did:plc': [link], 'at://did:plc:a': [link] },
    isMap: true,
  },
  {
    name: 'Account',
    value: {
      authorizations: link,
      backups: other,
      prunedBefore: '2025-03-12T15:13:59.958Z',
    },
    encode: encodeAccount,
    decode: decodeAccount,
    read: readAccount,
    invalid: {
      authorizations: notLinks,
      backups: notLinks,
      prunedBefore: [
        null,
        1741792439958,
        '',
        '2025-03-12',
        '2025-03-12T15:13:59Z',
        '2025-03-12T15:13:59.958',
        '2025-03-12T15:13:59.958+00:00',
        '2025-03-12T15:13:59.9580Z',
        '2025-02-30T15:13:59.958Z',
        '2025-03-12T24:00:00.000Z',
        '2025-13-12T15:13:59.958Z',
        '+002025-03-12T15:13:59.958Z',
        '2025-03-12t15:13:59.958z',
      ],
    },
    optional: ['prunedBefore'],
  },
  {
    name: 'Authorizations',
    value: { [phone]: link },
    encode: encodeAuthorizations,
    decode: decodeAuthorizations,
    read: readAuthorizations,
    invalid: {
      [phone]: notLinks,
      '': [link],
      'did:key:': [link],
      'did:Key:a': [link],
      'did:web:a%2': [link],
      'did:web:a b': [link],
      [`did:key:${'a'.repeat(2048)}`]: [link],
    },
    isMap: true,
  },
  {
    name: 'Authorization',
    value: { sealed: new Uint8Array(3), expiration: 1, seq: 0, recipient },
    encode: encodeAuthorization,
    decode: decodeAuthorization,
    read: readAuthorization,
    invalid: {
      sealed: [null, 'text', [1, 2], link],
      expiration: notIntegers,
      seq: notIntegers,
      recipient: [null, '', 'age1', recipient.toUpperCase(), `${recipient}a`],
    },
    optional: ['recipient'],
  },
  {
    name: 'Backup',
    value: {
      version: 1,
      account: alice,
      rev: '3lkb7k4x3hc2a',
      repo: link,
      blobs: other,
      missing: link,
      identity: { document: json, log: json },
      signature: 'current',
      parts: ['blobs'],
      index: link,
    },
    encode: encodeBackup,
    decode: decodeBackup,
    read: readBackup,
    invalid: {
      version: [0.5, '1', null],
      account: ['alice.test', null, 1],
      rev: ['', '3lkb7k4x3hc2', 'zlkb7k4x3hc2a', '3lkb7k4x3hc21', null],
      repo: notLinks,
      blobs: notLinks,
      missing: notLinks,
      identity: [
        null,
        link,
        [],
        {},
        { document: link },
        { document: json, log: null },
        { document: json, other: json },
      ],
      signature: ['future', null, true],
      parts: [null, 'blobs', {}, [1], ['likes'], Array(65).fill('blobs')],
      index: notLinks,
    },
    optional: ['missing'],
  },
  {
    name: 'MissingBlob',
    value: { reason: 'not-found', detail: 'Blob not found', tried: 1 },
    encode: encodeMissingBlob,
    decode: decodeMissingBlob,
    read: readMissingBlob,
    invalid: {
      reason: ['lost', null, 1],
      detail: [null, 1, 'x'.repeat(257)],
      tried: notIntegers,
    },
  },
  {
    name: 'BlockIndex',
    value: { version: 1, segments: [{ segment: link, count: 1 }] },
    encode: encodeBlockIndex,
    decode: decodeBlockIndex,
    read: readBlockIndex,
    invalid: {
      version: [null, '1'],
      segments: [
        null,
        {},
        [link],
        [{ segment: link }],
        [{ segment: raw, count: 1 }],
        [{ segment: link, count: -1 }],
      ],
    },
  },
  {
    name: 'BlockIndexSegment',
    value: {
      version: 1,
      shards: [{ digest: shardDigest, size: 10, location: 'https://a.test' }],
      slices: packed([{ digest: 1, shard: 0, offset: 2, length: 8 }]),
    },
    encode: encodeBlockIndexSegment,
    decode: decodeBlockIndexSegment,
    invalid: {
      version: [null, '1'],
      shards: [
        null,
        [],
        [{ digest: shardDigest }],
        [{ digest: shardDigest, size: 9 }],
        [{ digest: shardDigest.subarray(1), size: 10 }],
        [{ digest: shardDigest.with(0, 0x13), size: 10 }],
        [{ digest: shardDigest.with(1, 0x21), size: 10 }],
        [{ digest: shardDigest, size: 10, location: 'x'.repeat(2049) }],
        [
          { digest: shardDigest, size: 10 },
          { digest: shardDigest, size: 10 },
        ],
        [
          { digest: shardDigest, size: 10 },
          { digest: shardDigest.with(5, 9), size: 10 },
        ],
      ],
      slices: [
        null,
        new Uint8Array(),
        new Uint8Array(43),
        new Uint8Array(45),
        packed([{ digest: 1, shard: 1, offset: 0, length: 1 }]),
        packed([{ digest: 1, shard: 0, offset: 3, length: 8 }]),
        packed([
          { digest: 2, shard: 0, offset: 0, length: 1 },
          { digest: 1, shard: 0, offset: 0, length: 1 },
        ]),
        packed([
          { digest: 1, shard: 0, offset: 0, length: 1 },
          { digest: 1, shard: 0, offset: 1, length: 1 },
        ]),
      ],
    },
  },
]

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
        const block = await blockOf({ version: 2, other: 'things' })
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

function packed(
  slices: { digest: number; shard: number; offset: number; length: number }[]
): Uint8Array {
  return Buffer.concat(
    slices.map(({ digest, shard, offset, length }) => {
      const bytes = Buffer.alloc(44, digest)
      bytes.writeUIntBE(shard, 32, 2)
      bytes.writeUIntBE(offset, 34, 6)
      bytes.writeUIntBE(length, 40, 4)
      return bytes
    })
  )
}
