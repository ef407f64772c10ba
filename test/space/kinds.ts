import type { Block } from '../../src/space/index.ts'
import {
  JSON_CODE,
  TOMBSTONE,
  decodeAccount,
  decodeAuthorization,
  decodeAuthorizations,
  decodeBackup,
  decodeBlockIndex,
  decodeBlockIndexSegment,
  decodeEvent,
  decodeMissingBlob,
  decodeShare,
  decodeState,
  encodeAccount,
  encodeAuthorization,
  encodeAuthorizations,
  encodeBackup,
  encodeBlockIndex,
  encodeBlockIndexSegment,
  encodeEvent,
  encodeMissingBlob,
  encodeShare,
  encodeState,
  readAccount,
  readAuthorization,
  readAuthorizations,
  readBackup,
  readBlockIndex,
  readEvent,
  readMissingBlob,
  readShare,
  readState,
} from '../../src/space/index.ts'
import { alice, linkOf, phone, type MemoryBlocks } from './helpers.ts'

export const link = await linkOf('a')
export const other = await linkOf('b')
const raw = await linkOf('raw', 0x55)
export const json = await linkOf('json', JSON_CODE)
const recipient =
  'age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p'
const otherRecipient =
  'age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg'
const sealed = { outcome: 'ok', sealed: raw, size: 1, recipients: [recipient] }
export const shardDigest = Uint8Array.from([
  0x12,
  0x20,
  ...Array<number>(32).fill(7),
])

/** A kind of block in the Space, and what it is not. */
export interface Kind {
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
/** What decodes to something that passes for bytes. */
const seemingBytes = { ['__proto__']: new Uint8Array() }
const notVersions = [0.5, '1', [1], null, { toString: null, valueOf: null }]

export const kinds: Kind[] = [
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
      recovery: { recipient, seq: 1 },
      shares: link,
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
      recovery: [
        null,
        recipient,
        {},
        { recipient },
        { recipient: null, seq: 1 },
        { recipient: 'age1', seq: 1 },
        { recipient, seq: -1 },
        { recipient, seq: 1, more: 1 },
      ],
      shares: notLinks,
    },
    optional: ['prunedBefore', 'recovery', 'shares'],
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
      sealed: [null, 'text', [1, 2], link, seemingBytes],
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
      version: notVersions,
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
    name: 'Backup with private parts',
    value: {
      version: 2,
      account: alice,
      rev: '3lkb7k4x3hc2a',
      repo: link,
      blobs: other,
      identity: { document: json },
      signature: 'current',
      parts: ['blobs'],
      private: {
        preferences: { outcome: 'ok', plain: json, size: 10, detail: 'all' },
        mutes: { outcome: 'ok', plain: raw, size: 0 },
        bookmarks: {
          outcome: 'ok',
          sealed: raw,
          size: 200,
          recipients: [otherRecipient, recipient],
        },
        drafts: { outcome: 'failed', detail: 'it was late' },
        conversations: { outcome: 'not-granted' },
      },
      preferences: json,
      index: link,
    },
    encode: encodeBackup,
    decode: decodeBackup,
    read: readBackup,
    invalid: {
      version: [...notVersions, 1],
      private: [
        null,
        [],
        { likes: { outcome: 'failed' } },
        { mutes: 'ok' },
        { mutes: {} },
        { mutes: { outcome: 'ok' } },
        { mutes: { outcome: 'maybe' } },
        { mutes: { outcome: 'failed', detail: 'x'.repeat(257) } },
        { mutes: { outcome: 'failed', sealed: raw } },
        { mutes: { outcome: 'ok', sealed: raw, size: 1 } },
        { mutes: { outcome: 'ok', sealed: raw, size: 1, recipients: [] } },
        { mutes: { ...sealed, sealed: json } },
        { mutes: { ...sealed, sealed: link } },
        { mutes: { ...sealed, size: -1 } },
        { mutes: { ...sealed, plain: raw } },
        { mutes: { ...sealed, recipients: ['age1'] } },
        { mutes: { ...sealed, recipients: [recipient, otherRecipient] } },
        { mutes: { ...sealed, recipients: [recipient, recipient] } },
        { mutes: { ...sealed, recipients: Array(1003).fill(recipient) } },
        { mutes: { outcome: 'ok', plain: link, size: 1 } },
      ],
      preferences: [null, 1, 'text', [], {}, raw, link, TOMBSTONE],
    },
    optional: ['preferences'],
  },
  {
    name: 'Share',
    value: { version: 1, keys: { mutes: new Uint8Array(3) } },
    encode: encodeShare,
    decode: decodeShare,
    read: readShare,
    invalid: {
      version: notVersions,
      keys: [
        null,
        [],
        { likes: new Uint8Array(1) },
        { mutes: 'text' },
        { mutes: seemingBytes },
      ],
    },
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
      version: notVersions,
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
      version: notVersions,
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
        seemingBytes,
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

/** Slices as segments have them. */
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
