import assert from 'node:assert/strict'
import { Secp256k1Keypair } from '@atproto/crypto'
import * as dagCBOR from '@ipld/dag-cbor'
import fc from 'fast-check'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import { encodeCarHeader, encodeCarSection } from '../../src/backup/car.ts'
import {
  createMemorySpool,
  IncompleteRepoError,
  InvalidRepoError,
  type DID,
} from '../../src/backup/index.ts'
import { verifyRepo } from '../../src/backup/repo.ts'
import { createNativeSha256 } from '../../src/node/index.ts'
import {
  change,
  changed,
  damage,
  damaged,
  FUZZ_CASES,
  fuzz,
  tryEncode,
} from '../fuzz.ts'
import { chunksOf } from './harness.ts'

const account: DID = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const CASES = Math.ceil(FUZZ_CASES * 0.01)

type Value = Record<string, unknown>

describe('fuzzed repositories', () => {
  let keypair: Secp256k1Keypair
  let blob: CID

  before(async () => {
    keypair = await Secp256k1Keypair.create()
    blob = CID.createV1(0x55, await sha256.digest(Uint8Array.of(1)))
  })

  /**
   * A repository as its host sends it.
   *
   * @param mutate - makes another value of one that is in a block; blocks
   *   above link to what comes of it, and the commit is signed again
   */
  const carOf = async (
    mutate: (what: string, value: Value) => unknown = (_what, value) => value
  ): Promise<Uint8Array> => {
    const sections: Uint8Array[] = []
    const put = async (what: string, value: Value): Promise<CID> => {
      const bytes = tryEncode(mutate(what, value)) ?? dagCBOR.encode(value)
      const digest = await sha256.digest(bytes)
      const cid = CID.createV1(dagCBOR.code, digest)
      sections.push(
        Buffer.concat([encodeCarSection(cid.bytes, bytes.length), bytes])
      )
      return cid
    }
    const key = (text: string) => new TextEncoder().encode(text)
    const post = await put('record', {
      $type: 'app.bsky.feed.post',
      text: 'hello',
      embed: {
        images: [
          {
            image: { $type: 'blob', ref: blob, mimeType: 'image/png', size: 1 },
          },
        ],
      },
    })
    const leaf = await put('leaf', {
      l: null,
      e: [{ p: 0, k: key('app.bsky.feed.post/3b'), v: post, t: null }],
    })
    const root = await put('tree', {
      l: leaf,
      e: [
        { p: 0, k: key('app.bsky.feed.post/3c'), v: post, t: null },
        { p: 20, k: key('d'), v: post, t: null },
      ],
    })
    const unsigned = mutate('unsigned', {
      did: account,
      version: 3,
      data: root,
      rev: '3lkb7k4x3hc2a',
      prev: null,
    })
    const sig = await keypair.sign(tryEncode(unsigned) ?? new Uint8Array())
    const commit = await put('commit', { ...(unsigned as object), sig })
    return new Uint8Array(
      Buffer.concat([encodeCarHeader([commit]), ...sections.toReversed()])
    )
  }

  /** @returns how many blocks came out, or the name of what was wrong */
  const verify = async (car: Uint8Array): Promise<number | string> => {
    const spool = createMemorySpool()
    try {
      const repo = await verifyRepo(chunksOf(car), {
        identity: {
          did: account,
          signingKey: keypair.did() as DID,
          previousSigningKeys: [],
        } as never,
        known: { has: () => false },
        spool,
        createSha256: createNativeSha256,
      })
      let count = 0
      for await (const { digest, bytes } of repo.blocks()) {
        assert.deepEqual((await sha256.digest(bytes)).digest, digest)
        count++
      }
      return count
    } catch (error) {
      assert.ok(
        error instanceof InvalidRepoError ||
          error instanceof IncompleteRepoError,
        error instanceof Error ? error.stack : String(error)
      )
      return error.name
    } finally {
      await spool.close()
    }
  }

  it('that are not, are verified', async () => {
    assert.equal(await verify(await carOf()), 4)
  })

  it('whose bytes are damaged are refused by name', async () => {
    const car = await carOf()
    const seen = new Set<number | string>()
    await fuzz(
      fc.array(damage, { minLength: 1, maxLength: 3 }),
      CASES,
      async (harms) => {
        const outcome = await verify(
          harms.reduce((bytes, harm) => damaged(bytes, car, harm), car)
        )
        seen.add(outcome)
      }
    )
    assert.ok(seen.has('InvalidRepoError'), [...seen].join())
  })

  for (const victim of ['record', 'leaf', 'tree', 'unsigned', 'commit']) {
    it(`with another ${victim} are refused by name, or verified`, async () => {
      const seen = new Set<number | string>()
      await fuzz(
        fc.array(change, { minLength: 1, maxLength: 2 }),
        CASES,
        async (changes) => {
          const car = await carOf((what, value) =>
            what === victim ? changes.reduce(changed, value) : value
          )
          seen.add(await verify(car))
        }
      )
      // What a record says is its author's business: it is kept as it is.
      if (victim === 'record') assert.deepEqual([...seen], [4])
      else assert.ok(seen.has('InvalidRepoError'), [...seen].join())
      // A change that changes nothing leaves the signature valid.
      if (victim === 'commit') {
        for (const outcome of seen) {
          assert.ok(outcome === 4 || outcome === 'InvalidRepoError')
        }
      }
    })
  }
})
