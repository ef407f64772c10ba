import assert from 'node:assert/strict'
import { join } from 'node:path'
import { delegate, DID, Message } from '@ucanto/core'
import type { Delegation, Receipt, Signer } from '@ucanto/interface'
import { Absentee, ed25519, RSA } from '@ucanto/principal'
import { CAR } from '@ucanto/transport'
import Database from 'better-sqlite3'
import fc from 'fast-check'
import { withNativeSigning } from '../../src/node/index.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import { damage, damaged, FUZZ_CASES, fuzz } from '../fuzz.ts'
import {
  allow,
  eventOf,
  seconds,
  startTestService,
  type TestService,
} from './harness.ts'

const CHAINS = Math.ceil(FUZZ_CASES * 0.03)
const HEADERS = Math.ceil(FUZZ_CASES * 0.01)
const CAR_TYPE = 'application/vnd.ipld.car'
const AUTHORITY = 'did:web:up.example'

/** Who delegates to whom; the Space has the key of the clock. */
const AGENTS = ['space', 'alice', 'bob', 'mallory', 'browser', 'email'] as const
type Agent = (typeof AGENTS)[number]

const INVOKED = ['clock/head', 'clock/advance', 'backup/status'] as const
const GRANTED = [
  ...INVOKED,
  'clock/*',
  'backup/*',
  '*',
  'space/*',
  'clock/advance/*',
] as const

/** One delegation as it is told to be, right or wrong. */
interface Link {
  issuer: Agent
  audience: Agent
  can: (typeof GRANTED)[number]
  isInSpace: boolean
  time: 'now' | 'expired' | 'future'
  isForged: boolean
  isAttached: boolean
  revokedBy: 'nobody' | 'issuer' | 'stranger'
  /** Who says that it comes from an account by email. */
  attestation:
    | 'good'
    | 'none'
    | 'stranger'
    | 'another'
    | 'expired'
    | 'forged'
    | 'elsewhere'
  /** Proofs: positions of links before it. */
  proofs: number[]
}

interface Case {
  links: Link[]
  /** The invocation: as the last link, from its issuer to the service. */
  invocation: Pick<Link, 'issuer' | 'time' | 'isForged' | 'proofs'> & {
    can: (typeof INVOKED)[number]
  }
}

const agent = fc.constantFrom(...AGENTS)
const time = fc.constantFrom<Link['time']>('now', 'expired', 'future')

/** What goes wrong with a link, or so it may seem. */
const flaw = fc.oneof(
  fc.record({ issuer: agent }),
  fc.record({ audience: agent }),
  fc.record({ can: fc.constantFrom(...GRANTED) }),
  fc.record({ can: fc.constantFrom(...GRANTED) }),
  fc.record({ isInSpace: fc.constant(false) }),
  fc.record({ time }),
  fc.record({ isForged: fc.constant(true) }),
  fc.record({ isAttached: fc.constant(false) }),
  fc.record({
    revokedBy: fc.constantFrom<Link['revokedBy']>('issuer', 'stranger'),
  }),
  fc.record({
    attestation: fc.constantFrom<Link['attestation']>(
      'none',
      'stranger',
      'another',
      'expired',
      'forged',
      'elsewhere'
    ),
  }),
  fc.record({ proofs: fc.array(fc.nat(6), { maxLength: 3 }) })
) as fc.Arbitrary<Partial<Link>>

/** Chains from the Space to an agent, with flaws, and chains beside them. */
const cases = fc
  .record({
    ways: fc.array(
      fc.array(
        fc.constantFrom<Agent>('alice', 'bob', 'mallory', 'browser', 'email'),
        {
          minLength: 1,
          maxLength: 4,
        }
      ),
      { minLength: 1, maxLength: 2 }
    ),
    issuer: fc.constantFrom<Agent>('alice', 'bob', 'browser'),
    can: fc.constantFrom(...INVOKED),
    granted: fc.constantFrom('same', '*'),
    flaws: fc.array(fc.tuple(fc.nat(), flaw), { maxLength: 3 }),
    time: fc.oneof({ weight: 9, arbitrary: fc.constant('now' as const) }, time),
    isForged: fc.oneof(
      { weight: 9, arbitrary: fc.constant(false) },
      fc.constant(true)
    ),
  })
  .map(({ ways, issuer, can, granted, flaws, ...invocation }): Case => {
    const links: Link[] = []
    const ends: number[] = []
    for (const way of ways) {
      const agents: Agent[] = ['space', ...way.slice(1), issuer]
      for (const [i, audience] of agents.slice(1).entries()) {
        links.push({
          issuer: agents[i]!,
          audience,
          can: granted === '*' ? '*' : can,
          isInSpace: true,
          time: 'now',
          isForged: false,
          isAttached: true,
          revokedBy: 'nobody',
          attestation: 'good',
          proofs: i === 0 ? [] : [links.length - 1],
        })
      }
      ends.push(links.length - 1)
    }
    for (const [at, flaw] of flaws) {
      const i = at % links.length
      links[i] = { ...links[i]!, ...flaw }
      links[i].proofs = links[i].proofs.filter((proof) => proof < i)
    }
    return { links, invocation: { issuer, can, ...invocation, proofs: ends } }
  })

