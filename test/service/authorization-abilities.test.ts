import assert from 'node:assert/strict'
import { join } from 'node:path'
import { delegate, Delegation, DID, Message } from '@ucanto/core'
import type {
  Delegation as DelegationView,
  Principal,
  Signer,
} from '@ucanto/interface'
import { Absentee, ed25519, RSA } from '@ucanto/principal'
import { CAR } from '@ucanto/transport'
import * as dagCBOR from '@ipld/dag-cbor'
import Database from 'better-sqlite3'
import * as raw from 'multiformats/codecs/raw'
import { identity } from 'multiformats/hashes/identity'
import { sha512 } from 'multiformats/hashes/sha2'
import * as Link from 'multiformats/link'
import {
  ABILITIES,
  BACKUP_ABILITIES,
  SCHEDULE_ABILITIES,
} from '../../src/capabilities/index.ts'
import { Backup, Revocation } from '../../src/client/index.ts'
import { withNativeSigning } from '../../src/node/index.ts'
import { MAX_INVOCATIONS } from '../../src/service/server.ts'
import type { Block } from '../../src/space/interface.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import {
  allow,
  blockOf,
  createActors,
  eventOf,
  seconds,
  startServer,
  startTestService,
  type Space,
  type TestService,
} from './harness.ts'

const CAR_TYPE = 'application/vnd.ipld.car'
const ACCOUNT = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const OTHER_ACCOUNT = 'did:plc:vwzwgnygau7ed7b7wt5ux7y2'
/** Seconds. */
const HOUR = 3600
/** Half a year from now: nothing falls due while the rows are tried. */
const FAR_OFF = `0 4 1 ${((new Date().getUTCMonth() + 6) % 12) + 1} *`
const MAX_BODY_SIZE = 200_000

type Can = (typeof ABILITIES)[number]

/** What changes the tables of the service when it is allowed. */
const WRITES: readonly string[] = [
  'clock/advance',
  'backup/run',
  'backup/schedule',
  'backup/pause',
  'backup/unschedule',
  'ucan/revoke',
]

/** All that may play a part in a row, in a Space of its own. */
interface Actors {
  alice: Signer
  bob: Signer
  carol: Signer
  mallory: Signer
  space: Space
  /** An agent of a browser. */
  browser: Signer
  /** An upload service that the service trusts to attest logins. */
  authority: Signer
  /** An upload service that it knows nothing of. */
  stranger: Signer
  service: TestService
}

/** What an invocation says; what is left out is as it should be. */
interface Claim {
  issuer: Signer
  audience?: Principal
  can?: string
  with?: string
  nb?: unknown
  proofs?: (DelegationView | Link.Link)[]
  expiration?: number
  notBefore?: number
  /** All of the capabilities, if there is not one. */
  capabilities?: { can: string; with: string; nb?: unknown }[]
  /** Blocks that go along, linked or not. */
  attached?: Block[]
}

interface Sent {
  body: Uint8Array
  headers?: Record<string, string>
}

interface Row {
  name: string
  /** Builds what is sent, after whatever has to be so before. */
  invocation: (actors: Actors) => Promise<Sent>
  outcome: 'ok' | (string & {}) | { status: number; name: string }
  /** What the message of a refusal says. */
  because?: RegExp
}

/** A signer that says it is somebody else. */
const posing = (signer: Signer, as: Principal) =>
  (signer as ed25519.EdSigner).withDID(as.did() as `did:web:${string}`)

/** Signs nothing, as an account by email does. */
const absent = (did: string) =>
  Absentee.from({ id: did as `did:mailto:${string}` }) as unknown as Signer

const ALICE_BY_EMAIL = 'did:mailto:example.com:alice'

/** The same delegation with other content under the old signature. */
async function altered(
  delegation: DelegationView,
  change: Record<string, unknown>
): Promise<DelegationView> {
  const root = await blockOf({
    ...dagCBOR.decode<object>(delegation.bytes),
    ...change,
  })
  return Delegation.create({
    root: root as never,
    blocks: new Map([...delegation.export()].map((b) => [`${b.cid}`, b])),
  })
}

/** The capability that an invocation of the ability names, and its blocks. */
async function subjectOf(
  can: string,
  { space, bob, service }: Actors
): Promise<{ nb: unknown; attached: Block[] }> {
  switch (can) {
    case 'clock/advance': {
      const event = await eventOf('next')
      return { nb: { event: event.cid }, attached: [event] }
    }
    case 'authorization/request': {
      const power = await allow(space, service.agent, BACKUP_ABILITIES)
      return {
        nb: { account: 'nobody.invalid', delegation: power.cid },
        attached: blocksOf(power),
      }
    }
    case 'backup/run': {
      const power = await allow(space, service.agent, BACKUP_ABILITIES)
      return {
        nb: { account: ACCOUNT, delegation: power.cid },
        attached: blocksOf(power),
      }
    }
    case 'backup/schedule': {
      const power = await allow(space, service.agent, SCHEDULE_ABILITIES)
      return {
        nb: { account: ACCOUNT, cron: FAR_OFF, delegation: power.cid },
        attached: blocksOf(power),
      }
    }
    case 'backup/pause':
    case 'backup/resume':
    case 'backup/unschedule': {
      const { error } = await Backup.schedule(
        { issuer: space, with: space.did() },
        {
          account: ACCOUNT,
          cron: FAR_OFF,
          delegation: await allow(space, service.agent, SCHEDULE_ABILITIES),
        },
        service
      )
      assert.equal(error, undefined)
      return { nb: { account: ACCOUNT }, attached: [] }
    }
    case 'authorization/share': {
      const power = await allow(space, service.agent, BACKUP_ABILITIES)
      return {
        nb: { account: ACCOUNT, agent: bob.did(), delegation: power.cid },
        attached: blocksOf(power),
      }
    }
    case 'authorization/revoke':
      return { nb: { account: ACCOUNT }, attached: [] }
    case 'ucan/revoke': {
      const target = await allow(space, bob, ['clock/head'])
      return { nb: { ucan: target.cid }, attached: blocksOf(target) }
    }
    default:
      return { nb: {}, attached: [] }
  }
}

const blocksOf = (delegation: DelegationView) =>
  [...delegation.export()] as Block[]

async function invocationOf(
  can: string,
  actors: Actors,
  { issuer, audience, proofs = [], capabilities, ...claim }: Claim
): Promise<{ invocation: DelegationView; attached: Block[] }> {
  const subject = await subjectOf(can, actors)
  const attached = claim.attached ?? subject.attached
  const invocation = await delegate({
    issuer,
    audience: audience ?? DID.parse(actors.service.did),
    capabilities: (capabilities ?? [
      {
        can: claim.can ?? can,
        with: claim.with ?? actors.space.did(),
        ...nbOf('nb' in claim ? claim.nb : subject.nb),
      },
    ]) as never,
    proofs: proofs as never,
    // Links in the facts make the blocks part of the invocation.
    facts: [
      Object.fromEntries(attached.map(({ cid }) => [cid.toString(), cid])),
    ],
    expiration: claim.expiration ?? seconds(60),
    ...(claim.notBefore === undefined ? {} : { notBefore: claim.notBefore }),
    nonce: crypto.randomUUID(),
  })
  return { invocation, attached }
}

/** A field that is left out where there is no value for it. */
const nbOf = (nb: unknown) => (nb === undefined ? {} : { nb })

/**
 * @param blocks - beside those of the invocations, or in place of those with
 *   the same CID; they are taken at their word
 * @param without - CIDs of blocks that are left out
 */
