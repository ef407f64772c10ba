import assert from 'node:assert/strict'
import { ed25519, RSA } from '@ucanto/principal'
import fc from 'fast-check'
import type { Authorization, DID } from '../../src/space/index.ts'
import {
  InvalidRecipientError,
  MAX_SEALED_SIZE,
  createRecoveryIdentity,
  findFileKey,
  openFileKey,
  sealFileKey,
  deriveIdentity,
  openAuthorization,
  openPart,
  parseRecipient,
  recipientOf,
  sealAuthorization,
  sealPart,
  type SealingAgent,
} from '../../src/space/index.ts'
import { alice as account, bob as otherAccount } from './helpers.ts'

const payload = new TextEncoder().encode('a refresh token and a DPoP key')

describe('sealing', () => {
  let space: DID
  let alice: SealingAgent
  let browser: SealingAgent
  let mallory: SealingAgent
  let details: Parameters<typeof sealAuthorization>[1]

  before(async () => {
    ;[space, alice, browser, mallory] = [
      (await ed25519.generate()).did(),
      await ed25519.generate(),
      // Its key cannot be taken out of it.
      await RSA.generate(),
      await ed25519.generate(),
    ]
    details = { space, account, seq: 7, expiration: 1_800_000_000 }
  })

  /** A grant of alice. */
  const seal = () => sealAuthorization(alice, details, payload)

  for (const kind of ['Ed25519', 'RSA']) {
    it(`is opened by the same agent, with a key of ${kind}`, async () => {
      const agent = kind === 'RSA' ? browser : alice
      const authorization = await sealAuthorization(agent, details, payload)
      assert.equal(authorization.seq, 7)
      assert.equal(authorization.expiration, 1_800_000_000)
      assert.deepEqual(
        await openAuthorization(agent, { space, account }, authorization),
        payload
      )
    })
  }

  it('gives a compact JWE that tells nothing of the payload', async () => {
    const text = new TextDecoder().decode((await seal()).sealed)
    const [header = '', key, iv = '', ciphertext = '', tag = ''] =
      text.split('.')
    assert.deepEqual(
      JSON.parse(Buffer.from(header, 'base64url').toString('utf8')),
      {
        alg: 'dir',
        enc: 'A256GCM',
        typ: 'bluesky-backups-authorization',
        version: 1,
        space,
        account,
        agent: alice.did(),
        seq: 7,
        expiration: 1_800_000_000,
      }
    )
    assert.equal(key, '')
    assert.equal(Buffer.from(iv, 'base64url').length, 12)
    assert.equal(Buffer.from(ciphertext, 'base64url').length, payload.length)
    assert.equal(Buffer.from(tag, 'base64url').length, 16)
    assert.notDeepEqual((await seal()).sealed, (await seal()).sealed)
  })

  it('is refused to another agent', async () => {
    const authorization = await seal()
    for (const agent of [mallory, browser]) {
      await assert.rejects(
        openAuthorization(agent, { space, account }, authorization),
        { name: 'UnsealError' }
      )
    }
  })

  it('is refused to one that only says to be the agent', async () => {
    const forger: SealingAgent = {
      did: () => alice.did(),
      sign: (message) => mallory.sign(message),
    }
    await assert.rejects(
      openAuthorization(forger, { space, account }, await seal()),
      { name: 'UnsealError' }
    )
  })

  it('is refused in another Space, and for another account', async () => {
    const authorization = await seal()
    const elsewhere = (await ed25519.generate()).did()
    for (const subject of [
      { space: elsewhere, account },
      { space, account: otherAccount },
    ]) {
      await assert.rejects(openAuthorization(alice, subject, authorization), {
        name: 'UnsealError',
      })
    }
  })

  it('is refused with another number or expiration', async () => {
    const authorization = await seal()
    for (const change of [{ seq: 8 }, { expiration: 1_900_000_000 }]) {
      await assert.rejects(
        openAuthorization(
          alice,
          { space, account },
          { ...authorization, ...change }
        ),
        { name: 'UnsealError', message: /stands in its place/ }
      )
    }
  })

  it('is refused when a newer one was seen', async () => {
    const authorization = await seal()
    await openAuthorization(
      alice,
      { space, account, newestSeq: 7 },
      authorization
    )
    await assert.rejects(
      openAuthorization(alice, { space, account, newestSeq: 8 }, authorization),
      { name: 'ReplayedAuthorizationError', message: /number 7.*number 8/ }
    )
  })

  it('is refused with any bit changed', async () => {
    const authorization = await seal()
    const { sealed } = authorization
    await fc.assert(
      fc.asyncProperty(
        fc.nat({ max: sealed.length - 1 }),
        fc.integer({ min: 1, max: 255 }),
        async (at, mask) => {
          const changed = Uint8Array.from(sealed)
          changed[at]! ^= mask
          const opened = await openAuthorization(
            alice,
            { space, account },
            { ...authorization, sealed: changed }
          ).catch((error: Error) => {
            assert.equal(error.name, 'UnsealError')
            assert.doesNotMatch(String(error.cause ?? ''), /./)
            return undefined
          })
          // The last character of base64url may have bits that say nothing.
          if (opened) assert.deepEqual(opened, payload)
        }
      ),
      { numRuns: 500 }
    )
  })

  it('is refused when it is no JWE', async () => {
    const authorization = await seal()
    const text = new TextDecoder().decode(authorization.sealed)
    const header = Buffer.from(
      JSON.stringify({ alg: 'none', enc: 'A256GCM' })
    ).toString('base64url')
    for (const other of [
      '',
      'nonsense',
      '....',
      [header, ...text.split('.').slice(1)].join('.'),
    ]) {
      const sealed = new TextEncoder().encode(other)
      await assert.rejects(
        openAuthorization(
          alice,
          { space, account },
          { ...authorization, sealed }
        ),
        { name: 'UnsealError' }
      )
    }
  })

  it('needs an agent whose signatures are the same each time', async () => {
    let count = 0
    const agent: SealingAgent = {
      did: () => alice.did(),
      sign: async (message) => {
        const signature = Uint8Array.from(await alice.sign(message))
        signature[10]! += count++
        return signature
      },
    }
    await assert.rejects(sealAuthorization(agent, details, payload), {
      name: 'NonDeterministicSignerError',
    })
    await assert.rejects(deriveIdentity(agent, { space, account }), {
      name: 'NonDeterministicSignerError',
    })
  })

  it('signs nothing that a UCAN could be', async () => {
    const messages: string[] = []
    const agent: SealingAgent = {
      did: () => alice.did(),
      sign: (message) => {
        messages.push(new TextDecoder().decode(message))
        return alice.sign(message)
      },
    }
    await sealAuthorization(agent, details, payload)
    for (const message of messages) {
      assert.match(message, /^bluesky-backups key derivation\n/)
    }
  })

  it('takes what is not too large, and no numbers that are none', async () => {
    const largest = new Uint8Array(MAX_SEALED_SIZE)
    const authorization = await sealAuthorization(alice, details, largest)
    assert.equal(
      (await openAuthorization(alice, { space, account }, authorization))
        .length,
      MAX_SEALED_SIZE
    )
    await assert.rejects(
      sealAuthorization(alice, details, new Uint8Array(MAX_SEALED_SIZE + 1)),
      { name: 'TooLargeError' }
    )
    for (const wrong of [{ seq: -1 }, { expiration: 1.5 }]) {
      await assert.rejects(
        sealAuthorization(alice, { ...details, ...wrong }, payload),
        { name: 'DecodeError' }
      )
    }
  })

  describe('private parts', () => {
    const streamOf = (...chunks: Uint8Array[]) =>
      new ReadableStream<Uint8Array>({
        start(controller) {
          for (const chunk of chunks) controller.enqueue(chunk)
          controller.close()
        },
      })

    const read = async (stream: ReadableStream<Uint8Array>) =>
      new Uint8Array(await new Response(stream as never).arrayBuffer())

    const part = new TextEncoder().encode('{"preferences":[]}')

    it('are opened by each agent and by the recovery, and by nobody else', async () => {
      const recovery = await createRecoveryIdentity()
      const identities = [
        await deriveIdentity(alice, { space, account }),
        await deriveIdentity(browser, { space, account }),
      ]
      const recipients = [
        ...(await Promise.all(identities.map(recipientOf))),
        recovery.recipient,
      ]
      const sealed = await read(await sealPart(recipients, streamOf(part)))
      assert.ok(!Buffer.from(sealed).includes('preferences'))
      for (const identity of [...identities, recovery.identity]) {
        const opened = await openPart(identity, streamOf(sealed))
        assert.deepEqual(await read(opened), part)
      }
      for (const identity of [
        await deriveIdentity(mallory, { space, account }),
        await deriveIdentity(alice, { space, account: otherAccount }),
        (await createRecoveryIdentity()).identity,
        'AGE-SECRET-KEY-1NONSENSE',
      ]) {
        await assert.rejects(openPart(identity, streamOf(sealed)), {
          name: 'UnsealError',
        })
      }
    })

    it('have the same recipient each time, and fit into the authorization', async () => {
      const subject = { space, account }
      const [first, second] = [
        await deriveIdentity(alice, subject),
        await deriveIdentity(alice, subject),
      ]
      const recipient = await recipientOf(first)
      assert.equal(await recipientOf(second), recipient)
      assert.equal(first.extractable, false)
      const authorization: Authorization = await sealAuthorization(
        alice,
        { ...details, recipient },
        payload
      )
      assert.equal(authorization.recipient, recipient)
    })

    it('stream: a large one is never in memory as a whole', async () => {
      const chunk = new Uint8Array(64 * 1024).fill(7)
      const total = 200
      let made = 0
      const source = new ReadableStream<Uint8Array>(
        {
          pull(controller) {
            if (made++ === total) controller.close()
            else controller.enqueue(chunk)
          },
        },
        { highWaterMark: 0 }
      )
      const identity = await deriveIdentity(alice, { space, account })
      const sealed = await sealPart([await recipientOf(identity)], source)
      const opened = await openPart(identity, sealed)
      let size = 0
      let ahead = 0
      for await (const piece of opened) {
        size += piece.length
        ahead = Math.max(ahead, made * chunk.length - size)
      }
      assert.equal(size, total * chunk.length)
      assert.ok(ahead <= 8 * chunk.length, `${ahead} bytes ahead`)
    })

    it('are refused when they were cut or changed on the way', async () => {
      const identity = await deriveIdentity(alice, { space, account })
      const recipients = [await recipientOf(identity)]
      const large = new Uint8Array(200_000)
      const sealed = await read(await sealPart(recipients, streamOf(large)))
      const changed = Uint8Array.from(sealed)
      changed[150_000]! ^= 1
      for (const wrong of [sealed.subarray(0, 150_000), changed]) {
        await assert.rejects(
          (async () => read(await openPart(identity, streamOf(wrong))))(),
          { name: 'UnsealError' }
        )
      }
    })

    it('are opened with their key, and others are not', async () => {
      const own = await deriveIdentity(alice, { space, account })
      const recipients = [await recipientOf(own)]
      const sealed = await read(await sealPart(recipients, streamOf(part)))
      const other = await read(await sealPart(recipients, streamOf(part)))
      const key = await findFileKey(own, sealed)
      // The header is enough.
      const end = Buffer.from(sealed).indexOf('\n--- ')
      assert.deepEqual(
        await findFileKey(own, sealed.subarray(0, end + 60)),
        key
      )

      const recovery = await createRecoveryIdentity()
      const shared = await sealFileKey(recovery.recipient, key)
      const opened = await openFileKey(recovery.identity, shared)
      assert.deepEqual(
        await read(await openPart(opened, streamOf(sealed))),
        part
      )
      const refused = { name: 'UnsealError' }
      await assert.rejects(openPart(opened, streamOf(other)), refused)
      const stranger = await deriveIdentity(mallory, { space, account })
      await assert.rejects(openFileKey(stranger, shared), refused)
      await assert.rejects(findFileKey(stranger, sealed), refused)
      await assert.rejects(findFileKey(own, sealed.subarray(0, end)), refused)
      await assert.rejects(findFileKey(own, new Uint8Array(100)), refused)
      await assert.rejects(openFileKey(own, new Uint8Array(100)), refused)
      const short = { fileKey: new Uint8Array(3) }
      await assert.rejects(openPart(short, streamOf(sealed)), refused)
    })

    it('are for recipients that are some', async () => {
      const { recipient } = await createRecoveryIdentity()
      assert.equal(parseRecipient(recipient), recipient)
      const typo = recipient.replace(/.$/, (last) => (last === 'q' ? 'p' : 'q'))
      for (const text of ['', 'age1', recipient.toUpperCase(), typo]) {
        assert.throws(() => parseRecipient(text), InvalidRecipientError)
        await assert.rejects(sealPart([text], streamOf(part)), {
          name: 'InvalidRecipientError',
        })
      }
      await assert.rejects(sealPart([], streamOf(part)), {
        name: 'InvalidRecipientError',
        message: /authorize an agent/,
      })
    })
  })
})