/** Whether an agent may, by the rules of UCAN and nothing else. */
function mayInvoke({ links, invocation }: Case): boolean {
  const { can } = invocation
  const isCovered = ({ can: granted }: Link) =>
    granted === '*' ||
    granted === can ||
    (granted.endsWith('/*') && granted === `${can.split('/')[0]}/*`)
  const holds = (holder: Agent, proofs: number[]): boolean =>
    holder === 'space' ||
    proofs.some((at) => {
      const link = links[at]!
      return (
        link.isAttached &&
        link.audience === holder &&
        link.isInSpace &&
        link.time === 'now' &&
        link.revokedBy !== 'issuer' &&
        (link.issuer === 'email'
          ? link.attestation === 'good'
          : !link.isForged) &&
        isCovered(link) &&
        holds(link.issuer, link.proofs)
      )
    })
  return (
    invocation.time === 'now' &&
    !invocation.isForged &&
    holds(invocation.issuer, invocation.proofs)
  )
}

describe('fuzzed proofs', () => {
  const resources = new AsyncDisposableStack()
  const unhandled: unknown[] = []
  const onUnhandled = (reason: unknown) => unhandled.push(reason)
  let service: TestService
  let stores: Stores
  let tables: Database.Database
  let agents: Record<Agent, Signer>
  let otherSpace: Signer
  let authority: Signer
  let stranger: Signer
  let impostor: ed25519.EdSigner

  before(async () => {
    process.on('unhandledRejection', onUnhandled)
    resources.defer(() => {
      process.off('unhandledRejection', onUnhandled)
    })
    const generate = async () => withNativeSigning(await ed25519.generate())
    const key = await generate()
    authority = key.withDID(AUTHORITY)
    stranger = (await generate()).withDID('did:web:elsewhere.example')
    impostor = await generate()
    otherSpace = await generate()
    agents = {
      space: await generate(),
      alice: await generate(),
      bob: await generate(),
      mallory: await generate(),
      browser: await RSA.generate(),
      email: Absentee.from({
        id: 'did:mailto:example.com:alice',
      }) as unknown as Signer,
    }
    service = resources.use(
      await startTestService({
        revocationsPolicy: 'off',
        trustedAuthorities: `${AUTHORITY}=${key.did()}`,
      })
    )
    const path = join(service.config.dataFolder, 'service.sqlite')
    stores = resources.use(await openStores({ path }))
    tables = new Database(path, { readonly: true })
    resources.defer(() => {
      tables.close()
    })
  })

  after(() => resources.disposeAsync())

  afterEach(() => {
    assert.deepEqual(unhandled, [])
    assert.deepEqual(
      service.logs
        .filter(({ level }) => Number(level) >= 40)
        .map(({ msg }) => msg),
      ['private and loopback addresses are allowed: only for local networks']
    )
  })

  const kept = () =>
    tables
      .prepare(
        `SELECT (SELECT count(*) FROM events) AS events,
          (SELECT json_group_array(head) FROM clocks) AS heads`
      )
      .get()

  const signerOf = (agent: Agent, isForged: boolean): Signer =>
    isForged && agent !== 'email'
      ? impostor.withDID(agents[agent].did() as `did:web:${string}`)
      : agents[agent]

  const timesOf = (time: Link['time']) =>
    ({
      now: { expiration: seconds(3600) },
      expired: { expiration: seconds(-60) },
      future: { expiration: seconds(7200), notBefore: seconds(3600) },
    })[time]

  /** The attestation of a login, made out to who holds it. */
  const attest = (login: Delegation, { attestation, audience }: Link) => {
    const attester = {
      stranger,
      forged: impostor.withDID(AUTHORITY),
    }[attestation as string]
    return allow(
      attester ?? authority,
      attestation === 'elsewhere' ? otherSpace : agents[audience],
      ['ucan/attest'],
      {
        with: (attester ?? authority).did(),
        nb: {
          proof: attestation === 'another' ? otherProof.cid : login.cid,
        },
        expiration: seconds(attestation === 'expired' ? -60 : 3600),
      }
    )
  }
  let otherProof: Delegation

  /** Builds the request that a case tells of, and revokes what it revokes. */
  const requestOf = async (
    { links, invocation }: Case,
    capability: { nb?: object },
    blocks: { cid: unknown; bytes: Uint8Array }[]
  ): Promise<Uint8Array> => {
    const built: Delegation[] = []
    const attestations: (Delegation | undefined)[] = []
    const proofsOf = (proofs: number[]) =>
      [...new Set(proofs)].flatMap((at) => [
        links[at]!.isAttached ? built[at]! : (built[at]!.cid as never),
        ...(attestations[at] ? [attestations[at]] : []),
      ])
    for (const link of links) {
      const delegation = await delegate({
        issuer: signerOf(link.issuer, link.isForged),
        audience: agents[link.audience],
        capabilities: [
          {
            can: link.can,
            with: (link.isInSpace ? agents.space : otherSpace).did(),
          },
        ] as never,
        proofs: proofsOf(link.proofs),
        nonce: crypto.randomUUID(),
        ...timesOf(link.time),
      })
      built.push(delegation)
      attestations.push(
        link.issuer === 'email' && link.attestation !== 'none'
          ? await attest(delegation, link)
          : undefined
      )
      if (link.revokedBy !== 'nobody') {
        const revoker =
          link.revokedBy === 'issuer' ? agents[link.issuer] : stranger
        await stores.revocations.add({
          delegation: delegation.cid.toString(),
          revoker: revoker.did(),
          cause: new Uint8Array(),
          created: Date.now(),
        })
      }
    }
    const root = await delegate({
      issuer: signerOf(invocation.issuer, invocation.isForged),
      audience: DID.parse(service.did),
      capabilities: [
        { can: invocation.can, with: agents.space.did(), ...capability },
      ] as never,
      proofs: proofsOf(invocation.proofs),
      nonce: crypto.randomUUID(),
      ...timesOf(invocation.time),
    })
    for (const block of blocks) root.attach(block as never)
    const message = await Message.build({ invocations: [root] as never })
    return CAR.request.encode(message).body
  }

  it('allow what they should, and nothing else', async () => {
    otherProof = await allow(otherSpace, agents.alice, ['*'])
    let last = await eventOf('first')
    await stores.clock.advance(agents.space.did(), [
      { event: `${last.cid}`, parents: [], bytes: last.bytes },
    ])
    const seen = { allowed: 0, refused: 0 }
    await fuzz(cases, CHAINS, async (attempt) => {
      const event = await eventOf(crypto.randomUUID(), [last])
      const isAdvance = attempt.invocation.can === 'clock/advance'
      const body = await requestOf(
        attempt,
        isAdvance ? { nb: { event: event.cid } } : {},
        isAdvance ? [event] : []
      )
      const before = kept()
      const response = await fetch(service.url, {
        method: 'POST',
        headers: { 'content-type': CAR_TYPE },
        body: body as Uint8Array<ArrayBuffer>,
      })
      assert.equal(response.status, 200)
      const { receipts } = await CAR.response.decode({
        headers: {},
        body: new Uint8Array(await response.arrayBuffer()),
      })
      const [receipt] = [...receipts.values()] as Receipt[]
      const { error } = receipt!.out as { error?: { name: string } }
      const isAllowed = mayInvoke(attempt)
      // A chain that was revoked hides another behind the same proof.
      const mayHide = attempt.links.some(
        ({ revokedBy }) => revokedBy === 'issuer'
      )
      if (error) {
        assert.equal(error.name, 'Unauthorized')
        assert.ok(!isAllowed || mayHide, 'refused what it should allow')
        assert.deepEqual(kept(), before)
        seen.refused++
      } else {
        assert.ok(isAllowed, 'allowed what it should refuse')
        if (isAdvance) last = event
        seen.allowed++
      }
    })
    assert.ok(seen.allowed > CHAINS / 10, JSON.stringify(seen))
    assert.ok(seen.refused > CHAINS / 10, JSON.stringify(seen))
  })

  it('in a header are answered by name', async () => {
    const { space } = agents
    const invocation = await delegate({
      issuer: space,
      audience: DID.parse(service.did),
      capabilities: [{ can: 'clock/head', with: space.did() }] as never,
      expiration: seconds(3600),
    })
    const message = await Message.build({ invocations: [invocation] as never })
    const { body } = CAR.request.encode(message)
    const url = (of: Signer) =>
      new URL(`/clock/${of.did()}/events`, service.url)
    const answer = async (to: URL, authorization: string) => {
      const response = await fetch(to, { headers: { authorization } })
      if (response.status === 200) {
        await response.body?.cancel()
        return '200'
      }
      const text = await response.text()
      const { name, ...problem } = JSON.parse(text) as Record<string, string>
      assert.deepEqual(Object.keys(problem), ['message'])
      assert.doesNotMatch(text, /\\n\s+at |node_modules/)
      return `${response.status} ${name}`
    }
    const good = `UCAN ${Buffer.from(body).toString('base64url')}`
    assert.equal(await answer(url(space), good), '200')
    assert.equal(await answer(url(otherSpace), good), '400 InvalidBody')
    const before = kept()
    const seen = new Set<string>()
    await fuzz(
      fc.tuple(damage, fc.boolean()),
      HEADERS,
      async ([harm, isText]) => {
        const text = Buffer.from(good)
        const authorization = isText
          ? Buffer.from(damaged(text, text, harm))
              .toString('latin1')
              .replace(/[^\x20-\x7e]/g, '-')
          : `UCAN ${Buffer.from(damaged(body, body, harm)).toString('base64url')}`
        const outcome = await answer(url(space), authorization)
        seen.add(outcome)
        assert.ok(
          [
            '200',
            '400 InvalidBody',
            '401 Unauthorized',
            '403 Unauthorized',
          ].includes(outcome),
          outcome
        )
      }
    )
    assert.ok(seen.has('400 InvalidBody') && seen.has('401 Unauthorized'))
    assert.deepEqual(kept(), before)
  })
})