async function messageWith(
  invocations: DelegationView[],
  blocks: Block[] = [],
  without: Link.Link[] = []
): Promise<Sent> {
  const message = await Message.build({ invocations: invocations as never })
  const all = new Map<string, Block>()
  for (const block of [...message.iterateIPLDBlocks(), ...blocks]) {
    all.set(block.cid.toString(), block)
  }
  for (const cid of [...without, message.root.cid]) all.delete(cid.toString())
  return {
    body: CAR.codec.encode({ roots: [message.root], blocks: all as never }),
  }
}

/** A row for one ability. */
const one = (
  name: string,
  can: string,
  claim: (actors: Actors) => Claim | Promise<Claim>,
  outcome: Row['outcome'],
  because?: RegExp
): Row => ({
  name: `${can} ${name}`,
  invocation: async (actors) => {
    const { invocation, attached } = await invocationOf(
      can,
      actors,
      await claim(actors)
    )
    return messageWith([invocation], attached)
  },
  outcome,
  ...(because ? { because } : {}),
})

/** The same row for each ability that can be invoked. */
const each = (
  name: string,
  claim: (actors: Actors, can: Can) => Claim | Promise<Claim>,
  outcome: Row['outcome'],
  because?: RegExp
): Row[] =>
  ABILITIES.map((can) =>
    one(name, can, (actors) => claim(actors, can), outcome, because)
  )

/** A row whose body is put together by hand. */
const sent = (
  name: string,
  invocation: Row['invocation'],
  outcome: Row['outcome'],
  because?: RegExp
): Row => ({ name, invocation, outcome, ...(because ? { because } : {}) })

/** Space → bob → carol → alice: each gives the next what it has. */
async function chainOf(
  { space, bob, carol, alice }: Actors,
  can: string,
  [first = {}, second = {}, third = {}]: Parameters<typeof allow>[3][] = []
): Promise<[DelegationView, DelegationView, DelegationView]> {
  const resource = space.did()
  const one = await allow(space, bob, [can], first)
  const two = await allow(bob, carol, [can], {
    with: resource,
    proofs: [one],
    ...second,
  })
  const three = await allow(carol, alice, [can], {
    with: resource,
    proofs: [two],
    ...third,
  })
  return [one, two, three]
}

/** Login of alice by email: what the account gives her, and who attests it. */
async function loginOf(
  { space, alice }: Actors,
  can: string,
  {
    attester,
    resource = attester?.did(),
    proof,
    audience = alice,
    expiration = Infinity,
  }: {
    attester?: Signer
    resource?: string
    proof?: Link.Link
    audience?: Principal
    expiration?: number
  }
): Promise<DelegationView[]> {
  const login = await allow(absent(ALICE_BY_EMAIL), alice, [can], {
    with: space.did(),
    proofs: [await allow(space, absent(ALICE_BY_EMAIL), [can])],
  })
  if (!attester) return [login]
  const attestation = await allow(attester, audience, ['ucan/attest'], {
    with: resource!,
    nb: { proof: proof ?? login.cid },
    expiration,
  })
  return [login, attestation]
}

async function revoke(
  { service }: Actors,
  issuer: Signer,
  delegation: DelegationView
): Promise<void> {
  const { error } = await Revocation.revoke({ issuer }, delegation, {
    ...service,
    nonce: crypto.randomUUID(),
  })
  assert.equal(error, undefined)
}

const namespaceOf = (can: string) => `${can.split('/')[0]}/*`

const otherAbility = (can: string) =>
  ABILITIES[(ABILITIES.indexOf(can as Can) + 1) % ABILITIES.length]!

/** Delegations for `backup/run` that do not do, by what is wrong with them. */
const runWith = (
  name: string,
  create: (actors: Actors) => Promise<DelegationView>,
  because: RegExp
) =>
  one(
    `with a delegation ${name}`,
    'backup/run',
    async (actors) => {
      const delegation = await create(actors)
      return {
        issuer: actors.space,
        nb: { account: ACCOUNT, delegation: delegation.cid },
        attached: blocksOf(delegation),
      }
    },
    'InsufficientDelegation',
    because
  )

/** Delegations for `backup/schedule` that do not do. */
const scheduleWith = (
  name: string,
  create: (actors: Actors) => Promise<DelegationView>,
  outcome: string,
  because?: RegExp
) =>
  one(
    `with a delegation ${name}`,
    'backup/schedule',
    async (actors) => {
      const delegation = await create(actors)
      return {
        issuer: actors.space,
        nb: { account: ACCOUNT, cron: FAR_OFF, delegation: delegation.cid },
        attached: blocksOf(delegation),
      }
    },
    outcome,
    because
  )

/** A schedule by a proof that says more than the ability. */
const scheduleBy = (
  name: string,
  limits: Record<string, unknown>,
  outcome: string,
  because?: RegExp
) =>
  one(
    name,
    'backup/schedule',
    async ({ space, alice }) => ({
      issuer: alice,
      proofs: [await allow(space, alice, ['backup/schedule'], { nb: limits })],
    }),
    outcome,
    because
  )

