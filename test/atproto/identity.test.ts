import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import type { AtpAgent } from '@atproto/api'
import { P256Keypair, Secp256k1Keypair } from '@atproto/crypto'
import * as plc from '@did-plc/lib'
import { base58btc } from 'multiformats/bases/base58'
import { createIdentityResolver } from '../../src/atproto/identity.ts'
import type { IdentityResolverOptions } from '../../src/atproto/identity.ts'
import { createSafeFetch } from '../../src/atproto/safe-fetch.ts'
import { startNetwork, startServer } from './network.ts'
import type { TestNetwork } from './network.ts'

const NOWHERE = new URL('http://127.0.0.1:1')
const fetch = createSafeFetch({ allowPrivateNetwork: true })

const resolverOf = (options: Partial<IdentityResolverOptions>) =>
  createIdentityResolver({
    plcUrl: NOWHERE,
    handleResolverUrl: NOWHERE,
    fetch,
    allowPrivateNetwork: true,
    ...options,
  })

describe('identity resolver', () => {
  describe('on a network', () => {
    let network: TestNetwork
    let alice: AtpAgent
    let did: string
    let warnings: Error[]

    before(async () => {
      network = await startNetwork()
      alice = await network.createAccount('alice')
      did = alice.assertDid
    })

    after(() => network[Symbol.asyncDispose]())

    beforeEach(() => {
      warnings = []
    })

    const resolver = (options: Partial<IdentityResolverOptions> = {}) =>
      resolverOf({
        plcUrl: network.plcUrl,
        handleResolverUrl: network.pdsUrl,
        onWarning: (warning) => warnings.push(warning),
        ...options,
      })

    it('finds an account by DID', async () => {
      const identity = await resolver().resolve(did)
      const { signingKey } = await network.pds.ctx.plcClient
        .getDocumentData(did)
        .then(({ verificationMethods }) => ({
          signingKey: verificationMethods['atproto'],
        }))
      const { document, log, ...rest } = identity
      assert.deepEqual(rest, {
        did,
        handle: 'alice.test',
        pds: new URL('/', network.pdsUrl),
        signingKey,
        previousSigningKeys: [],
      })
      assert.equal(JSON.parse(document).id, did)
      assert.equal(JSON.parse(log!).length, 1)
      assert.deepEqual(warnings, [])
    })

    for (const handle of ['alice.test', '@alice.test', 'Alice.TEST']) {
      it(`finds an account by handle ${handle}`, async () => {
        const identity = await resolver().resolve(handle)
        assert.equal(identity.did, did)
        assert.equal(identity.handle, 'alice.test')
      })
    }

    it('gives the keys that signed before', async () => {
      const bob = (await network.createAccount('bob')).assertDid
      const { plcClient, plcRotationKey } = network.pds.ctx
      const { signingKey: first } = await resolver().resolve(bob)
      const keys = [await Secp256k1Keypair.create(), await P256Keypair.create()]
      const [second, third] = keys.map((key) => key.did())
      for (const key of [second, first, third]) {
        await plcClient.updateAtprotoKey(bob, plcRotationKey, key!)
      }
      const identity = await resolver().resolve(bob)
      assert.equal(identity.signingKey, third)
      assert.deepEqual(identity.previousSigningKeys, [first, second])
      assert.equal(JSON.parse(identity.log!).length, 4)
    })

    it('gives no handle that does not point back', async () => {
      const carol = (await network.createAccount('carol')).assertDid
      const { plcClient, plcRotationKey } = network.pds.ctx
      for (const handle of ['alice.test', 'nobody.test']) {
        await plcClient.updateHandle(carol, plcRotationKey, handle)
        const identity = await resolver().resolve(carol)
        assert.equal(identity.handle, undefined)
      }
      await assert.rejects(resolver().resolve('carol.test'), {
        name: 'HandleNotFoundError',
        message: new RegExp(`carol.test points to ${carol}`),
      })
    })

    it('gives no handle while handles cannot be resolved', async () => {
      const unreachable = resolver({ handleResolverUrl: NOWHERE })
      const identity = await unreachable.resolve(did)
      assert.equal(identity.handle, undefined)
      assert.equal(warnings.length, 1)
      assert.match(warnings[0]!.message, /handle of did:plc:\w+ .*alice\.test/)
      await assert.rejects(unreachable.resolve('alice.test'), {
        name: 'IdentityUnavailableError',
        retryable: true,
      })
    })

    it('says that there is no such handle', async () => {
      await assert.rejects(resolver().resolve('nobody.test'), {
        name: 'HandleNotFoundError',
        retryable: false,
      })
    })

    it('says that there is no such DID', async () => {
      await assert.rejects(
        resolver().resolve('did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'),
        { name: 'DidNotFoundError', retryable: false }
      )
    })

    it('says that a DID has ended', async () => {
      const dave = (await network.createAccount('dave')).assertDid
      const { plcClient, plcRotationKey } = network.pds.ctx
      await plcClient.tombstone(dave, plcRotationKey)
      await assert.rejects(resolver().resolve(dave), {
        name: 'DidNotFoundError',
      })
    })

    it('stops with the reason of the signal', async () => {
      const reason = new Error('enough')
      for (const account of [did, 'alice.test']) {
        await assert.rejects(
          resolver().resolve(account, { signal: AbortSignal.abort(reason) }),
          reason
        )
      }
    })
  })

  describe('input', () => {
    for (const account of [
      '',
      'alice',
      'https://bsky.app/profile/alice.test',
      'alice..test',
      '-alice.test',
      'alice.test/../../etc',
      'alice.123',
      '127.0.0.1',
      `${'a'.repeat(64)}.test`,
      `${'a.'.repeat(127)}test`,
      'älice.test',
      '\u001b[31malice',
    ]) {
      it(`refuses “${account}”`, async () => {
        await assert.rejects(
          resolverOf({}).resolve(account),
          ({ name, message }: Error) =>
            name === 'HandleNotFoundError' && !/\p{Cc}/u.test(message)
        )
      })
    }

    for (const account of [
      'did:',
      'did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme',
      'did:plc:short',
      'did:plc:aaaaaaaaaaaaaaaaaaaaaaa1',
      'did:plc:../../../../etc/passwd',
      'did:web:',
      'did:web:example.com:user',
      'did:web:example.com%3A8080',
      'did:web:example.com%2Fpath',
    ]) {
      it(`refuses ${account}`, async () => {
        await assert.rejects(resolverOf({}).resolve(account), {
          name: 'DidNotFoundError',
        })
      })
    }
  })

  describe('on a hostile directory', () => {
    const did = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
    let key: Secp256k1Keypair

    before(async () => {
      key = await Secp256k1Keypair.create()
    })

    const valid = () => ({
      '@context': ['https://www.w3.org/ns/did/v1'],
      id: did,
      alsoKnownAs: ['at://alice.test'],
      verificationMethod: [
        {
          id: `${did}#atproto`,
          type: 'Multikey',
          controller: did,
          publicKeyMultibase: key.did().slice('did:key:'.length),
        },
      ],
      service: [
        {
          id: '#atproto_pds',
          type: 'AtprotoPersonalDataServer',
          serviceEndpoint: 'https://pds.test',
        },
      ],
    })

    type Document = ReturnType<typeof valid>

    const serve = (body: string, status = 200, log = '[]') =>
      startServer(({ url }, response) => {
        const isLog = url!.endsWith('/log/audit')
        response.writeHead(isLog ? 200 : status, {
          'content-type': 'application/json',
        })
        response.end(isLog ? log : body)
      })

    const resolve = async (
      body: string,
      status?: number,
      options: Partial<IdentityResolverOptions> = {}
    ) => {
      await using plc = await serve(body, status)
      return await resolverOf({ plcUrl: plc.url, ...options }).resolve(did)
    }

    const changed = (change: (document: Document) => object | void) => {
      const document = valid()
      return JSON.stringify(change(document) ?? document)
    }

    it('gives the document byte for byte', async () => {
      const text = ` ${JSON.stringify(valid(), null, 3)}\n`
      assert.equal((await resolve(text)).document, text)
    })

    for (const [what, change] of [
      [
        'another DID',
        (document) => ({ ...document, id: 'did:plc:bbbbbbbbbbbbbbbbbbbbbbbb' }),
      ],
      ['no DID', ({ id: _, ...document }) => document],
      [
        'services of another shape',
        (document) => ({ ...document, service: {} }),
      ],
      ['a service twice', ({ service }) => void service.push(service[0]!)],
      [
        'aliases that are no URIs',
        (document) => void document.alsoKnownAs.push('?'),
      ],
    ] as [string, (document: Document) => object | void][]) {
      it(`gives a document with ${what}`, async () => {
        await assert.rejects(resolve(changed(change)), {
          name: 'DidNotFoundError',
          message: /not valid/,
        })
      })
    }

    const pdsAt = (serviceEndpoint: unknown) =>
      changed(
        ({ service }) => void Object.assign(service[0]!, { serviceEndpoint })
      )

    for (const [what, body] of [
      [
        'no service',
        () => changed((document) => ({ ...document, service: undefined })),
      ],
      [
        'a service of another type',
        () => changed(({ service }) => void (service[0]!.type = 'Labeler')),
      ],
      [
        'a service of another name',
        () => changed(({ service }) => void (service[0]!.id = '#pds')),
      ],
      ['several addresses', () => pdsAt(['https://pds.test'])],
      ['a password', () => pdsAt('https://alice:secret@pds.test')],
      ['a query', () => pdsAt('https://pds.test/?url=http://127.0.0.1')],
      ['a fragment', () => pdsAt('https://pds.test/#did')],
      ['a file', () => pdsAt('file:///etc/passwd')],
      ['a script', () => pdsAt('javascript:alert(1)')],
      ['plain http', () => pdsAt('http://pds.test')],
      [
        'no key',
        () => changed((document) => ({ ...document, verificationMethod: [] })),
      ],
      [
        'a key of another name',
        () =>
          changed(
            ({ verificationMethod: [method] }) => void (method!.id = '#other')
          ),
      ],
      [
        'a key of another type',
        () =>
          changed(
            ({ verificationMethod: [method] }) =>
              void (method!.type = 'Ed25519VerificationKey2020')
          ),
      ],
      [
        'a key that is none',
        () =>
          changed(
            ({ verificationMethod: [method] }) =>
              void (method!.publicKeyMultibase = 'zzz')
          ),
      ],
      [
        'a key that is not on the curve',
        () =>
          changed(
            ({ verificationMethod: [method] }) =>
              void (method!.publicKeyMultibase = base58btc.encode(
                new Uint8Array(35)
                  .fill(0xff)
                  .fill(0xe7, 0, 1)
                  .fill(1, 1, 2)
                  .fill(2, 2, 3)
              ))
          ),
      ],
    ] as const) {
      it(`names as PDS or key ${what}`, async () => {
        await assert.rejects(
          resolve(body(), 200, { allowPrivateNetwork: false }),
          { name: 'NoPdsError', retryable: false }
        )
      })
    }

    it('names a PDS in a local network', async () => {
      const body = pdsAt('http://pds.test:2583/path/')
      const identity = await resolve(body)
      assert.deepEqual(identity.pds, new URL('http://pds.test:2583'))
    })

    it('gives keys in the older formats', async () => {
      const p256 = await P256Keypair.create()
      for (const [type, pair] of [
        ['EcdsaSecp256k1VerificationKey2019', key],
        ['EcdsaSecp256r1VerificationKey2019', p256],
      ] as const) {
        const publicKeyMultibase = base58btc.encode(pair.publicKeyBytes())
        const body = changed(
          ({ verificationMethod: [method] }) =>
            void Object.assign(method!, { type, publicKeyMultibase })
        )
        assert.equal((await resolve(body)).signingKey, pair.did())
      }
    })

    it('claims a handle that is none', async () => {
      for (const handle of ['handle', '127.0.0.1', 'alice.test/..']) {
        const body = changed(
          (document) => void (document.alsoKnownAs = [`at://${handle}`])
        )
        assert.equal((await resolve(body)).handle, undefined)
      }
    })

    for (const [what, body, status] of [
      ['HTML', '<html>', 200],
      ['nothing', '', 200],
      ['an error', '{}', 500],
      ['too many requests', '{}', 429],
      ['more than 1 MiB', ' '.repeat(2 ** 20 + 1), 200],
      ['a redirect', '', 302],
    ] as const) {
      it(`answers with ${what}`, async () => {
        await assert.rejects(resolve(body, status), {
          name: 'IdentityUnavailableError',
          retryable: true,
        })
      })
    }

    it('is not there', async () => {
      await assert.rejects(resolverOf({}).resolve(did), {
        name: 'IdentityUnavailableError',
      })
    })

    it('is at a forbidden address', async () => {
      const fetch = createSafeFetch({ allowPrivateNetwork: false })
      await assert.rejects(resolverOf({ fetch }).resolve(did), {
        name: 'ForbiddenAddressError',
      })
      await assert.rejects(resolverOf({ fetch }).resolve('alice.test'), {
        name: 'ForbiddenAddressError',
      })
    })

    for (const [what, log] of [
      ['none', ''],
      ['HTML', '<html>'],
      ['an empty one', '[]'],
      ['more than 1 MiB', ' '.repeat(2 ** 20 + 1)],
    ] as const) {
      it(`gives as log ${what}`, async () => {
        const warnings: Error[] = []
        await using plc = await serve(JSON.stringify(valid()), 200, log)
        const identity = await resolverOf({
          plcUrl: plc.url,
          onWarning: (warning) => warnings.push(warning),
        }).resolve(did)
        assert.equal(identity.log, undefined)
        assert.deepEqual(identity.previousSigningKeys, [])
        assert.ok(warnings.some(({ message }) => /PLC log/.test(message)))
      })
    }
  })

  it('takes no log that ends with another key than the document', async () => {
    const signer = await Secp256k1Keypair.create()
    const [first, second] = await Promise.all(
      [0, 1].map(async () => (await Secp256k1Keypair.create()).did())
    )
    const { op, did } = await plc.createOp({
      signingKey: first!,
      handle: 'alice.test',
      pds: 'https://pds.test',
      rotationKeys: [signer.did()],
      signer,
    })
    const operations = [op, await plc.updateAtprotoKeyOp(op, signer, second!)]
    const log = operations.map((operation) => ({ operation, nullified: false }))
    for (const [count, previous] of [
      [2, [first]],
      [1, []],
    ] as const) {
      const document = plc.formatDidDoc({
        ...operations[1]!,
        did,
        alsoKnownAs: [],
      })
      await using directory = await startServer(({ url }, response) => {
        const isLog = url!.endsWith('/log/audit')
        response.end(JSON.stringify(isLog ? log.slice(0, count) : document))
      })
      const warnings: Error[] = []
      const identity = await resolverOf({
        plcUrl: directory.url,
        onWarning: (warning) => warnings.push(warning),
      }).resolve(did)
      assert.deepEqual(identity.previousSigningKeys, previous)
      assert.equal(identity.log === undefined, count === 1)
      assert.equal(warnings.length, count === 1 ? 1 : 0)
    }
  })

  describe('did:web', () => {
    const serve = (body: (did: string) => string, status = 200) =>
      startServer(({ url, headers }, response) => {
        const did = `did:web:localhost%3A${headers.host!.split(':')[1]}`
        response.statusCode = url === '/.well-known/did.json' ? status : 404
        response.end(body(did))
      })

    const document = (did: string, key: string) => ({
      id: did,
      verificationMethod: [
        {
          id: '#atproto',
          type: 'Multikey',
          controller: did,
          publicKeyMultibase: key.slice('did:key:'.length),
        },
      ],
      service: [
        {
          id: `${did}#atproto_pds`,
          type: 'AtprotoPersonalDataServer',
          serviceEndpoint: 'https://pds.test',
        },
      ],
    })

    it('finds an account', async () => {
      const key = (await P256Keypair.create()).did()
      await using server = await serve((did) =>
        JSON.stringify(document(did, key))
      )
      const did = `did:web:localhost%3A${server.url.port}`
      const identity = await resolverOf({}).resolve(did)
      assert.deepEqual(identity, {
        did,
        handle: undefined,
        pds: new URL('https://pds.test'),
        signingKey: key,
        previousSigningKeys: [],
        document: JSON.stringify(document(did, key)),
        log: undefined,
      })
    })

    for (const [name, body, status] of [
      ['DidNotFoundError', '<html>', 200],
      ['DidNotFoundError', '{}', 200],
      ['DidNotFoundError', '', 404],
      ['IdentityUnavailableError', '', 500],
    ] as const) {
      it(`fails with ${name} on ${status} ${body}`, async () => {
        await using server = await serve(() => body, status)
        const did = `did:web:localhost%3A${server.url.port}`
        await assert.rejects(resolverOf({}).resolve(did), { name })
      })
    }

    for (const did of [
      'did:web:localhost%3A80',
      'did:web:localhost',
      'did:web:127.0.0.1',
      'did:web:2130706433',
      'did:web:169.254.169.254',
      'did:web:metadata',
    ]) {
      it(`does not go to ${did}`, async () => {
        const fetch = createSafeFetch({ allowPrivateNetwork: false })
        const resolver = resolverOf({ fetch, allowPrivateNetwork: false })
        await assert.rejects(resolver.resolve(did), {
          name: 'ForbiddenAddressError',
        })
      })
    }
  })

  describe('handles', () => {
    const ask = async (body: string, status = 200) => {
      await using service = await startServer((_, response) =>
        response.writeHead(status).end(body)
      )
      const resolver = resolverOf({ handleResolverUrl: service.url })
      await resolver.resolve('alice.test')
    }

    for (const [name, body, status] of [
      ['HandleNotFoundError', '{"error":"HandleNotFound"}', 400],
      ['IdentityUnavailableError', '{}', 404],
      ['IdentityUnavailableError', '<html>', 200],
      ['IdentityUnavailableError', '{"did":1}', 200],
      ['DidNotFoundError', '{"did":"did:key:zQ3"}', 200],
      ['DidNotFoundError', '{"did":"alice.test"}', 200],
    ] as const) {
      it(`fail with ${name} on ${status} ${body}`, () =>
        assert.rejects(ask(body, status), { name }))
    }

    it('are resolved by DNS', async () => {
      const did = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
      await using nameserver = await startNameserver(`did=${did}`)
      const resolver = resolverOf({
        handleResolverUrl: undefined,
        nameservers: [nameserver.address],
      })
      // The directory is not there, but the handle led to it.
      await assert.rejects(resolver.resolve('alice.invalid'), {
        name: 'IdentityUnavailableError',
        message: new RegExp(did),
      })
      assert.deepEqual(nameserver.asked, ['_atproto.alice.invalid'])
    })

    it('are not found by DNS', async () => {
      await using nameserver = await startNameserver('something else')
      const resolver = resolverOf({
        handleResolverUrl: undefined,
        nameservers: [nameserver.address],
      })
      await assert.rejects(resolver.resolve('alice.invalid'), {
        name: 'HandleNotFoundError',
      })
    })

    it('are resolved by DNS until the signal aborts', async () => {
      const reason = new Error('enough')
      const controller = new AbortController()
      await using nameserver = await startNameserver(() =>
        controller.abort(reason)
      )
      const resolver = resolverOf({
        handleResolverUrl: undefined,
        nameservers: [nameserver.address],
      })
      await assert.rejects(
        resolver.resolve('alice.invalid', { signal: controller.signal }),
        reason
      )
    })
  })
})

