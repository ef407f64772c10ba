import assert from 'node:assert/strict'
import { P256Keypair, Secp256k1Keypair } from '@atproto/crypto'
import * as plc from '@did-plc/lib'
import fc from 'fast-check'
import {
  claimedHandleOf,
  parseDidDocument,
  pdsOf,
  signingKeyOf,
} from '../../src/atproto/did-document.ts'
import { InvalidPlcLogError, verifyPlcLog } from '../../src/atproto/plc-log.ts'
import {
  DidNotFoundError,
  NoPdsError,
  type DID,
} from '../../src/backup/index.ts'
import { change, changed, damage, damaged, FUZZ_CASES, fuzz } from '../fuzz.ts'

describe('fuzzed identities', () => {
  let did: DID
  let keys: string[]
  let document: unknown
  let log: unknown

  before(async () => {
    const alice = await Secp256k1Keypair.create()
    const recovery = await P256Keypair.create()
    keys = await Promise.all(
      [0, 1].map(async () => (await Secp256k1Keypair.create()).did())
    )
    const { did: created, op } = await plc.createOp({
      signingKey: keys[0]!,
      handle: 'alice.test',
      pds: 'https://pds.test',
      rotationKeys: [recovery.did(), alice.did()],
      signer: alice,
    })
    did = created as DID
    const second = await plc.updateAtprotoKeyOp(op, alice, keys[1]!)
    log = [op, second].map((operation) => ({ operation, nullified: false }))
    document = {
      id: did,
      alsoKnownAs: ['at://alice.test'],
      verificationMethod: [
        {
          id: `${did}#atproto`,
          type: 'Multikey',
          controller: did,
          publicKeyMultibase: keys[1]!.replace(/^did:key:/, ''),
        },
      ],
      service: [
        {
          id: '#atproto_pds',
          type: 'AtprotoPersonalDataServer',
          serviceEndpoint: 'https://pds.test',
        },
      ],
    }
  })

  it('lead to what they say, or are refused by name', async () => {
    const seen = new Set<string>()
    await fuzzJSON(
      () => document,
      (text) => {
        try {
          const parsed = parseDidDocument(did, text)
          const handle = claimedHandleOf(parsed)
          assert.ok(handle === undefined || /^[a-z0-9.-]+$/.test(handle))
          assert.equal(pdsOf(parsed, { allowHttp: false }).protocol, 'https:')
          assert.match(signingKeyOf(parsed), /^did:key:z/)
          seen.add('ok')
        } catch (error) {
          assert.ok(
            error instanceof DidNotFoundError || error instanceof NoPdsError,
            error instanceof Error ? error.stack : String(error)
          )
          seen.add(error.name)
        }
      }
    )
    assert.deepEqual([...seen].sort(), ['DidNotFoundError', 'NoPdsError', 'ok'])
  })

  it('have logs that name the keys that were signed, or none', async () => {
    const seen = new Set<string>()
    await fuzzJSON(
      () => log,
      async (text) => {
        try {
          const found = await verifyPlcLog(did, text)
          // Who left out or nullified the end of it could do no more.
          assert.deepEqual(found, keys.slice(0, found.length))
          seen.add('ok')
        } catch (error) {
          assert.ok(
            error instanceof InvalidPlcLogError,
            error instanceof Error ? error.stack : String(error)
          )
          seen.add(error.name)
        }
      }
    )
    assert.deepEqual([...seen].sort(), ['InvalidPlcLogError', 'ok'])
  })
})

/** Changes what is said as JSON, or damages the text of it. */
function fuzzJSON(
  original: () => unknown,
  check: (text: string) => Promise<void> | void
): Promise<void> {
  const decoder = new TextDecoder()
  return fuzz(
    fc.tuple(
      fc.array(change, { maxLength: 2 }),
      fc.option(damage, { freq: 3 })
    ),
    FUZZ_CASES * 0.02,
    async ([changes, harm]) => {
      const text = JSON.stringify(
        changes.reduce(changed, original()),
        (_key, value: unknown) =>
          typeof value === 'bigint' ? Number(value) : value
      )
      const bytes = new TextEncoder().encode(text)
      await check(decoder.decode(harm ? damaged(bytes, bytes, harm) : bytes))
    }
  )
}
