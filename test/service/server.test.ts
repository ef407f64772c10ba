import assert from 'node:assert/strict'
import { delegate, invoke, Message, ok } from '@ucanto/core'
import type { Delegation, Invocation, Signer } from '@ucanto/interface'
import { Absentee, ed25519 } from '@ucanto/principal'
import * as dagCBOR from '@ipld/dag-cbor'
import { CAR } from '@ucanto/transport'
import { sha256 } from 'multiformats/hashes/sha2'
import type * as Link from 'multiformats/link'
import pino from 'pino'
import type { ServiceContext } from '../../src/service/context.ts'
import { MAX_PROOFS } from '../../src/service/invocation.ts'
import {
  createServer,
  MAX_INVOCATIONS,
  type InvocationServer,
} from '../../src/service/server.ts'
import { createWatchers } from '../../src/service/watchers.ts'
import { systemTime } from '../../src/node/index.ts'
import { RHYTHM_LIMITS } from '../../src/scheduler/index.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import {
  allow,
  blockOf,
  createActors,
  failureOf,
  type Space,
} from './harness.ts'

describe('server of invocations', () => {
  let stores: Stores
  let server: InvocationServer
  let service: Space
  let alice: Signer
  let mallory: Signer
  let space: Space
  let logged: string

  beforeEach(async () => {
    ;({ alice, mallory, space } = await createActors())
    service = await ed25519.generate()
    stores = await openStores({ path: ':memory:' })
    logged = ''
    server = await createServer(contextOf(stores))
  })

  afterEach(() => stores[Symbol.asyncDispose]())

  const contextOf = (stores: Stores): ServiceContext => ({
    id: service.withDID('did:web:service.example'),
    agent: service,
    stores,
    runner: { kick: () => {} },
    identities: {
      async resolve() {
        throw new Error('nobody is looked up')
      },
    },
    grants: undefined,
    publisher: { publish: async () => false },
    sharer: {
      share: async () => ({ ok: { backups: 0, closed: 0, unreadable: 0 } }),
    },
    time: systemTime,
    logger: pino({ level: 'debug' }, { write: (line) => (logged += line) }),
    authorities: [],
    rhythmLimits: RHYTHM_LIMITS,
    schedulesPerSpace: 1,
    rates: { count: async () => {} },
    watchers: createWatchers(),
    provisioning: { check: async () => ok({}) },
    revocations: { check: async () => ok({}) },
  })

  const invocationOf = (can: string, options: object = {}) =>
    invoke({
      issuer: space,
      audience: service,
      capability: { can: can as 'a/b', with: space.did() },
      ...options,
    }).delegate()

  /** The receipts for the invocations, in their order. */
  const execute = async (...invocations: Invocation[]) => {
    const { body } = CAR.request.encode(
      await Message.build({ invocations: invocations as never })
    )
    const response = await server.request({ body })
    const message = await CAR.response.decode(response as never)
    return invocations.map((invocation) => message.get(invocation.cid))
  }

  const refuses = (body: Uint8Array, message: RegExp) =>
    assert.rejects(server.request({ body }), {
      name: 'InvalidBodyError',
      message,
    })

  it('answers each invocation of a message', async () => {
    const answers = await execute(
      await invocationOf('clock/head', { nonce: '1' }),
      await invocationOf('clock/nothing'),
      await invocationOf('clock/head', { nonce: '2' })
    )
    assert.deepEqual(
      answers.map(({ out }) => out.error && failureOf(out).name),
      [undefined, 'HandlerNotFound', undefined]
    )
  })

  it('issues receipts that verify', async () => {
    const [receipt] = await execute(await invocationOf('clock/head'))
    assert.ok((await receipt!.verifySignature(service)).ok)
  })

  describe('finds nothing but handlers', () => {
    for (const can of [
      'clock/constructor',
      'clock/__proto__',
      '__proto__/x',
      '__proto__/toString',
      'constructor/constructor',
      'clock/toString',
      'clock/head/call',
      'clock/head/bind',
      'clock/head/constructor',
      'backup/perform',
      'clock/*',
      'backup/*',
      '*',
      'CLOCK/HEAD/',
    ]) {
      it(can, async () => {
        const [receipt] = await execute(await invocationOf(can))
        assert.equal(failureOf(receipt!.out).name, 'HandlerNotFound')
        assert.equal(logged, '')
      })
    }
  })

  it('answers failures without stack traces', async () => {
    const invocations = [
      await invocationOf('clock/nothing'),
      await invocationOf('clock/head', { issuer: mallory }),
      await invocationOf('clock/head', { audience: mallory }),
      await invocationOf('clock/head', { expiration: 1 }),
      await invocationOf('clock/advance'),
    ]
    for (const { out } of await execute(...invocations)) {
      assert.deepEqual(Object.keys(failureOf(out)).sort(), ['message', 'name'])
      assert.doesNotMatch(JSON.stringify(out), /node_modules|\.js:|at \w+ \(/)
    }
  })

  it('shortens messages', async () => {
    const proofs = []
    for (let i = 0; i < 100; i++) {
      proofs.push(
        await allow(space, alice, ['upload/list'], { expiration: 1e10 + i })
      )
    }
    const [receipt] = await execute(
      await invocationOf('clock/head', { issuer: alice, proofs })
    )
    const { name, message } = failureOf(receipt!.out)
    assert.equal(name, 'Unauthorized')
    assert.equal(message.length, 4096)
  })

  it('wants one capability in an invocation', async () => {
    const invocation = await delegate({
      issuer: space,
      audience: service,
      capabilities: [
        { can: 'clock/head', with: space.did() },
        { can: 'clock/head', with: space.did() },
      ],
    })
    const [receipt] = await execute(invocation as unknown as Invocation)
    assert.equal(failureOf(receipt!.out).name, 'InvocationCapabilityError')
  })

  it('names a store that fails, and keeps what is underneath for the log', async () => {
    await stores[Symbol.asyncDispose]()
    for (const can of ['clock/head', 'backup/status']) {
      const [receipt] = await execute(await invocationOf(can))
      assert.deepEqual(receipt!.out, {
        error: {
          name: 'ServiceUnavailable',
          message: 'the service could not do it just now; try again later',
        },
      })
      assert.match(logged, /"msg":"a handler failed"/)
      assert.match(logged, new RegExp(`"can":"${can}"`))
      assert.match(logged, /"stack":/)
    }
  })

  describe('refuses a body', () => {
    /** A message with these links, and these blocks beside it. */
    const messageOf = async (
      execute: Link.Link[],
      blocks: { cid: Link.Link; bytes: Uint8Array }[]
    ) => {
      const root = await blockOf({ 'ucanto/message@7.0.0': { execute } })
      return CAR.codec.encode({
        roots: [root],
        blocks: new Map(blocks.map((block) => [block.cid.toString(), block])),
      })
    }

    it('that is no CAR', () =>
      refuses(new Uint8Array([1, 2, 3]), /not a message/))

    it('that is empty', () => refuses(new Uint8Array(), /not a message/))

    it('without a root', () =>
      refuses(CAR.codec.encode({ roots: [] }), /not a message/))

    it('whose root is no message', async () => {
      for (const value of [
        null,
        [],
        { hello: 'world' },
        { 'ucanto/message@8.0.0': {} },
        { 'ucanto/message@7.0.0': { execute: 'all' } },
        { 'ucanto/message@7.0.0': { execute: [1] } },
      ]) {
        const root = await blockOf(value)
        await refuses(CAR.codec.encode({ roots: [root] }), /not a message/)
      }
    })

    it('whose root is not there', async () => {
      const { cid } = await blockOf('somewhere else')
      const block = await blockOf({})
      const body = CAR.codec.encode({ roots: [block] })
      const other = new Uint8Array(body)
      const start = Buffer.from(body).indexOf(cid.bytes.subarray(0, 4))
      other.set(cid.bytes, start)
      await refuses(other, /not a message/)
    })

    it('without the block of an invocation', async () => {
      const { cid } = await invocationOf('clock/head')
      await refuses(await messageOf([cid], []), /not a message/)
    })

    it('with an invocation that is no UCAN', async () => {
      for (const value of [{}, [], 'ucan', { v: '0.9.1', att: [] }]) {
        const block = await blockOf(value)
        await refuses(await messageOf([block.cid], [block]), /cannot be read/)
      }
    })

    it('with an invocation without a capability', async () => {
      const invocation = await delegate({
        issuer: space,
        audience: service,
        capabilities: [] as never,
      })
      await refuses(
        await messageOf([invocation.cid], [invocation.root]),
        /cannot be read/
      )
    })

    it('with an issuer whose key nobody knows to use', async () => {
      const { bytes } = await invocationOf('clock/head')
      // A key of secp256k1.
      const block = await blockOf({
        ...dagCBOR.decode<object>(bytes),
        iss: new Uint8Array([0xe7, 0x01, 2, ...new Uint8Array(32)]),
      })
      await refuses(await messageOf([block.cid], [block]), /cannot be read/)
    })

    it('with an ability that is none', async () => {
      const { bytes } = await invocationOf('clock/head')
      for (const can of ['toString', 'clock/', '/head', '']) {
        const block = await blockOf({
          ...dagCBOR.decode<object>(bytes),
          att: [{ can, with: space.did() }],
        })
        await refuses(await messageOf([block.cid], [block]), /cannot be read/)
      }
    })

    it('with a proof that is no UCAN', async () => {
      const proof = await blockOf({ not: 'a proof' })
      const invocation = await invocationOf('clock/head', {
        proofs: [proof.cid],
      })
      await refuses(
        await messageOf([invocation.cid], [invocation.root, proof]),
        /cannot be read/
      )
    })

    it('with too many invocations', async () => {
      const invocations = []
      for (let i = 0; i <= MAX_INVOCATIONS; i++) {
        invocations.push(await invocationOf('clock/head', { nonce: `${i}` }))
      }
      await assert.rejects(execute(...invocations), {
        name: 'InvalidBodyError',
        message: /more than 16 invocations/,
      })
      const receipts = await execute(...invocations.slice(1))
      assert.equal(receipts.length, MAX_INVOCATIONS)
    })

    it('that names one invocation very often', async () => {
      const { cid, root } = await invocationOf('clock/head')
      await refuses(
        await messageOf(Array<Link.Link>(100_000).fill(cid), [root]),
        /more than 16 invocations/
      )
    })
  })

  describe('bounds the work for proofs', () => {
    /** Delegations of which each has two proofs, `depth` times over. */
    const createLattice = async (depth: number, audience: Signer) => {
      let proofs: Delegation[] = []
      let issuer: Signer = mallory
      for (let i = 0; i < depth; i++) {
        const next = i === depth - 1 ? audience : await ed25519.generate()
        const pair = []
        for (const nonce of ['a', 'b']) {
          // Both name both, but only their blocks are kept.
          const { cid, bytes, root } = await delegate({
            issuer,
            audience: next,
            capabilities: [{ can: 'clock/*', with: space.did() }],
            proofs: proofs.map(({ cid }) => cid),
            expiration: Infinity,
            nonce,
          })
          pair.push({ cid, bytes, root })
        }
        blocks.push(...pair.map(({ root }) => root))
        proofs = pair as unknown as Delegation[]
        issuer = next
      }
      return proofs
    }
    let blocks: { cid: Link.Link; bytes: Uint8Array }[]

    const bodyWith = async (issuer: Signer, proofs: Delegation[]) => {
      const invocation = await delegate({
        issuer,
        audience: service,
        capabilities: [{ can: 'clock/head', with: space.did() }],
        proofs: proofs.map(({ cid }) => cid),
      })
      const root = await blockOf({
        'ucanto/message@7.0.0': { execute: [invocation.cid] },
      })
      return CAR.codec.encode({
        roots: [root],
        blocks: new Map(
          [...blocks, invocation.root].map((block) => [
            block.cid.toString(),
            block,
          ])
        ),
      })
    }

    beforeEach(() => {
      blocks = []
    })

    it('of few that refer to one another', async () => {
      for (const issuer of [alice, space]) {
        blocks = []
        const proofs = await createLattice(40, issuer)
        const started = performance.now()
        await refuses(
          await bodyWith(issuer, proofs),
          new RegExp(`more than ${MAX_PROOFS} proofs`)
        )
        assert.ok(performance.now() - started < 2000)
      }
    })

    it('of a long chain', async () => {
      let proof: Delegation | undefined
      let issuer: Signer = mallory
      for (let i = 0; i <= MAX_PROOFS; i++) {
        const next = mallory
        const link: Delegation = await delegate({
          issuer,
          audience: next,
          capabilities: [{ can: 'clock/*', with: space.did() }],
          proofs: proof ? [proof.cid] : [],
          expiration: Infinity,
          nonce: `${i}`,
        })
        blocks.push(link.root)
        proof = link
        issuer = next
      }
      await refuses(await bodyWith(mallory, [proof!]), /more than 256 proofs/)
    })

    it('of logins that attest one another', async () => {
      const account = Absentee.from({ id: 'did:mailto:example.com:mallory' })
      const proofs: Delegation[] = []
      for (let i = 0; i < 100; i++) {
        const login = await delegate({
          issuer: account,
          audience: alice,
          capabilities: [{ can: 'clock/*', with: 'ucan:*' }],
          expiration: Infinity,
          nonce: `${i}`,
        })
        const attestation = await delegate({
          issuer: mallory,
          audience: alice,
          capabilities: [
            {
              can: 'ucan/attest',
              with: 'did:web:service.example',
              nb: { proof: login.cid },
            },
          ],
          expiration: Infinity,
        })
        proofs.push(login, attestation)
      }
      blocks = proofs.map(({ root }) => root)
      const { body } = await server.request({
        body: await bodyWith(alice, proofs),
      })
      assert.match(Buffer.from(body).toString('latin1'), /TooManySignatures/)
      assert.equal(logged, '')
    })

    it('but not of what agents really have', async () => {
      const chain = await allow(space, alice, ['clock/*'])
      const proofs = [chain]
      for (let i = 0; i < 50; i++) {
        proofs.push(
          await allow(mallory, alice, ['clock/*'], { expiration: 1e10 + i })
        )
      }
      const [receipt] = await execute(
        await invocationOf('clock/head', { issuer: alice, proofs })
      )
      assert.deepEqual(receipt!.out, { ok: { head: [] } })
    })
  })

  it('hashes what it makes', async () => {
    const [receipt] = await execute(await invocationOf('clock/head'))
    const { cid, bytes } = receipt!.root
    assert.deepEqual((await sha256.digest(bytes)).bytes, cid.multihash.bytes)
  })
})