const ROWS: Row[] = [
  // Good ones.
  ...each('by the key of the Space', ({ space }) => ({ issuer: space }), 'ok'),
  ...each(
    'by a delegation of the ability',
    async ({ space, alice }, can) => ({
      issuer: alice,
      proofs: [await allow(space, alice, [can])],
    }),
    'ok'
  ),
  ...each(
    'by a delegation of the namespace',
    async ({ space, alice }, can) => ({
      issuer: alice,
      proofs: [await allow(space, alice, [namespaceOf(can)])],
    }),
    'ok'
  ),
  ...each(
    'by a delegation of everything in the Space',
    async ({ space, alice }) => ({
      issuer: alice,
      proofs: [await allow(space, alice, ['*'])],
    }),
    'ok'
  ),
  ...each(
    'by a delegation of all that the Space has',
    async ({ space, alice }) => ({
      issuer: alice,
      proofs: [await allow(space, alice, ['*'], { with: 'ucan:*' })],
    }),
    'ok'
  ),
  ...each(
    'by one delegation of several abilities',
    async ({ space, alice }, can) => ({
      issuer: alice,
      proofs: [await allow(space, alice, ['upload/add', can, 'space/*'])],
    }),
    'ok'
  ),
  ...each(
    'by a chain that is five delegations long and narrows',
    async (actors, can) => {
      const { space, alice, bob, carol } = actors
      const [dave, erin] = [await ed25519.generate(), await ed25519.generate()]
      const agents = [space, bob, carol, dave, erin, alice]
      let proofs: DelegationView[] = []
      for (const [i, granted] of [
        '*',
        '*',
        namespaceOf(can),
        namespaceOf(can),
        can,
      ].entries()) {
        const proof = await allow(agents[i]!, agents[i + 1]!, [granted], {
          with: space.did(),
          proofs,
        })
        proofs = [proof]
      }
      return { issuer: alice, proofs }
    },
    'ok'
  ),
  ...each(
    'by an agent with an RSA key',
    async ({ space, browser }, can) => ({
      issuer: browser,
      proofs: [await allow(space, browser, [can])],
    }),
    'ok'
  ),
  ...each(
    'by what an agent with an RSA key delegated',
    async ({ space, browser, alice }, can) => ({
      issuer: alice,
      proofs: [
        await allow(browser, alice, [can], {
          with: space.did(),
          proofs: [await allow(space, browser, [can])],
        }),
      ],
    }),
    'ok'
  ),
  ...each(
    'by a login that a trusted authority attests',
    async (actors, can) => ({
      issuer: actors.alice,
      proofs: await loginOf(actors, can, { attester: actors.authority }),
    }),
    'ok'
  ),
  ...each(
    'by what a trusted authority delegated with its own key',
    async ({ space, authority, alice }, can) => ({
      issuer: alice,
      proofs: [
        await allow(authority, alice, [can], {
          with: space.did(),
          proofs: [await allow(space, authority, [can])],
        }),
      ],
    }),
    'ok'
  ),
  ...each(
    'to the did:key of the service',
    ({ space, service }) => ({
      issuer: space,
      audience: DID.parse(service.agent),
    }),
    'ok'
  ),
  ...each(
    'that began and has not ended',
    async ({ space, alice }, can) => ({
      issuer: alice,
      notBefore: seconds(-60),
      expiration: seconds(60),
      proofs: [
        await allow(space, alice, [can], {
          notBefore: seconds(-60),
          expiration: seconds(60),
        }),
      ],
    }),
    'ok'
  ),
  ...each(
    'by a good proof beside bad ones',
    async ({ space, alice, bob, mallory }, can) => ({
      issuer: alice,
      proofs: [
        await allow(mallory, alice, [can], { with: space.did() }),
        await allow(space, bob, [can]),
        await allow(space, alice, ['upload/*'], { expiration: seconds(-1) }),
        await allow(space, alice, [can]),
      ],
    }),
    'ok'
  ),
  ...each(
    'by a proof whose twin was revoked',
    async (actors, can) => {
      const { space, alice } = actors
      const twin = await allow(space, alice, [can], {
        expiration: seconds(3600),
      })
      await revoke(actors, space, twin)
      return { issuer: alice, proofs: [await allow(space, alice, [can])] }
    },
    'ok'
  ),
  one(
    'by a proof for that event',
    'clock/advance',
    async ({ space, alice }) => {
      const event = await eventOf('named')
      return {
        issuer: alice,
        nb: { event: event.cid },
        attached: [event],
        proofs: [
          await allow(space, alice, ['clock/advance'], {
            nb: { event: event.cid },
          }),
        ],
      }
    },
    'ok'
  ),
  one(
    'by a proof for that account',
    'backup/run',
    async ({ space, alice }) => ({
      issuer: alice,
      proofs: [
        await allow(space, alice, ['backup/run'], { nb: { account: ACCOUNT } }),
      ],
    }),
    'ok'
  ),
  one(
    'of fewer parts than the proof allows',
    'backup/run',
    async (actors) => {
      const { space, alice } = actors
      const { nb, attached } = await subjectOf('backup/run', actors)
      return {
        issuer: alice,
        nb: { ...(nb as object), include: [] },
        attached,
        proofs: [
          await allow(space, alice, ['backup/run'], {
            nb: { include: ['blobs'] },
          }),
        ],
      }
    },
    'ok'
  ),
  one(
    'of a delegation to who revokes it',
    'ucan/revoke',
    async ({ space, alice }) => {
      const target = await allow(space, alice, ['clock/head'])
      return {
        issuer: alice,
        with: alice.did(),
        nb: { ucan: target.cid },
        attached: blocksOf(target),
      }
    },
    'ok'
  ),
  one(
    'of a delegation below that of who revokes it',
    'ucan/revoke',
    async (actors) => {
      const [, , target] = await chainOf(actors, 'clock/head')
      return {
        issuer: actors.bob,
        with: actors.bob.did(),
        nb: { ucan: target.cid },
        attached: blocksOf(target),
      }
    },
    'ok'
  ),

  // Out of time.
  ...each(
    'that has expired',
    ({ space }) => ({ issuer: space, expiration: seconds(-1) }),
    'Unauthorized',
    /has expired/
  ),
  ...each(
    'that is not valid yet',
    ({ space }) => ({ issuer: space, notBefore: seconds(60) }),
    'Unauthorized',
    /not valid before/
  ),
  ...[0, 1, 2].flatMap((link) => [
    ...each(
      `by a chain whose delegation ${link + 1} of 3 has expired`,
      async (actors, can) => {
        const options = [{}, {}, {}].with(link, { expiration: seconds(-1) })
        const [, , proof] = await chainOf(actors, can, options)
        return { issuer: actors.alice, proofs: [proof] }
      },
      'Unauthorized',
      /has expired/
    ),
    ...each(
      `by a chain whose delegation ${link + 1} of 3 is not valid yet`,
      async (actors, can) => {
        const options = [{}, {}, {}].with(link, { notBefore: seconds(60) })
        const [, , proof] = await chainOf(actors, can, options)
        return { issuer: actors.alice, proofs: [proof] }
      },
      'Unauthorized',
      /not valid before/
    ),
    ...each(
      `by a chain whose delegation ${link + 1} of 3 was revoked by who issued it`,
      async (actors, can) => {
        const chain = await chainOf(actors, can)
        const issuers = [actors.space, actors.bob, actors.carol]
        await revoke(actors, issuers[link]!, chain[link]!)
        return { issuer: actors.alice, proofs: [chain[2]] }
      },
      'Unauthorized',
      /has been revoked/
    ),
    ...each(
      `by a chain whose delegation ${link + 1} of 3 the Space revoked`,
      async (actors, can) => {
        const chain = await chainOf(actors, can)
        await revoke(actors, actors.space, chain[link]!)
        return { issuer: actors.alice, proofs: [chain[2]] }
      },
      'Unauthorized',
      /has been revoked/
    ),
    ...each(
      `by a chain whose delegation ${link + 1} of 3 was given back`,
      async (actors, can) => {
        const chain = await chainOf(actors, can)
        const audiences = [actors.bob, actors.carol, actors.alice]
        await revoke(actors, audiences[link]!, chain[link]!)
        return { issuer: actors.alice, proofs: [chain[2]] }
      },
      'Unauthorized',
      /has been revoked/
    ),
  ]),

  // Forged.
  ...each(
    'under the name of the Space, signed by another',
    ({ space, mallory }) => ({ issuer: posing(mallory, space) }),
    'Unauthorized',
    /does not has a valid signature/
  ),
  ...each(
    'under the name of an agent, signed by another',
    async ({ space, alice, mallory }, can) => ({
      issuer: posing(mallory, alice),
      proofs: [await allow(space, alice, [can])],
    }),
    'Unauthorized',
    /does not has a valid signature/
  ),
  ...each(
    'under the name of an agent with an RSA key, signed by another',
    async ({ space, browser, mallory }, can) => ({
      issuer: posing(mallory, browser),
      proofs: [await allow(space, browser, [can])],
    }),
    'Unauthorized',
    /does not has a valid signature/
  ),
  ...each(
    'by a proof under the name of the Space, signed by another',
    async ({ space, mallory }, can) => ({
      issuer: mallory,
      proofs: [
        await allow(posing(mallory, space), mallory, [can], {
          with: space.did(),
        }),
      ],
    }),
    'Unauthorized',
    /does not has a valid signature/
  ),
  ...each(
    'by a chain whose middle is signed by another',
    async (actors, can) => {
      const { space, alice, bob, mallory } = actors
      const first = await allow(space, bob, [can])
      const proof = await allow(posing(mallory, bob), alice, [can], {
        with: space.did(),
        proofs: [first],
      })
      return { issuer: alice, proofs: [proof] }
    },
    'Unauthorized',
    /does not has a valid signature/
  ),
  ...each(
    'by a proof that nobody signed',
    async ({ space, mallory }, can) => ({
      issuer: mallory,
      proofs: [await allow(absent(space.did()), mallory, [can])],
    }),
    'Unauthorized',
    /does not has a valid signature/
  ),
  ...each(
    'by a proof that was made out to another agent later',
    async ({ space, alice, mallory }, can) => ({
      issuer: mallory,
      proofs: [
        await altered(await allow(space, alice, [can]), {
          aud: DID.encode(mallory),
        }),
      ],
    }),
    'Unauthorized',
    /does not has a valid signature/
  ),
  ...each(
    'by a proof whose expiration was put off later',
    async ({ space, alice }, can) => ({
      issuer: alice,
      proofs: [
        await altered(
          await allow(space, alice, [can], { expiration: seconds(-60) }),
          { exp: seconds(60) }
        ),
      ],
    }),
    'Unauthorized',
    /does not has a valid signature/
  ),
  ...each(
    'by a proof whose ability was widened later',
    async ({ space, alice }) => ({
      issuer: alice,
      proofs: [
        await altered(await allow(space, alice, ['upload/list']), {
          att: [{ can: '*', with: space.did() }],
        }),
      ],
    }),
    'Unauthorized',
    /does not has a valid signature/
  ),

  // Bad chains.
  ...each(
    'without a proof',
    ({ alice }) => ({ issuer: alice }),
    'Unauthorized',
    /Delegated capability not found/
  ),
  ...each(
    'by a proof for another agent',
    async ({ space, bob, mallory }, can) => ({
      issuer: mallory,
      proofs: [await allow(space, bob, [can])],
    }),
    'Unauthorized',
    /Delegation audience is/
  ),
  ...each(
    'by a chain that goes through somebody who was given nothing',
    async ({ space, alice, bob, mallory }, can) => ({
      issuer: alice,
      proofs: [
        await allow(mallory, alice, [can], {
          with: space.did(),
          proofs: [await allow(space, bob, [can])],
        }),
      ],
    }),
    'Unauthorized',
    /Delegation audience is/
  ),
  ...each(
    'by a proof from somebody who does not own the Space',
    async ({ space, alice, mallory }, can) => ({
      issuer: alice,
      proofs: [await allow(mallory, alice, [can], { with: space.did() })],
    }),
    'Unauthorized',
    /Delegated capability not found/
  ),
  ...each(
    'by all that somebody has who does not own the Space',
    async ({ alice, mallory }) => ({
      issuer: alice,
      proofs: [await allow(mallory, alice, ['*'], { with: 'ucan:*' })],
    }),
    'Unauthorized',
    /Delegated capability not found/
  ),
  ...each(
    'by what an agent delegated to itself',
    async ({ space, mallory }, can) => ({
      issuer: mallory,
      proofs: [await allow(mallory, mallory, [can], { with: space.did() })],
    }),
    'Unauthorized',
    /Delegated capability not found/
  ),
  ...each(
    'by a proof in another Space',
    async ({ alice }, can) => ({
      issuer: alice,
      proofs: [await allow(await ed25519.generate(), alice, [can])],
    }),
    'Unauthorized',
    /cannot derive did:key:\w+ from did:key:/
  ),
  ...each(
    'by a proof whose block is not there',
    async ({ space, alice }, can) => ({
      issuer: alice,
      proofs: [(await allow(space, alice, [can])).cid],
    }),
    'Unauthorized',
    /is not included/
  ),
  ...each(
    'by a chain whose middle is not there',
    async ({ space, bob, alice }, can) => ({
      issuer: alice,
      proofs: [
        await allow(bob, alice, [can], {
          with: space.did(),
          proofs: [(await allow(space, bob, [can])).cid as never],
        }),
      ],
    }),
    'Unauthorized',
    /is not included/
  ),

  // More than was given.
  ...each(
    'by a proof of another ability',
    async ({ space, alice }, can) => ({
      issuer: alice,
      proofs: [await allow(space, alice, [otherAbility(can)])],
    }),
    'Unauthorized',
    /Delegated capability not found.*Encountered unknown/s
  ),
  ...each(
    'by a proof of abilities in other namespaces',
    async ({ space, alice }, can) => ({
      issuer: alice,
      proofs: [
        await allow(
          space,
          alice,
          [
            'space/*',
            'upload/*',
            ...ABILITIES.map(namespaceOf).filter(
              (namespace) => namespace !== namespaceOf(can)
            ),
          ].filter((granted, i, all) => all.indexOf(granted) === i)
        ),
      ],
    }),
    'Unauthorized',
    /Delegated capability not found.*Encountered unknown/s
  ),
  ...each(
    'by a proof of what is below the ability',
    async ({ space, alice }, can) => ({
      issuer: alice,
      proofs: [await allow(space, alice, [`${can}/*`])],
    }),
    'Unauthorized',
    /Delegated capability not found.*Encountered unknown/s
  ),
  ...each(
    'by a chain that widens in the middle',
    async ({ space, alice, bob }, can) => ({
      issuer: alice,
      proofs: [
        await allow(bob, alice, ['*'], {
          with: space.did(),
          proofs: [await allow(space, bob, [otherAbility(can)])],
        }),
      ],
    }),
    'Unauthorized',
    /Delegated capability not found.*Encountered unknown/s
  ),
  ...each(
    'in a Space to which the proof was carried over',
    async ({ space, alice, bob }, can) => {
      const other = await ed25519.generate()
      return {
        issuer: alice,
        proofs: [
          await allow(bob, alice, [can], {
            with: space.did(),
            proofs: [await allow(other, bob, [can])],
          }),
        ],
      }
    },
    'Unauthorized',
    /cannot derive did:key:\w+ from did:key:/
  ),
  one(
    'by a proof for another event',
    'clock/advance',
    async ({ space, alice }) => ({
      issuer: alice,
      proofs: [
        await allow(space, alice, ['clock/advance'], {
          nb: { event: (await eventOf('another')).cid },
        }),
      ],
    }),
    'Unauthorized',
    /the delegation is for event/
  ),
  one(
    'by a proof for another account',
    'backup/run',
    async ({ space, alice }) => ({
      issuer: alice,
      proofs: [
        await allow(space, alice, ['backup/run'], {
          nb: { account: OTHER_ACCOUNT },
        }),
      ],
    }),
    'Unauthorized',
    /the delegation is for account/
  ),
  one(
    'of another account in the middle of the chain',
    'backup/run',
    async (actors) => {
      const [, , proof] = await chainOf(actors, 'backup/run', [
        { nb: { account: OTHER_ACCOUNT } },
      ])
      return { issuer: actors.alice, proofs: [proof] }
    },
    'Unauthorized',
    /the delegation is for account/
  ),
  one(
    'of all parts by a proof of none',
    'backup/run',
    async ({ space, alice }) => ({
      issuer: alice,
      proofs: [
        await allow(space, alice, ['backup/run'], { nb: { include: [] } }),
      ],
    }),
    'Unauthorized',
    /limits include to \[\]; say which/
  ),
  one(
    'of more parts than the proof allows',
    'backup/run',
    async (actors) => {
      const { space, alice } = actors
      const { nb, attached } = await subjectOf('backup/run', actors)
      return {
        issuer: alice,
        nb: { ...(nb as object), include: ['blobs'] },
        attached,
        proofs: [
          await allow(space, alice, ['backup/run'], { nb: { include: [] } }),
        ],
      }
    },
    'Unauthorized',
    /limits include to \[\], without blobs/
  ),
  one(
    'with another delegation than the proof names',
    'backup/run',
    async ({ space, alice, bob }) => ({
      issuer: alice,
      proofs: [
        await allow(space, alice, ['backup/run'], {
          nb: { delegation: (await allow(space, bob, ['*'])).cid },
        }),
      ],
    }),
    'Unauthorized',
    /the delegation is for delegation/
  ),
  one(
    'of all runs by a proof for one',
    'backup/status',
    async ({ space, alice }) => ({
      issuer: alice,
      proofs: [
        await allow(space, alice, ['backup/status'], {
          nb: { run: (await blockOf('run')).cid },
        }),
      ],
    }),
    'Unauthorized',
    /the delegation is for run .* not for all/
  ),
  one(
    'of another delegation than the proof names',
    'ucan/revoke',
    async ({ space, alice, bob }) => ({
      issuer: alice,
      proofs: [
        await allow(space, alice, ['ucan/revoke'], {
          nb: { ucan: (await allow(space, bob, ['*'])).cid },
        }),
      ],
    }),
    'Unauthorized',
    /the delegation is for ucan/
  ),

  // Logins by email.
  ...each(
    'by a login that nobody attests',
    async (actors, can) => ({
      issuer: actors.alice,
      proofs: await loginOf(actors, can, {}),
    }),
    'Unauthorized',
    /Unable to resolve 'did:mailto/
  ),
  ...each(
    'by a login that an unknown authority attests',
    async (actors, can) => ({
      issuer: actors.alice,
      proofs: await loginOf(actors, can, { attester: actors.stranger }),
    }),
    'Unauthorized',
    /'did:mailto.*'did:web:elsewhere/s
  ),
  ...each(
    'by a login that the agent attests in the name of the service',
    async (actors, can) => ({
      issuer: actors.alice,
      proofs: await loginOf(actors, can, {
        attester: actors.alice,
        resource: actors.service.did,
      }),
    }),
    'Unauthorized',
    /has an invalid session.*Delegated capability not found/s
  ),
  ...each(
    'by a login that somebody attests under the name of the authority',
    async (actors, can) => ({
      issuer: actors.alice,
      proofs: await loginOf(actors, can, {
        attester: posing(actors.mallory, actors.authority),
      }),
    }),
    'Unauthorized',
    /'did:mailto.*up\.example does not has a valid signature/s
  ),
  ...each(
    'by a login while another one is attested',
    async (actors, can) => ({
      issuer: actors.alice,
      proofs: await loginOf(actors, can, {
        attester: actors.authority,
        proof: (await allow(actors.space, actors.alice, [can])).cid,
      }),
    }),
    'Unauthorized',
    /Unable to resolve 'did:mailto/
  ),
  ...each(
    'by a login that is attested to another agent',
    async (actors, can) => ({
      issuer: actors.alice,
      proofs: await loginOf(actors, can, {
        attester: actors.authority,
        audience: actors.bob,
      }),
    }),
    'Unauthorized',
    /Delegation audience is.*'did:mailto/s
  ),
  ...each(
    'by a login whose attestation has expired',
    async (actors, can) => ({
      issuer: actors.alice,
      proofs: await loginOf(actors, can, {
        attester: actors.authority,
        expiration: seconds(-1),
      }),
    }),
    'Unauthorized',
    /'did:mailto.*has expired/s
  ),
  ...each(
    'by a login whose attestation was revoked',
    async (actors, can) => {
      const proofs = await loginOf(actors, can, { attester: actors.authority })
      await revoke(actors, actors.alice, proofs[1]!)
      return { issuer: actors.alice, proofs }
    },
    'Unauthorized',
    /'did:mailto.*ucan\/attest/s
  ),
  ...each(
    'by what an unknown did:web delegated',
    async ({ space, stranger, alice }, can) => ({
      issuer: alice,
      proofs: [
        await allow(stranger, alice, [can], {
          with: space.did(),
          proofs: [await allow(space, stranger, [can])],
        }),
      ],
    }),
    'Unauthorized',
    /Unable to resolve 'did:web:elsewhere/
  ),

  // For somebody else.
  ...each(
    'to another service',
    ({ space }) => ({
      issuer: space,
      audience: DID.parse('did:web:elsewhere.example'),
    }),
    'InvalidAudience',
    /did:web:elsewhere\.example/
  ),
  ...each(
    'to a service that this one trusts',
    ({ space, authority }) => ({ issuer: space, audience: authority }),
    'InvalidAudience',
    /did:web:up\.example/
  ),
  ...each(
    'to another agent',
    ({ space, alice }) => ({ issuer: space, audience: alice }),
    'InvalidAudience'
  ),

  // What is no capability.
  ...each(
    'together with another capability',
    ({ space }, can) => ({
      issuer: space,
      capabilities: [
        { can, with: space.did() },
        { can: 'clock/head', with: space.did() },
      ],
    }),
    'InvocationCapabilityError'
  ),
  ...[
    'clock/*',
    'backup/*',
    'ucan/*',
    '*',
    'clock/nothing',
    'backup/perform',
    'space/blob/add',
    'ucan/attest',
    '__proto__/toString',
    'clock/head/call',
  ].map((can) =>
    one(
      'by the key of the Space',
      can,
      ({ space }) => ({ issuer: space }),
      'HandlerNotFound'
    )
  ),
  ...['did:web:example.com', 'did:mailto:example.com:alice', 'ucan:*'].flatMap(
    (resource) =>
      ['clock/head', 'clock/advance', 'backup/run', 'backup/status'].map(
        (can) =>
          one(
            `with ${resource}`,
            can,
            ({ space }) => ({ issuer: space, with: resource }),
            'Unauthorized',
            /Expected a did:key:/
          )
      )
  ),
  ...[null, 1, 'not a URI', '', [], {}].map((resource) =>
    sent(
      `clock/head with ${JSON.stringify(resource)}`,
      async (actors) => {
        const { invocation } = await invocationOf('clock/head', actors, {
          issuer: actors.space,
        })
        const { root } = await altered(invocation, {
          att: [{ can: 'clock/head', with: resource }],
        })
        const message = await blockOf({
          'ucanto/message@7.0.0': { execute: [root.cid] },
        })
        return {
          body: CAR.codec.encode({
            roots: [message] as never,
            blocks: new Map([[`${root.cid}`, root]]) as never,
          }),
        }
      },
      { status: 400, name: 'InvalidBody' },
      /cannot be read/
    )
  ),
  ...Object.entries<[string, unknown][]>({
    'clock/advance': [
      ['no nb', undefined],
      ['no event', {}],
      ['a text as event', { event: 'bafy' }],
      ['a number as event', { event: 1 }],
      ['bytes as event', { event: new Uint8Array(36) }],
      ['null as event', { event: null }],
      ['a list of events', { event: [] }],
    ],
    'backup/run': [
      ['no nb', undefined],
      ['no account', {}],
      ['a number as account', { account: 1 }],
      ['a handle as account', { account: 'alice.test' }],
      ['a key as account', { account: 'did:key:z6Mk' }],
      ['an empty account', { account: 'did:plc:' }],
      ['a text as parts', { account: ACCOUNT, include: 'blobs' }],
      ['a part that there is not', { account: ACCOUNT, include: ['likes'] }],
      ['a text as delegation', { account: ACCOUNT, delegation: 'bafy' }],
    ],
    'backup/schedule': [
      ['no nb', undefined],
      ['no delegation', { account: ACCOUNT, every: HOUR }],
      ['a handle as account', { account: 'alice.test', every: HOUR }],
      ['a text as rhythm', { account: ACCOUNT, every: 'hour' }],
    ],
    'backup/pause': [
      ['no account', {}],
      ['a text as end', { account: ACCOUNT, until: 'tomorrow' }],
    ],
    'backup/resume': [['no account', {}]],
    'backup/unschedule': [
      ['no account', {}],
      ['a number as account', { account: 1 }],
    ],
    'backup/status': [
      ['a text as run', { run: 'bafy' }],
      ['a number as run', { run: 1 }],
    ],
    'ucan/revoke': [
      ['no nb', undefined],
      ['no delegation', {}],
      ['a text as delegation', { ucan: 'bafy' }],
    ],
  }).flatMap(([can, cases]) =>
    cases.map(([name, nb]) =>
      one(
        `with ${name}`,
        can,
        ({ space }) => ({ issuer: space, nb }),
        'Unauthorized',
        /malformed/
      )
    )
  ),
  one(
    'with a list of proofs that is none',
    'ucan/revoke',
    async ({ space, bob }) => ({
      issuer: space,
      nb: { ucan: (await allow(space, bob, ['*'])).cid, proof: 'bafy' },
    }),
    'Unauthorized',
    /malformed/
  ),

  // Events that are not those that are named.
  one(
    'to an event while another one is attached',
    'clock/advance',
    async ({ space }) => ({
      issuer: space,
      nb: { event: (await eventOf('named')).cid },
      attached: [await eventOf('attached')],
    }),
    'MissingBlock'
  ),
  one(
    'to an event whose parent is not attached',
    'clock/advance',
    async ({ space }) => {
      const event = await eventOf('child', [await eventOf('parent')])
      return {
        issuer: space,
        nb: { event: event.cid },
        attached: [event],
      }
    },
    'MissingBlock'
  ),
  one(
    'to what is no event',
    'clock/advance',
    async ({ space }) => {
      const block = await blockOf({ name: 'state' })
      return { issuer: space, nb: { event: block.cid }, attached: [block] }
    },
    'InvalidEvent'
  ),
  one(
    'to an event under a CID of another codec',
    'clock/advance',
    async ({ space }) => {
      const { cid, bytes } = await eventOf('event')
      const other = { cid: Link.create(raw.code, cid.multihash), bytes }
      return { issuer: space, nb: { event: other.cid }, attached: [other] }
    },
    'InvalidEvent'
  ),
  one(
    'to an event inside its CID',
    'clock/advance',
    async ({ space }) => {
      const { cid, bytes } = await eventOf('event')
      const other = {
        cid: Link.create(cid.code, identity.digest(bytes)),
        bytes,
      }
      return { issuer: space, nb: { event: other.cid }, attached: [other] }
    },
    'InvalidEvent'
  ),
  one(
    'to the delegation that allows it',
    'clock/advance',
    async ({ space, alice }) => {
      const proof = await allow(space, alice, ['clock/*'])
      return {
        issuer: alice,
        proofs: [proof],
        nb: { event: proof.cid },
        attached: blocksOf(proof),
      }
    },
    'InvalidEvent'
  ),

  // Delegations that a run would rest upon.
  one(
    'with a delegation that is not attached',
    'backup/run',
    async ({ space, service }) => ({
      issuer: space,
      nb: {
        account: ACCOUNT,
        delegation: (await allow(space, service.agent, ['*'])).cid,
      },
      attached: [],
    }),
    'InsufficientDelegation',
    /is not attached/
  ),
  one(
    'with an event in place of a delegation',
    'backup/run',
    async ({ space }) => {
      const event = await eventOf('event')
      return {
        issuer: space,
        nb: { account: ACCOUNT, delegation: event.cid },
        attached: [event],
      }
    },
    'InsufficientDelegation',
    /cannot be read/
  ),
  runWith(
    'to another agent',
    ({ space, mallory }) => allow(space, mallory, BACKUP_ABILITIES),
    /nothing is delegated to the service/
  ),
  runWith(
    'in another Space',
    async ({ service }) =>
      allow(await ed25519.generate(), service.agent, BACKUP_ABILITIES),
    /does not allow/
  ),
  runWith(
    'from somebody who does not own the Space',
    ({ space, mallory, service }) =>
      allow(mallory, service.agent, BACKUP_ABILITIES, { with: space.did() }),
    /does not allow/
  ),
  runWith(
    'under the name of the Space, signed by another',
    ({ space, mallory, service }) =>
      allow(posing(mallory, space), service.agent, BACKUP_ABILITIES),
    /does not allow .*valid signature/s
  ),
  runWith(
    'that has expired',
    ({ space, service }) =>
      allow(space, service.agent, BACKUP_ABILITIES, {
        expiration: seconds(-1),
      }),
    /does not allow .*has expired/s
  ),
  runWith(
    'that is not valid yet',
    ({ space, service }) =>
      allow(space, service.agent, BACKUP_ABILITIES, {
        notBefore: seconds(60),
      }),
    /does not allow .*not valid before/s
  ),
  runWith(
    'that was revoked',
    async (actors) => {
      const delegation = await allow(
        actors.space,
        actors.service.agent,
        BACKUP_ABILITIES
      )
      await revoke(actors, actors.space, delegation)
      return delegation
    },
    /does not allow .*has been revoked/s
  ),
  ...BACKUP_ABILITIES.map((lacking) =>
    runWith(
      `without ${lacking}`,
      ({ space, service }) =>
        allow(
          space,
          service.agent,
          BACKUP_ABILITIES.filter((can) => can !== lacking)
        ),
      new RegExp(`does not allow ${lacking} in`)
    )
  ),

  // Schedules.
  scheduleBy('by a proof for that account', { account: ACCOUNT }, 'ok'),
  scheduleBy('by a proof for that rhythm', { cron: FAR_OFF }, 'ok'),
  scheduleBy(
    'by a proof for another account',
    { account: OTHER_ACCOUNT },
    'Unauthorized',
    /the delegation is for account/
  ),
  scheduleBy(
    'by a proof for another rhythm',
    { every: HOUR },
    'Unauthorized',
    /the delegation is for every/
  ),
  scheduleBy(
    'by a proof for another time',
    { cron: '0 4 * * *' },
    'Unauthorized',
    /the delegation is for cron/
  ),
  scheduleBy(
    'of all parts by a proof of none',
    { include: [] },
    'Unauthorized',
    /limits include to/
  ),
  ...['backup/pause', 'backup/resume', 'backup/unschedule'].flatMap((can) => [
    one(
      'by a proof for another account',
      can,
      async ({ space, alice }) => ({
        issuer: alice,
        proofs: [
          await allow(space, alice, [can], { nb: { account: OTHER_ACCOUNT } }),
        ],
      }),
      'Unauthorized',
      /the delegation is for account/
    ),
  ]),
  ...['backup/pause', 'backup/resume'].map((can) =>
    one(
      'of an account without a schedule',
      can,
      ({ space }) => ({ issuer: space, nb: { account: OTHER_ACCOUNT } }),
      'ScheduleNotFound'
    )
  ),
  one(
    'for longer than the proof allows',
    'backup/pause',
    async ({ space, alice }) => ({
      issuer: alice,
      proofs: [
        await allow(space, alice, ['backup/pause'], {
          nb: { until: seconds(HOUR) },
        }),
      ],
    }),
    'Unauthorized',
    /the delegation is for until/
  ),
  one(
    'that ends before it begins',
    'backup/pause',
    ({ space }) => ({
      issuer: space,
      nb: { account: ACCOUNT, until: seconds(-60) },
    }),
    'InvalidPause'
  ),
  scheduleWith(
    'to another agent',
    ({ space, mallory }) => allow(space, mallory, SCHEDULE_ABILITIES),
    'DelegationAudienceMismatch'
  ),
  scheduleWith(
    'in another Space',
    async ({ service }) =>
      allow(await ed25519.generate(), service.agent, SCHEDULE_ABILITIES),
    'DelegationSpaceMismatch'
  ),
  scheduleWith(
    'that has expired',
    ({ space, service }) =>
      allow(space, service.agent, SCHEDULE_ABILITIES, {
        expiration: seconds(-1),
      }),
    'DelegationExpired'
  ),
  scheduleWith(
    'that is not valid yet',
    ({ space, service }) =>
      allow(space, service.agent, SCHEDULE_ABILITIES, {
        notBefore: seconds(HOUR),
      }),
    'InsufficientDelegation',
    /not valid before/
  ),
  scheduleWith(
    'for another account',
    async ({ space, service }) =>
      delegate({
        issuer: space,
        audience: DID.parse(service.agent),
        capabilities: SCHEDULE_ABILITIES.map((can) => ({
          can,
          with: space.did(),
          ...(can === 'backup/run' ? { nb: { account: OTHER_ACCOUNT } } : {}),
        })) as never,
        expiration: Infinity,
      }),
    'DelegationAccountMismatch'
  ),
  scheduleWith(
    'from somebody who does not own the Space',
    ({ space, mallory, service }) =>
      allow(mallory, service.agent, SCHEDULE_ABILITIES, { with: space.did() }),
    'InsufficientDelegation',
    /Delegated capability not found/
  ),
  scheduleWith(
    'under the name of the Space, signed by another',
    ({ space, mallory, service }) =>
      allow(posing(mallory, space), service.agent, SCHEDULE_ABILITIES),
    'InsufficientDelegation',
    /valid signature/
  ),
  scheduleWith(
    'that was revoked',
    async (actors) => {
      const { space, service } = actors
      const delegation = await allow(space, service.agent, SCHEDULE_ABILITIES)
      await revoke(actors, space, delegation)
      return delegation
    },
    'DelegationRevoked'
  ),
  scheduleWith(
    'whose proof was revoked',
    async (actors) => {
      const { space, alice, service } = actors
      const proof = await allow(space, alice, SCHEDULE_ABILITIES)
      await revoke(actors, space, proof)
      return allow(alice, service.agent, SCHEDULE_ABILITIES, {
        with: space.did(),
        proofs: [proof],
      })
    },
    'DelegationRevoked'
  ),
  ...SCHEDULE_ABILITIES.map((lacking) =>
    scheduleWith(
      `without ${lacking}`,
      ({ space, service }) =>
        allow(
          space,
          service.agent,
          SCHEDULE_ABILITIES.filter((can) => can !== lacking)
        ),
      'InsufficientDelegation',
      new RegExp(`does not allow ${lacking} in`)
    )
  ),

  // Runs and revocations of others.
  one(
    'of a run that is not there',
    'backup/status',
    async ({ space }) => ({
      issuer: space,
      nb: { run: (await blockOf('run')).cid },
    }),
    'RunNotFound'
  ),
  one(
    'of a delegation that is not attached',
    'ucan/revoke',
    async ({ space, bob }) => ({
      issuer: space,
      nb: { ucan: (await allow(space, bob, ['*'])).cid },
      attached: [],
    }),
    'UCANNotFound'
  ),
  one(
    'of an event',
    'ucan/revoke',
    async ({ space }) => {
      const event = await eventOf('event')
      return { issuer: space, nb: { ucan: event.cid }, attached: [event] }
    },
    'UCANNotFound'
  ),
  one(
    'of a delegation of others',
    'ucan/revoke',
    async ({ space, bob, mallory }) => {
      const target = await allow(space, bob, ['clock/head'])
      return {
        issuer: mallory,
        with: mallory.did(),
        nb: { ucan: target.cid },
        attached: blocksOf(target),
      }
    },
    'UnauthorizedRevocation'
  ),
  one(
    'of a delegation above that of who revokes it',
    'ucan/revoke',
    async (actors) => {
      const [target] = await chainOf(actors, 'clock/head')
      return {
        issuer: actors.carol,
        with: actors.carol.did(),
        nb: { ucan: target.cid },
        attached: blocksOf(target),
      }
    },
    'UnauthorizedRevocation'
  ),
  one(
    'in the name of the Space without a proof',
    'ucan/revoke',
    async ({ space, bob }) => {
      const target = await allow(space, bob, ['clock/head'])
      return {
        issuer: bob,
        nb: { ucan: target.cid },
        attached: blocksOf(target),
      }
    },
    'Unauthorized',
    /Delegated capability not found/
  ),

  // Blocks that are not those of their CIDs.
  ...ABILITIES.flatMap((can) => [
    sent(
      `${can} with another proof under the CID of the proof`,
      async (actors) => {
        const { space, alice, mallory } = actors
        const narrow = await allow(space, mallory, ['upload/list'])
        const wide = await allow(posing(alice, space), mallory, ['*'])
        const { invocation, attached } = await invocationOf(can, actors, {
          issuer: mallory,
          proofs: [narrow],
        })
        return messageWith(
          [invocation],
          [...attached, { cid: narrow.cid, bytes: wide.bytes }]
        )
      },
      { status: 400, name: 'InvalidBody' },
      /do not hash to its CID/
    ),
    sent(
      `${can} with one byte of its block altered`,
      async (actors) => {
        const { invocation, attached } = await invocationOf(can, actors, {
          issuer: actors.space,
        })
        const bytes = new Uint8Array(invocation.bytes)
        bytes[bytes.length - 1]! ^= 1
        return messageWith(
          [invocation],
          [...attached, { cid: invocation.cid, bytes }]
        )
      },
      { status: 400, name: 'InvalidBody' },
      /do not hash to its CID/
    ),
    sent(
      `${can} without its block`,
      async (actors) => {
        const { invocation, attached } = await invocationOf(can, actors, {
          issuer: actors.space,
        })
        return messageWith([invocation], attached, [invocation.cid])
      },
      { status: 400, name: 'InvalidBody' },
      /not a message/
    ),
    sent(
      `${can} by proofs whose blocks were left out`,
      async (actors) => {
        const { invocation, attached } = await invocationOf(can, actors, {
          issuer: actors.alice,
          proofs: [await allow(actors.space, actors.alice, [can])],
        })
        return messageWith(
          [invocation],
          attached,
          invocation.proofs.map((proof) => proof.link() as Link.Link)
        )
      },
      'Unauthorized',
      /is not included/
    ),
    sent(
      `${can} whose proof was exchanged in its block`,
      async (actors) => {
        const { space, alice, bob } = actors
        const good = await allow(space, alice, [can])
        const { invocation, attached } = await invocationOf(can, actors, {
          issuer: alice,
          proofs: [await allow(space, bob, [can])],
        })
        const exchanged = await altered(invocation, { prf: [good.cid] })
        return messageWith([exchanged], [...attached, ...blocksOf(good)])
      },
      'Unauthorized',
      /does not has a valid signature/
    ),
    sent(
      `${can} that was made out to this service later`,
      async (actors) => {
        const { invocation, attached } = await invocationOf(can, actors, {
          issuer: actors.space,
          audience: actors.stranger,
        })
        return messageWith(
          [
            await altered(invocation, {
              aud: DID.encode(DID.parse(actors.service.did)),
            }),
          ],
          attached
        )
      },
      'Unauthorized',
      /does not has a valid signature/
    ),
  ]),
  sent(
    'clock/advance with another event under the CID of the event',
    async (actors) => {
      const event = await eventOf('event')
      const other = await eventOf('other')
      const { invocation } = await invocationOf('clock/advance', actors, {
        issuer: actors.space,
        nb: { event: event.cid },
        attached: [event],
      })
      return messageWith([invocation], [{ ...event, bytes: other.bytes }])
    },
    { status: 400, name: 'InvalidBody' },
    /do not hash to its CID/
  ),
  sent(
    'clock/advance with an event of another hash',
    async (actors) => {
      const { bytes } = await eventOf('event')
      const cid = Link.create(dagCBOR.code, await sha512.digest(bytes))
      const { invocation } = await invocationOf('clock/advance', actors, {
        issuer: actors.space,
        nb: { event: cid },
      })
      return messageWith([invocation], [{ cid, bytes }])
    },
    { status: 400, name: 'InvalidBody' },
    /a hash other than/
  ),

  // Bodies that are no messages.
  sent(
    'a body of another type',
    async (actors) => ({
      ...(await goodBody(actors)),
      headers: { 'content-type': 'application/json' },
    }),
    { status: 415, name: 'UnsupportedMediaType' }
  ),
  sent(
    'a body without content',
    async () => ({ body: new Uint8Array() }),
    { status: 400, name: 'InvalidBody' },
    /is not a CAR/
  ),
  sent(
    'a body that ends too early',
    async (actors) => {
      const { body } = await goodBody(actors)
      return { body: body.subarray(0, -10) }
    },
    { status: 400, name: 'InvalidBody' }
  ),
  sent(
    'a body that is too large',
    async (actors) => {
      const { invocation, attached } = await invocationOf(
        'clock/advance',
        actors,
        { issuer: actors.space }
      )
      const padding = await blockOf('x'.repeat(MAX_BODY_SIZE))
      return messageWith([invocation], [...attached, padding])
    },
    { status: 413, name: 'BodyTooLarge' }
  ),
  sent(
    'a body whose root is an invocation',
    async (actors) => {
      const { invocation } = await invocationOf('clock/head', actors, {
        issuer: actors.space,
      })
      return { body: CAR.codec.encode({ roots: [invocation.root] as never }) }
    },
    { status: 400, name: 'InvalidBody' },
    /not a message/
  ),
  sent(
    'a body with too many invocations',
    async (actors) => {
      const invocations: DelegationView[] = []
      const blocks: Block[] = []
      for (let i = 0; i <= MAX_INVOCATIONS; i++) {
        const { invocation, attached } = await invocationOf(
          'clock/advance',
          actors,
          { issuer: actors.space }
        )
        invocations.push(invocation)
        blocks.push(...attached)
      }
      return messageWith(invocations, blocks)
    },
    { status: 400, name: 'InvalidBody' },
    /more than 16 invocations/
  ),
]

