import assert from 'node:assert/strict'
import * as dagCBOR from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { InvalidRepoError } from '../../src/backup/index.ts'
import { decodeMstNode } from '../../src/backup/mst.ts'
import { collectBlobs, type ReferredBlobs } from '../../src/backup/repo.ts'
import { decodeCommit, verifyCommit } from '../../src/backup/commit.ts'

const DID = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'

/** What decodes to something that passes for bytes. */
const seemingBytes = { ['__proto__']: new Uint8Array() }

describe('blocks of a repository', () => {
  let link: CID
  let foreign: CID

  before(async () => {
    const bytes = dagCBOR.encode({})
    link = CID.createV1(dagCBOR.code, await sha256.digest(bytes))
    foreign = CID.createV1(raw.code, await sha256.digest(bytes))
  })

  const key = (text: string) => new TextEncoder().encode(text)

  describe('node of the tree', () => {
    it('has keys that share their beginnings', () => {
      const node = decodeMstNode(
        dagCBOR.encode({
          l: link,
          e: [
            { p: 0, k: key('app.bsky.feed.post/3a'), v: link, t: null },
            { p: 20, k: key('b'), v: link, t: link },
          ],
        })
      )
      assert.equal(node.left?.toString(), link.toString())
      assert.deepEqual(
        node.entries.map(({ key }) => key),
        ['app.bsky.feed.post/3a', 'app.bsky.feed.post/3b']
      )
      assert.equal(node.entries[0]?.right, null)
      assert.ok(node.entries[1]?.right)
    })

    const entry = () => ({ p: 0, k: key('a/1'), v: link, t: null })
    const bad: [string, () => unknown][] = [
      ['no map', () => 'node'],
      ['no entries', () => ({ l: null })],
      ['an entry that is none', () => ({ l: null, e: [null] })],
      ['no key', () => ({ l: null, e: [{ ...entry(), k: 'text' }] })],
      [
        'a key that passes for bytes',
        () => ({ l: null, e: [{ ...entry(), k: seemingBytes }] }),
      ],
      [
        'a shared part that is longer than the key before',
        () => ({ l: null, e: [{ ...entry(), p: 1 }] }),
      ],
      [
        'a negative shared part',
        () => ({ l: null, e: [{ ...entry(), p: -1 }] }),
      ],
      ['the same key twice', () => ({ l: null, e: [entry(), entry()] })],
      [
        'keys out of order',
        () => ({ l: null, e: [entry(), { ...entry(), k: key('a/0') }] }),
      ],
      [
        'a key that is not ASCII',
        () => ({ l: null, e: [{ ...entry(), k: key('ä') }] }),
      ],
      [
        'a key without an end',
        () => ({
          l: null,
          e: [{ ...entry(), k: new Uint8Array(2000).fill(65) }],
        }),
      ],
      ['no record', () => ({ l: null, e: [{ ...entry(), v: null }] })],
      [
        'a record of another codec',
        () => ({ l: null, e: [{ ...entry(), v: foreign }] }),
      ],
      ['a subtree of another codec', () => ({ l: foreign, e: [] })],
      ['a subtree that is no link', () => ({ l: 'left', e: [] })],
    ]
    for (const [what, value] of bad) {
      it(`is refused with ${what}`, () => {
        assert.throws(
          () => decodeMstNode(dagCBOR.encode(value())),
          InvalidRepoError
        )
      })
    }

    it('is refused when it is not DAG-CBOR', () => {
      assert.throws(() => decodeMstNode(Uint8Array.of(0xff)), InvalidRepoError)
    })
  })

  describe('commit', () => {
    const commit = () => ({
      did: DID,
      version: 3,
      data: link,
      rev: '3lkb7k4x3hc2a',
      prev: null,
      sig: new Uint8Array(64),
    })

    it('is read', () => {
      const decoded = decodeCommit(dagCBOR.encode(commit()), DID)
      assert.equal(decoded.rev, '3lkb7k4x3hc2a')
      assert.equal(decoded.prev, null)
      const { prev: _prev, ...older } = { ...commit(), version: 2 }
      assert.equal(decodeCommit(dagCBOR.encode(older), DID).version, 2)
    })

    const bad: [string, unknown][] = [
      ['did', 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'],
      ['version', 4],
      ['data', 'tree'],
      ['rev', 'yesterday'],
      ['sig', 'signed'],
      ['sig', seemingBytes],
    ]
    for (const [field, value] of bad) {
      it(`is refused with a ${field} that is none: ${typeof value}`, () => {
        assert.throws(
          () =>
            decodeCommit(dagCBOR.encode({ ...commit(), [field]: value }), DID),
          InvalidRepoError
        )
        const { [field]: _left, ...without } = commit() as Record<
          string,
          unknown
        >
        assert.throws(
          () => decodeCommit(dagCBOR.encode(without), DID),
          InvalidRepoError
        )
      })
    }

    it('is refused when it is not DAG-CBOR', () => {
      assert.throws(
        () => decodeCommit(Uint8Array.of(0xff), DID),
        InvalidRepoError
      )
    })

    it('is refused with a field of any name that cannot be signed', async () => {
      await assert.rejects(
        verifyCommit(dagCBOR.encode({ ...commit(), other: seemingBytes }), {
          signingKey: 'did:key:z6MkkKKKKK',
          previousSigningKeys: [],
        }),
        { name: 'InvalidRepoError', message: /cannot be signed/ }
      )
    })

    it('is signed by none of keys that cannot sign', async () => {
      await assert.rejects(
        verifyCommit(dagCBOR.encode(commit()), {
          signingKey: 'did:key:z6MkkKKKKK',
          previousSigningKeys: ['did:web:example.com'],
        }),
        InvalidRepoError
      )
    })
  })

  describe('blobs in a record', () => {
    function blobsIn(record: unknown): string[] {
      const blobs: ReferredBlobs = new Map()
      collectBlobs(dagCBOR.encode(record), blobs)
      return [...blobs.keys()]
    }

    it('are found wherever they are', () => {
      const blob = {
        $type: 'blob',
        ref: foreign,
        mimeType: 'image/png',
        size: 1,
      }
      assert.deepEqual(blobsIn({ a: [{ b: [blob] }], c: blob }), [
        foreign.toString(),
      ])
    })

    it('are found in their old form', () => {
      assert.deepEqual(
        blobsIn({ avatar: { cid: foreign.toString(), mimeType: 'image/png' } }),
        [foreign.toString()]
      )
    })

    it('are not what only looks like one', () => {
      assert.deepEqual(
        blobsIn({
          mimeType: 'text/plain',
          bytes: new Uint8Array(3),
          link,
          none: null,
          blob: { $type: 'blob', ref: 'text', mimeType: 'image/png' },
        }),
        []
      )
    })

    it('are none in what cannot be read', () => {
      const blobs: ReferredBlobs = new Map()
      collectBlobs(new TextEncoder().encode('mimeType'), blobs)
      collectBlobs(new TextEncoder().encode('mime'), blobs)
      assert.equal(blobs.size, 0)
    })
  })
})
