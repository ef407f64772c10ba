import assert from 'node:assert/strict'
import { ed25519, RSA, Verifier } from '@ucanto/principal'
import { parseVerifier, withNativeSigning } from '../../src/node/index.ts'

const payload = new TextEncoder().encode('a delegation')

describe('Ed25519 of the platform', () => {
  it('signs as the library does', async () => {
    const alice = await ed25519.generate()
    const native = withNativeSigning(ed25519.decode(alice.encode().slice()))
    assert.deepEqual(await native.sign(payload), await alice.sign(payload))
  })

  it('signs in the name of a did:web', async () => {
    const alice = withNativeSigning(await ed25519.generate())
    const service = alice.withDID('did:web:backups.example')
    const signature = await service.sign(payload)
    assert.ok(await Verifier.parse(alice.did()).verify(payload, signature))
  })

  it('checks what the library signed, and nothing else', async () => {
    const alice = await ed25519.generate()
    const mallory = await ed25519.generate()
    const signature = await alice.sign(payload)
    const verifier = parseVerifier(alice.did())
    assert.equal(verifier.did(), alice.did())
    assert.equal(await verifier.verify(payload, signature), true)
    assert.equal(
      await verifier.verify(
        payload.map((byte) => byte ^ 1),
        signature
      ),
      false
    )
    assert.equal(
      await parseVerifier(mallory.did()).verify(payload, signature),
      false
    )
  })

  it('checks keys that come out of DIDs of other lengths', () => {
    assert.throws(() => parseVerifier('did:web:backups.example'))
    assert.throws(() => parseVerifier('did:key:z6Mk'))
  })

  it('leaves RSA to the library', async () => {
    const bob = await RSA.generate()
    const alice = await ed25519.generate()
    const verifier = parseVerifier(bob.did())
    assert.ok(await verifier.verify(payload, await bob.sign(payload)))
    assert.equal(
      await parseVerifier(alice.did()).verify(payload, await bob.sign(payload)),
      false
    )
  })
})