/** An advance that nothing is wrong with. */
async function goodBody(actors: Actors): Promise<Sent> {
  const { invocation, attached } = await invocationOf('clock/advance', actors, {
    issuer: actors.space,
  })
  return messageWith([invocation], attached)
}

describe('authorization for each ability', () => {
  const resources = new AsyncDisposableStack()
  let service: TestService
  let stores: Stores
  let tables: Database.Database
  let browser: Signer
  let authority: Signer
  let stranger: Signer

  before(async () => {
    const key = await ed25519.generate()
    authority = key.withDID('did:web:up.example')
    stranger = (await ed25519.generate()).withDID('did:web:elsewhere.example')
    browser = await RSA.generate()
    // Runs never end: nobody answers them.
    const silence = resources.use(await startServer(() => {}))
    service = resources.use(
      await startTestService({
        plcUrl: silence.url.href,
        trustedAuthorities: `${authority.did()}=${key.did()}`,
        maxBodySize: `${MAX_BODY_SIZE}`,
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

  /** All clocks, runs, schedules and revocations that the service keeps. */
  const kept = () => ({
    heads: tables.prepare('SELECT space, head FROM clocks').all(),
    events: tables.prepare('SELECT space, event FROM events').all(),
    runs: tables.prepare('SELECT id, space, account FROM runs').all(),
    schedules: tables
      .prepare('SELECT space, account, state FROM schedules')
      .all(),
    revocations: tables
      .prepare('SELECT delegation, revoker FROM revocations')
      .all(),
  })

  const createRowActors = async (): Promise<Actors> => {
    const { alice, bob, mallory, space } = await createActors()
    const carol = await ed25519.generate()
    // There are many rows, and more signatures.
    for (const each of [alice, bob, carol, mallory, space]) {
      withNativeSigning(each)
    }
    const { cid, bytes } = await eventOf('first')
    await stores.clock.advance(space.did(), [
      { event: cid.toString(), parents: [], bytes },
    ])
    return {
      ...{ alice, bob, carol, mallory, space },
      ...{ browser, authority, stranger, service },
    }
  }

  const send = async ({ body, headers }: Sent) => {
    const response = await fetch(service.url, {
      method: 'POST',
      headers: { 'content-type': CAR_TYPE, ...headers },
      body: body as Uint8Array<ArrayBuffer>,
    })
    if (response.status !== 200) {
      const problem = (await response.json()) as {
        name: string
        message: string
      }
      return {
        outcome: { status: response.status, name: problem.name },
        message: problem.message,
      }
    }
    const answer = await CAR.response.decode({
      headers: {},
      body: new Uint8Array(await response.arrayBuffer()),
    } as never)
    const receipts = [...answer.receipts.values()]
    assert.equal(receipts.length, 1)
    const { out, ran } = receipts[0]!
    const error = out.error as { name: string; message: string } | undefined
    return { outcome: error?.name ?? 'ok', message: error?.message ?? '', ran }
  }

  /**
   * What they come to that are allowed and cannot be done: nobody knows the
   * account, and the Space cannot be read, where a grant could be.
   */
  const ALLOWED: Record<string, string> = {
    'authorization/request': 'AccountNotFound',
    'authorization/revoke': 'SpaceUnavailable',
    'authorization/share': 'SpaceUnavailable',
  }

  for (const { name, invocation, outcome, because } of ROWS) {
    it(`${name} → ${typeof outcome === 'string' ? outcome : `${outcome.status} ${outcome.name}`}`, async () => {
      const actors = await createRowActors()
      const request = await invocation(actors)
      const before = kept()
      const answer = await send(request)
      const [can = ''] = name.split(' ')
      const expected = outcome === 'ok' ? (ALLOWED[can] ?? 'ok') : outcome
      assert.deepEqual(answer.outcome, expected, answer.message)
      if (because) assert.match(answer.message, because)
      const changes = outcome === 'ok' && WRITES.includes(can)
      if (changes) {
        assert.notDeepEqual(kept(), before)
      } else {
        assert.deepEqual(kept(), before)
      }
    })
  }

  it('is asked about in many ways, each of them once', () => {
    const names = ROWS.map(({ name }) => name)
    assert.deepEqual([...new Set(names)], names)
  })
})