/** A name server that has one TXT record for every name, or does not answer. */
async function startNameserver(record: string | (() => void)) {
  const asked: string[] = []
  const socket = createSocket('udp4')
  socket.on('message', (query, { port, address }) => {
    const end = query.indexOf(0, 12) + 5
    const labels = []
    for (let at = 12; query[at]; at += query[at]! + 1) {
      labels.push(query.toString('latin1', at + 1, at + 1 + query[at]!))
    }
    asked.push(labels.join('.'))
    if (typeof record === 'function') return record()
    const header = Buffer.from('0000818000010001000000000', 'hex')
    const answer = Buffer.from('c00c001000010000000a0000ff', 'hex').subarray(
      0,
      12
    )
    const text = Buffer.from(record)
    const reply = Buffer.concat([
      query.subarray(0, 2),
      header.subarray(2, 12),
      query.subarray(12, end),
      answer,
      Buffer.from([text.length]),
      text,
    ])
    reply.writeUInt16BE(text.length + 1, end + 10)
    socket.send(reply, port, address)
  })
  await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve))
  return {
    asked,
    address: `127.0.0.1:${socket.address().port}`,
    async [Symbol.asyncDispose]() {
      await new Promise<void>((resolve) => socket.close(() => resolve()))
    },
  }
}
