import assert from 'node:assert/strict'
import { join } from 'node:path'
import {
  CAR as CARFile,
  delegate,
  Delegation,
  DID,
  Message,
} from '@ucanto/core'
import type {
  Delegation as DelegationView,
  Principal,
  Receipt,
  Signer,
} from '@ucanto/interface'
import { Absentee, ed25519, RSA } from '@ucanto/principal'
import { CAR } from '@ucanto/transport'
import * as dagCBOR from '@ipld/dag-cbor'
import Database from 'better-sqlite3'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import type { Block } from '../../src/space/interface.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import {
  allow,
  attest,
  createActors,
  eventOf,
  seconds,
  startTestService,
  type Space,
  type TestService,
} from './harness.ts'

const account = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const otherAccount = 'did:plc:z72i7hdynmk6r22z27h6tvur'
const uploadService = 'did:web:up.example'
const HOUR = 3600

/** What an invocation is made of; the usual is what alice may do. */
interface Invocation {
  issuer: Signer
  audience: Principal | string
  can: string
  with: string
  nb: Record<string, unknown>
  proofs: DelegationView[]
  /** Blocks that come along. */
  attach: Block[]
  expiration: number
  notBefore?: number
  /** Instead of the one capability. */
  capabilities?: object[]
}

/** Who there is in a row, each with a new key. */
interface Cast {
  alice: ed25519.EdSigner
  bob: ed25519.EdSigner
  mallory: ed25519.EdSigner
  /** Alice's other device, whose key is RSA. */
  browser: Signer
  space: Space
  otherSpace: Space
  /** An event that nobody has seen, and what invokes to advance to it. */
  event: Block
  service: TestService
  /** The upload service that attests logins. */
  attester: Signer
  invoke: (changes?: Partial<Invocation>) => Promise<DelegationView>
  head: (changes?: Partial<Invocation>) => Promise<DelegationView>
  /** With a delegation to the service, unless it is another, or `null`. */
  run: (
    changes?: Partial<Invocation>,
    delegation?: DelegationView | null
  ) => Promise<DelegationView>
  revoke: (
    delegation: DelegationView,
    changes?: Partial<Invocation>
  ) => Promise<DelegationView>
  /** Sends something before, which has to be accepted. */
  accepted: (invocation: DelegationView) => Promise<void>
}

type Blocks = { cid: CID; bytes: Uint8Array }[]

interface Row {
  /** `ok`, the name of the failure, or HTTP status and name of the problem. */
  outcome: string
  /** What the failure's message says of it. */
  because?: RegExp
  send: (cast: Cast) => Promise<DelegationView>
  /** Changes the request on its way. */
  tamper?: (
    blocks: Blocks,
    cast: Cast,
    invocation: DelegationView
  ) => Promise<Blocks> | Blocks
}

/** What asks to share with an agent. */
const sharing = (agent: Principal): Partial<Invocation> => ({
  can: 'authorization/share',
  nb: { account, agent: agent.did() },
  attach: [],
})

const rows: Record<string, Row> = {
  // What is allowed.
  'the Space itself advances': {
    outcome: 'ok',
    send: ({ invoke, space }) => invoke({ issuer: space, proofs: [] }),
  },
  'an agent with clock/* advances': {
    outcome: 'ok',
    send: ({ invoke }) => invoke(),
  },
  'an agent with clock/* reads the head': {
    outcome: 'ok',
    send: ({ head }) => head(),
  },
  'an agent with clock/advance advances': {
    outcome: 'ok',
    send: async ({ invoke, space, alice }) =>
      invoke({ proofs: [await allow(space, alice, ['clock/advance'])] }),
  },
  'an agent with * advances': {
    outcome: 'ok',
    send: async ({ invoke, space, alice }) =>
      invoke({ proofs: [await allow(space, alice, ['*'])] }),
  },
  'an agent with one event may advance to it': {
    outcome: 'ok',
    send: async ({ invoke, space, alice, event }) =>
      invoke({
        proofs: [
          await allow(space, alice, ['clock/advance'], {
            nb: { event: event.cid },
          }),
        ],
      }),
  },
  'an RSA agent advances': {
    outcome: 'ok',
    send: async ({ invoke, space, browser }) =>
      invoke({
        issuer: browser,
        proofs: [await allow(space, browser, ['clock/*'])],
      }),
  },
  'a device of an agent advances': {
    outcome: 'ok',
    send: async ({ invoke, space, alice, browser }) =>
      invoke({
        issuer: browser,
        proofs: [
          await allow(alice, browser, ['clock/*'], {
            with: space.did(),
            proofs: [await allow(space, alice, ['clock/*'])],
          }),
        ],
      }),
  },
  'the last of five agents advances': {
    outcome: 'ok',
    send: (cast) => lastOfChain(cast, 5),
  },
  'to the did:key of the service': {
    outcome: 'ok',
    send: ({ invoke, service }) => invoke({ audience: service.agent }),
  },
  'a delegation that ends later than the invocation': {
    outcome: 'ok',
    send: async ({ invoke, space, alice }) =>
      invoke({
        proofs: [
          await allow(space, alice, ['clock/*'], { expiration: seconds(HOUR) }),
        ],
      }),
  },
  'a delegation that has just begun': {
    outcome: 'ok',
    send: async ({ invoke, space, alice }) =>
      invoke({
        proofs: [
          await allow(space, alice, ['clock/*'], { notBefore: seconds(-1) }),
        ],
      }),
  },
  'a good proof among bad ones': {
    outcome: 'ok',
    send: async ({ invoke, space, otherSpace, alice, mallory }) =>
      invoke({
        proofs: [
          await allow(space, alice, ['clock/*'], { expiration: seconds(-1) }),
          await allow(mallory, alice, ['clock/*'], { with: space.did() }),
          await allow(otherSpace, alice, ['clock/*']),
          await allow(space, alice, ['clock/*']),
        ],
      }),
  },
  'an account that logged in by email advances': {
    outcome: 'ok',
    send: (cast) => loggedIn(cast),
  },
  'an account that logged in on an RSA device': {
    outcome: 'ok',
    send: (cast) => loggedIn(cast, { issuer: cast.browser }),
  },
  'a run with a delegation to the service': {
    outcome: 'ok',
    send: ({ run }) => run(),
  },
  'a run with backup/* alone, for any account': {
    outcome: 'ok',
    send: ({ run }) =>
      run({ nb: { account: otherAccount, include: ['blobs'] } }),
  },
  'a run by somebody whom the proof is not for': {
    outcome: 'Unauthorized',
    send: async ({ run, mallory, space, alice }) =>
      run({
        issuer: mallory,
        proofs: [await allow(space, alice, ['backup/*'])],
      }),
  },
  'the status is told to who may ask': {
    outcome: 'ok',
    send: async ({ invoke, space, alice }) =>
      invoke({
        can: 'backup/status',
        nb: {},
        attach: [],
        proofs: [await allow(space, alice, ['backup/status'])],
      }),
  },
  'the Space revokes what it gave': {
    outcome: 'ok',
    send: async ({ revoke, space, alice }) =>
      revoke(await allow(space, alice, ['clock/*']), {
        issuer: space,
        with: space.did(),
      }),
  },
  'an agent gives back what it was given': {
    outcome: 'ok',
    send: async ({ revoke, space, alice }) =>
      revoke(await allow(space, alice, ['clock/*'])),
  },

  // Proofs that are not there, or for somebody or something else.
  'without proofs': {
    outcome: 'Unauthorized',
    send: ({ invoke }) => invoke({ proofs: [] }),
  },
  'with a proof for another agent': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, bob }) =>
      invoke({ proofs: [await allow(space, bob, ['clock/*'])] }),
  },
  'with a proof from another Space': {
    outcome: 'Unauthorized',
    send: async ({ invoke, otherSpace, alice }) =>
      invoke({ proofs: [await allow(otherSpace, alice, ['clock/*'])] }),
  },
  'with a proof from who does not own the Space': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice, mallory }) =>
      invoke({
        proofs: [
          await allow(mallory, alice, ['clock/*'], { with: space.did() }),
        ],
      }),
  },
  'with a proof of its own making': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice }) =>
      invoke({
        proofs: [await allow(alice, alice, ['*'], { with: space.did() })],
      }),
  },
  'with a chain whose middle is missing': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice, bob }) =>
      invoke({
        proofs: [await allow(bob, alice, ['clock/*'], { with: space.did() })],
      }),
  },
  'with a chain whose first link is for somebody else': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice, bob, mallory }) =>
      invoke({
        proofs: [
          await allow(mallory, alice, ['clock/*'], {
            with: space.did(),
            proofs: [await allow(space, bob, ['clock/*'])],
          }),
        ],
      }),
  },
  'the last of five agents, where the third passes on what it was not given': {
    outcome: 'Unauthorized',
    send: (cast) => lastOfChain(cast, 5, { 2: ['clock/head'] }),
  },
  'the last of five agents, where the fourth has expired': {
    outcome: 'Unauthorized',
    because: /expired/,
    send: (cast) => lastOfChain(cast, 5, {}, { 3: seconds(-1) }),
  },

  // More than was given.
  'clock/advance with clock/head': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice }) =>
      invoke({ proofs: [await allow(space, alice, ['clock/head'])] }),
  },
  'clock/head with clock/advance': {
    outcome: 'Unauthorized',
    send: async ({ head, space, alice }) =>
      head({ proofs: [await allow(space, alice, ['clock/advance'])] }),
  },
  'clock/advance with space/*': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice }) =>
      invoke({ proofs: [await allow(space, alice, ['space/*'])] }),
  },
  'clock/advance with backup/*': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice }) =>
      invoke({ proofs: [await allow(space, alice, ['backup/*'])] }),
  },
  'clock/advance with upload/*': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice }) =>
      invoke({ proofs: [await allow(space, alice, ['upload/*'])] }),
  },
  'an event other than that of the delegation': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice }) =>
      invoke({
        proofs: [
          await allow(space, alice, ['clock/advance'], {
            nb: { event: (await eventOf('another')).cid },
          }),
        ],
      }),
  },
  'clock/* from who has clock/head': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice, bob }) =>
      invoke({
        proofs: [
          await allow(bob, alice, ['clock/*'], {
            with: space.did(),
            proofs: [await allow(space, bob, ['clock/head'])],
          }),
        ],
      }),
  },
  'another Space than that of the delegation': {
    outcome: 'Unauthorized',
    send: ({ invoke, otherSpace }) => invoke({ with: otherSpace.did() }),
  },
  'backup/run with backup/status': {
    outcome: 'Unauthorized',
    send: async ({ run, space, alice }) =>
      run({ proofs: [await allow(space, alice, ['backup/status'])] }),
  },
  'backup/run with clock/*': {
    outcome: 'Unauthorized',
    send: async ({ run, space, alice }) =>
      run({ proofs: [await allow(space, alice, ['clock/*'])] }),
  },
  'backup/run of another account': {
    outcome: 'Unauthorized',
    send: async ({ run, space, alice }) =>
      run({
        nb: { account: otherAccount },
        proofs: [
          await allow(space, alice, ['backup/run'], { nb: { account } }),
        ],
      }),
  },
  'backup/run of more parts': {
    outcome: 'Unauthorized',
    send: async ({ run, space, alice }) =>
      run({
        nb: { account, include: ['blobs'] },
        proofs: [
          await allow(space, alice, ['backup/run'], { nb: { include: [] } }),
        ],
      }),
  },
  'backup/run of all parts, where some are named': {
    outcome: 'Unauthorized',
    send: async ({ run, space, alice }) =>
      run({
        proofs: [
          await allow(space, alice, ['backup/run'], {
            nb: { include: ['blobs'] },
          }),
        ],
      }),
  },
  'backup/run with a delegation that lacks an ability': {
    outcome: 'InsufficientDelegation',
    because: /clock\/advance/,
    send: async ({ run, space, service }) => {
      const abilities = BACKUP_ABILITIES.filter(
        (can) => can !== 'clock/advance'
      )
      const delegation = await allow(space, service.agent, abilities)
      return run({}, delegation)
    },
  },
  'backup/run with a delegation to another service': {
    outcome: 'InsufficientDelegation',
    send: async ({ run, space, mallory }) =>
      run({}, await allow(space, mallory, BACKUP_ABILITIES)),
  },
  'backup/run with a delegation for another Space': {
    outcome: 'InsufficientDelegation',
    send: async ({ run, otherSpace, service }) =>
      run({}, await allow(otherSpace, service.agent, BACKUP_ABILITIES)),
  },
  'backup/run with a delegation that has expired': {
    outcome: 'InsufficientDelegation',
    because: /expired/,
    send: async ({ run, space, service }) =>
      run(
        {},
        await allow(space, service.agent, BACKUP_ABILITIES, {
          expiration: seconds(-1),
        })
      ),
  },
  'backup/run with a delegation from who may not give it': {
    outcome: 'InsufficientDelegation',
    send: async ({ run, alice, space, service }) =>
      run(
        {},
        await allow(alice, service.agent, BACKUP_ABILITIES, {
          with: space.did(),
        })
      ),
  },
  'backup/run without a delegation': {
    outcome: 'InsufficientDelegation',
    send: ({ run }) => run({ nb: { account }, attach: [] }, null),
  },
  'backup/run with a delegation that is not attached': {
    outcome: 'InsufficientDelegation',
    because: /not attached/,
    send: async ({ run, space, service }) => {
      const { cid } = await allow(space, service.agent, BACKUP_ABILITIES)
      return run({ nb: { account, delegation: cid } }, null)
    },
  },
  'backup/status of a Space of others': {
    outcome: 'Unauthorized',
    send: ({ invoke, otherSpace }) =>
      invoke({
        can: 'backup/status',
        with: otherSpace.did(),
        nb: {},
        attach: [],
      }),
  },
  'authorization/share with authorization/list and request': {
    outcome: 'Unauthorized',
    send: async ({ invoke, space, alice, bob }) =>
      invoke({
        ...sharing(bob),
        proofs: [
          await allow(space, alice, [
            'authorization/list',
            'authorization/request',
          ]),
        ],
      }),
  },
  'authorization/share with what another agent is to get': {
    outcome: 'Unauthorized',
    because: /for agent/,
    send: async ({ invoke, space, alice, bob, mallory }) =>
      invoke({
        ...sharing(mallory),
        proofs: [
          await allow(space, alice, ['authorization/share'], {
            nb: { agent: bob.did() },
          }),
        ],
      }),
  },
  'authorization/share of a Space of others': {
    outcome: 'Unauthorized',
    send: async ({ invoke, otherSpace, space, alice, bob }) =>
      invoke({
        ...sharing(bob),
        with: otherSpace.did(),
        proofs: [await allow(space, alice, ['authorization/*'])],
      }),
  },
  'authorization/share without a delegation': {
    outcome: 'InsufficientDelegation',
    send: async ({ invoke, space, alice, bob }) =>
      invoke({
        ...sharing(bob),
        proofs: [await allow(space, alice, ['authorization/share'])],
      }),
  },
  'backup/perform, which is for the service alone': {
    outcome: 'HandlerNotFound',
    send: ({ invoke, space, event }) =>
      invoke({
        can: 'backup/perform',
        nb: { space: space.did(), account, cause: event.cid },
      }),
  },
  'revoking what others gave to others': {
    outcome: 'UnauthorizedRevocation',
    send: async ({ revoke, space, bob, mallory }) =>
      revoke(await allow(space, bob, ['clock/*']), {
        issuer: mallory,
        with: mallory.did(),
      }),
  },
  'revoking in the name of the Space': {
    outcome: 'Unauthorized',
    send: async ({ revoke, space, alice, mallory }) =>
      revoke(await allow(space, alice, ['clock/*']), {
        issuer: mallory,
        with: space.did(),
      }),
  },
  'revoking what is not attached': {
    outcome: 'UCANNotFound',
    send: async ({ invoke, alice, event }) =>
      invoke({
        can: 'ucan/revoke',
        with: alice.did(),
        nb: { ucan: event.cid },
        attach: [],
        proofs: [],
      }),
  },

  // Times.
  'an invocation that has expired': {
    outcome: 'Unauthorized',
    because: /expired/,
    send: ({ invoke }) => invoke({ expiration: seconds(-1) }),
  },
  'an invocation from the future': {
    outcome: 'Unauthorized',
    because: /not valid before/,
    send: ({ invoke }) => invoke({ notBefore: seconds(60) }),
  },
  'a delegation that has expired': {
    outcome: 'Unauthorized',
    because: /expired/,
    send: async ({ invoke, space, alice }) =>
      invoke({
        proofs: [
          await allow(space, alice, ['clock/*'], { expiration: seconds(-1) }),
        ],
      }),
  },
  'a delegation from the future': {
    outcome: 'Unauthorized',
    because: /not valid before/,
    send: async ({ invoke, space, alice }) =>
      invoke({
        proofs: [
          await allow(space, alice, ['clock/*'], { notBefore: seconds(60) }),
        ],
      }),
  },

  // Revoked.
  'a delegation that the Space revoked': {
    outcome: 'Unauthorized',
    because: /revoked/,
    send: async (cast) => {
      const { invoke, revoke, accepted, space, alice } = cast
      const proof = await allow(space, alice, ['clock/*'])
      await accepted(await revoke(proof, { issuer: space, with: space.did() }))
      return invoke({ proofs: [proof] })
    },
  },
  'a delegation that its audience gave back': {
    outcome: 'Unauthorized',
    because: /revoked/,
    send: async ({ invoke, revoke, accepted, space, alice }) => {
      const proof = await allow(space, alice, ['clock/*'])
      await accepted(await revoke(proof))
      return invoke({ proofs: [proof] })
    },
  },
  'a chain whose first link was revoked': {
    outcome: 'Unauthorized',
    because: /revoked/,
    send: async ({ invoke, revoke, accepted, space, alice, bob }) => {
      const first = await allow(space, bob, ['clock/*'])
      const second = await allow(bob, alice, ['clock/*'], {
        with: space.did(),
        proofs: [first],
      })
      await accepted(await revoke(first, { issuer: space, with: space.did() }))
      return invoke({ proofs: [second] })
    },
  },
  'a chain whose last link was revoked by who stands above': {
    outcome: 'Unauthorized',
    because: /revoked/,
    send: async ({ invoke, revoke, accepted, space, alice, bob }) => {
      const second = await allow(bob, alice, ['clock/*'], {
        with: space.did(),
        proofs: [await allow(space, bob, ['clock/*'])],
      })
      await accepted(await revoke(second, { issuer: space, with: space.did() }))
      return invoke({ proofs: [second] })
    },
  },
  'a run with a delegation to the service that was revoked': {
    outcome: 'InsufficientDelegation',
    because: /revoked/,
    send: async ({ run, revoke, accepted, space, service }) => {
      const delegation = await allow(space, service.agent, BACKUP_ABILITIES)
      await accepted(
        await revoke(delegation, { issuer: space, with: space.did() })
      )
      return run({}, delegation)
    },
  },
  'another delegation than the one that was revoked': {
    outcome: 'ok',
    send: async ({ invoke, revoke, accepted, space, alice }) => {
      const proof = await allow(space, alice, ['clock/*'])
      await accepted(await revoke(proof))
      return invoke({
        proofs: [
          await allow(space, alice, ['clock/*'], { expiration: seconds(HOUR) }),
        ],
      })
    },
  },

  // Addressed to others.
  'to another did:web': {
    outcome: 'InvalidAudience',
    send: ({ invoke }) => invoke({ audience: 'did:web:elsewhere.example' }),
  },
  'to another did:key': {
    outcome: 'InvalidAudience',
    send: ({ invoke, mallory }) => invoke({ audience: mallory }),
  },
  'to the Space': {
    outcome: 'InvalidAudience',
    send: ({ invoke, space }) => invoke({ audience: space }),
  },
  'to the upload service': {
    outcome: 'InvalidAudience',
    send: ({ invoke }) => invoke({ audience: uploadService }),
  },

  // Logins by email.
  'a login that nobody attests': {
    outcome: 'Unauthorized',
    send: (cast) => loggedIn(cast, { attestations: async () => [] }),
  },
  'a login attested by an upload service that is not trusted': {
    outcome: 'Unauthorized',
    send: (cast) =>
      loggedIn(cast, {
        attestations: async (login, audience) => [
          await attest(
            cast.mallory.withDID('did:web:mallory.example'),
            login,
            audience
          ),
        ],
      }),
  },
  'a login attested in the name of the upload service by another key': {
    outcome: 'Unauthorized',
    send: (cast) =>
      loggedIn(cast, {
        attestations: async (login, audience) => [
          await attest(cast.mallory.withDID(uploadService), login, audience),
        ],
      }),
  },
  'a login with the attestation of another': {
    outcome: 'Unauthorized',
    send: (cast) =>
      loggedIn(cast, {
        attestations: async (_, audience) => [
          await attest(
            cast.attester,
            await allow(cast.space, cast.alice, ['clock/head']),
            audience
          ),
        ],
      }),
  },
  'a login with an attestation that has expired': {
    outcome: 'Unauthorized',
    send: (cast) =>
      loggedIn(cast, {
        attestations: async (login, audience) => [
          await attest(cast.attester, login, audience, seconds(-1)),
        ],
      }),
  },
  'a login of an account to which the Space gave nothing': {
    outcome: 'Unauthorized',
    send: (cast) => loggedIn(cast, { given: [] }),
  },
  'a login of an account to which the Space gave the head alone': {
    outcome: 'Unauthorized',
    send: (cast) => loggedIn(cast, { given: ['clock/head'] }),
  },

  // What is no invocation of a capability there is.
  'an ability that nobody knows': {
    outcome: 'HandlerNotFound',
    send: ({ invoke }) => invoke({ can: 'clock/rewind' }),
  },
  'clock/* as an invocation': {
    outcome: 'HandlerNotFound',
    send: ({ invoke }) => invoke({ can: 'clock/*' }),
  },
  'an ability of the upload service': {
    outcome: 'HandlerNotFound',
    send: ({ invoke }) => invoke({ can: 'space/blob/add' }),
  },
  'a Space that is no did:key': {
    outcome: 'Unauthorized',
    because: /did:key|Malformed|Expected/,
    send: ({ invoke }) => invoke({ with: 'did:web:space.example' }),
  },
  'a Space that is no DID': {
    outcome: 'Unauthorized',
    send: ({ invoke }) => invoke({ with: 'https://space.example' }),
  },
  'an event that is no link': {
    outcome: 'Unauthorized',
    send: ({ invoke }) => invoke({ nb: { event: 'bafy' }, attach: [] }),
  },
  'an event that is an integer which JSON does not have': {
    outcome: 'Unauthorized',
    because: /cannot be described/,
    send: ({ invoke }) => invoke({ nb: { event: 2n ** 63n }, attach: [] }),
  },
  'backup/run with a delegation about such an integer': {
    outcome: 'InsufficientDelegation',
    because: /cannot be described/,
    send: async ({ run, space, service }) =>
      run(
        {},
        await allow(space, service.agent, BACKUP_ABILITIES, {
          nb: { event: 2n ** 63n },
        })
      ),
  },
  'an event that cannot become text': {
    outcome: '400 InvalidBody',
    because: /no map may have/,
    send: ({ invoke }) =>
      invoke({ nb: { event: [{ toString: null }] }, attach: [] }),
  },
  'an event whose map says that it is none': {
    outcome: '400 InvalidBody',
    because: /__proto__/,
    send: ({ invoke }) =>
      invoke({ nb: { event: { ['__proto__']: null } }, attach: [] }),
  },
  'a proof about what cannot become text': {
    outcome: '400 InvalidBody',
    because: /no map may have/,
    send: async ({ invoke, space, alice }) =>
      invoke({
        proofs: [
          await allow(space, alice, ['clock/*'], {
            nb: { event: { toString: null } },
          }),
        ],
      }),
  },
  'backup/run with a delegation about what cannot become text': {
    outcome: 'InsufficientDelegation',
    because: /no map may have/,
    send: async ({ run, space, service }) =>
      run(
        {},
        await allow(space, service.agent, BACKUP_ABILITIES, {
          nb: { event: { toString: null } },
        })
      ),
  },
  'no event': {
    outcome: 'Unauthorized',
    send: ({ invoke }) => invoke({ nb: {}, attach: [] }),
  },
  'an account that is no DID of ATProto': {
    outcome: 'Unauthorized',
    because: /did:plc/,
    send: ({ run, alice }) => run({ nb: { account: alice.did() } }),
  },
  'a part that does not exist': {
    outcome: 'Unauthorized',
    send: ({ run }) => run({ nb: { account, include: ['secrets'] } }),
  },
  'two capabilities in one invocation': {
    outcome: 'InvocationCapabilityError',
    send: ({ invoke, space, event }) =>
      invoke({
        capabilities: [
          { can: 'clock/head', with: space.did() },
          { can: 'clock/advance', with: space.did(), nb: { event: event.cid } },
        ],
      }),
  },
  'an event whose block is not attached': {
    outcome: 'MissingBlock',
    send: ({ invoke }) => invoke({ attach: [] }),
  },
  'an event that is none': {
    outcome: 'InvalidEvent',
    send: async ({ invoke }) => {
      const block = await cborOf({ data: 1, parents: [] })
      return invoke({ nb: { event: block.cid }, attach: [block] })
    },
  },
  'a delegation as the event': {
    outcome: 'InvalidEvent',
    send: async ({ invoke, space, alice }) => {
      const { cid, root } = await allow(space, alice, ['clock/*'])
      return invoke({ nb: { event: cid }, attach: [root] })
    },
  },

  // Requests that somebody changed on their way.
  'a byte of the invocation is another': {
    outcome: '400 InvalidBody',
    send: ({ invoke }) => invoke(),
    tamper: (blocks, _, { cid }) => flip(blocks, cid as CID),
  },
  'a byte of the proof is another': {
    outcome: '400 InvalidBody',
    send: ({ invoke }) => invoke(),
    tamper: (blocks, _, invocation) => flip(blocks, proofOf(invocation)),
  },
  'a byte of the event is another': {
    outcome: '400 InvalidBody',
    send: ({ invoke }) => invoke(),
    tamper: (blocks, { event }) => flip(blocks, event.cid as CID),
  },
  'the bytes of a forged proof under the CID of a good one': {
    outcome: '400 InvalidBody',
    send: ({ invoke }) => invoke(),
    tamper: async (blocks, { space, alice, mallory }, invocation) => {
      const { bytes } = await allow(mallory, alice, ['clock/*'], {
        with: space.did(),
      })
      const proof = proofOf(invocation)
      return blocks.map((block) =>
        block.cid.equals(proof) ? { ...block, bytes } : block
      )
    },
  },
  'the bytes of another event under the CID of this': {
    outcome: '400 InvalidBody',
    send: ({ invoke }) => invoke(),
    tamper: async (blocks, { event }) => {
      const { bytes } = await eventOf('forged')
      return blocks.map((block) =>
        block.cid.equals(event.cid) ? { ...block, bytes } : block
      )
    },
  },
  'the block of the proof is left out': {
    outcome: 'Unauthorized',
    send: ({ invoke }) => invoke(),
    tamper: (blocks, _, invocation) => without(blocks, proofOf(invocation)),
  },
  'the block of the event is left out': {
    outcome: 'MissingBlock',
    send: ({ invoke }) => invoke(),
    tamper: (blocks, { event }) => without(blocks, event.cid as CID),
  },
  'the block of the invocation is left out': {
    outcome: '400 InvalidBody',
    send: ({ invoke }) => invoke(),
    tamper: (blocks, _, { cid }) => without(blocks, cid as CID),
  },
  'the signature is that of another invocation': {
    outcome: 'Unauthorized',
    because: /signature/,
    send: async ({ invoke }) =>
      resigned(await invoke(), await invoke({ expiration: seconds(HOUR) })),
  },
  'the signature is by another key': {
    outcome: 'Unauthorized',
    because: /signature/,
    send: ({ invoke, alice, mallory }) =>
      invoke({ issuer: forging(alice, mallory) }),
  },
  'the proof is signed by another key': {
    outcome: 'Unauthorized',
    because: /signature/,
    send: async ({ invoke, space, alice, mallory }) =>
      invoke({
        proofs: [await allow(forging(space, mallory), alice, ['clock/*'])],
      }),
  },
}

describe('authorization', () => {
  let service: TestService
  let stores: Stores
  let database: Database.Database
  let attester: Signer
  let browser: Signer

  before(async () => {
    const key = await ed25519.generate()
    attester = key.withDID(uploadService)
    browser = await RSA.generate()
    service = await startTestService({
      trustedAuthorities: `${uploadService}=${key.did()}`,
    })
    const path = join(service.config.dataFolder, 'service.sqlite')
    stores = await openStores({ path })
    database = new Database(path, { readonly: true })
  })

  after(async () => {
    database.close()
    await stores[Symbol.asyncDispose]()
    await service[Symbol.asyncDispose]()
  })

  /** All that requests can change, whoever it belongs to. */
  const snapshot = () =>
    database
      .prepare(
        `select (select count(*) from events) as events,
          (select count(*) from runs) as runs,
          (select count(*) from revocations) as revocations,
          (select json_group_array(space || head) from clocks where head != '[]') as heads`
      )
      .get()

  const castOf = async (): Promise<Cast> => {
    const { alice, bob, mallory, space } = await createActors()
    const { space: otherSpace } = await createActors()
    const event = await eventOf('event')
    const invoke: Cast['invoke'] = async (changes = {}) => {
      const { capabilities, can, nb, attach, ...parts } = {
        issuer: alice,
        audience: service.did,
        can: 'clock/advance',
        with: space.did(),
        nb: { event: event.cid },
        attach: [event],
        proofs: changes.proofs ?? [
          await allow(space, alice, ['clock/*', 'backup/*']),
        ],
        expiration: seconds(30),
        ...changes,
      }
      const { audience } = parts
      const invocation = await delegate({
        issuer: parts.issuer,
        audience: typeof audience === 'string' ? DID.parse(audience) : audience,
        capabilities: (capabilities ?? [
          { can, with: parts.with, nb },
        ]) as never,
        proofs: parts.proofs,
        expiration: parts.expiration,
        ...(parts.notBefore === undefined
          ? {}
          : { notBefore: parts.notBefore }),
        facts: [Object.fromEntries(attach.map(({ cid }) => [`${cid}`, cid]))],
      })
      for (const block of attach) invocation.attach(block)
      return invocation
    }
    return {
      alice,
      bob,
      mallory,
      browser,
      space,
      otherSpace,
      event,
      service,
      attester,
      invoke,
      head: (changes) =>
        invoke({ can: 'clock/head', nb: {}, attach: [], ...changes }),
      run: async (changes, given) => {
        const delegation =
          given === undefined
            ? await allow(space, service.agent, BACKUP_ABILITIES)
            : given
        const { nb = { account }, ...others } = changes ?? {}
        return invoke({
          can: 'backup/run',
          nb: delegation ? { ...nb, delegation: delegation.cid } : nb,
          attach: delegation ? blocksOf(delegation) : [],
          ...others,
        })
      },
      revoke: (delegation, changes) =>
        invoke({
          can: 'ucan/revoke',
          with: alice.did(),
          nb: { ucan: delegation.cid },
          attach: blocksOf(delegation),
          proofs: [],
          ...changes,
        }),
      accepted: async (invocation) =>
        assert.deepEqual(await post(await requestOf(invocation)), {
          outcome: 'ok',
        }),
    }
  }

  const post = async (
    body: Uint8Array
  ): Promise<{ outcome: string; message?: string }> => {
    const response = await fetch(service.url, {
      method: 'POST',
      headers: { 'content-type': 'application/vnd.ipld.car' },
      body: body as Uint8Array<ArrayBuffer>,
    })
    if (response.status !== 200) {
      const { name, message } = (await response.json()) as {
        name: string
        message: string
      }
      return { outcome: `${response.status} ${name}`, message }
    }
    const { receipts } = await CAR.response.decode({
      headers: {},
      body: new Uint8Array(await response.arrayBuffer()),
    })
    const [receipt] = [...receipts.values()] as Receipt[]
    assert.ok(receipt)
    const { error } = receipt.out as {
      error?: { name: string; message: string }
    }
    return error
      ? { outcome: error.name, message: error.message }
      : { outcome: 'ok' }
  }

  it('has a row for each way that somebody may try', () => {
    assert.ok(Object.keys(rows).length >= 80)
  })

  for (const [name, { outcome, because, send, tamper }] of Object.entries(
    rows
  )) {
    it(`${outcome}: ${name}`, async () => {
      const cast = await castOf()
      const invocation = await send(cast)
      let body = await requestOf(invocation)
      if (tamper) {
        const { roots, blocks } = CARFile.decode(body)
        const changed = await tamper(
          [...blocks.values()] as unknown as Blocks,
          cast,
          invocation
        )
        body = CARFile.encode({
          roots,
          blocks: new Map(changed.map((block) => [`${block.cid}`, block])),
        } as never)
      }
      const before = snapshot()
      const answer = await post(body)
      assert.equal(answer.outcome, outcome, answer.message)
      if (because) assert.match(answer.message ?? '', because)
      if (outcome !== 'ok') {
        assert.deepEqual(snapshot(), before)
      } else if (invocation.capabilities[0].can === 'clock/advance') {
        assert.deepEqual(await stores.clock.head(cast.space.did()), [
          cast.event.cid.toString(),
        ])
      } else if (/run|revoke/.test(invocation.capabilities[0].can)) {
        assert.notDeepEqual(snapshot(), before)
      }
    })
  }
})

async function requestOf(invocation: DelegationView): Promise<Uint8Array> {
  const message = await Message.build({ invocations: [invocation] as never })
  return CAR.request.encode(message).body
}

function blocksOf(delegation: DelegationView): Block[] {
  return [...delegation.iterateIPLDBlocks()]
}

function proofOf({ proofs: [proof] }: DelegationView): CID {
  assert.ok(proof && 'cid' in proof)
  return proof.cid as unknown as CID
}

function without(blocks: Blocks, cid: CID): Blocks {
  const left = blocks.filter((block) => !block.cid.equals(cid))
  assert.equal(left.length, blocks.length - 1)
  return left
}

/** Changes one bit in the middle of a block. */
function flip(blocks: Blocks, cid: CID): Blocks {
  return blocks.map((block) => {
    if (!block.cid.equals(cid)) return block
    const bytes = new Uint8Array(block.bytes)
    bytes[bytes.length >> 1]! ^= 1
    return { cid: block.cid, bytes }
  })
}

async function cborOf(value: unknown): Promise<Block> {
  const bytes = dagCBOR.encode(value)
  const digest = await sha256.digest(bytes)
  return { cid: CID.createV1(dagCBOR.code, digest), bytes }
}

/** An invocation with the signature of another. */
async function resigned(
  invocation: DelegationView,
  other: DelegationView
): Promise<DelegationView> {
  const { s } = dagCBOR.decode<{ s: Uint8Array }>(other.bytes)
  const root = await cborOf({
    ...dagCBOR.decode<object>(invocation.bytes),
    s,
  })
  const blocks = new Map(
    [root, ...blocksOf(invocation)].map((block) => [`${block.cid}`, block])
  )
  return Delegation.view({ root: root.cid, blocks } as never)
}

/** Signs as somebody else would, with another key. */
function forging(victim: Signer, forger: Signer): Space {
  return {
    did: () => victim.did(),
    signatureAlgorithm: forger.signatureAlgorithm,
    signatureCode: forger.signatureCode,
    sign: (payload: never) => forger.sign(payload),
  } as unknown as Space
}

/** The last of agents who gave one another what the first was given. */
async function lastOfChain(
  { invoke, space }: Cast,
  length: number,
  abilities: Record<number, string[]> = {},
  expirations: Record<number, number> = {}
): Promise<DelegationView> {
  let issuer = space
  let proofs: DelegationView[] = []
  for (let link = 0; link < length; link++) {
    const audience = await ed25519.generate()
    const expiration = expirations[link] ?? Infinity
    proofs = [
      await allow(issuer, audience, abilities[link] ?? ['clock/*'], {
        with: space.did(),
        expiration,
        proofs,
      }),
    ]
    issuer = audience
  }
  return invoke({ issuer, proofs })
}

/** Somebody whose account the Space gave something, and who logged in to it. */
async function loggedIn(
  { alice, space, attester, invoke }: Cast,
  {
    issuer = alice,
    given = ['clock/*'],
    attestations = async (login, audience) => [
      await attest(attester, login, audience),
    ],
  }: {
    issuer?: Signer
    given?: string[]
    attestations?: (
      login: DelegationView,
      audience: Principal
    ) => Promise<DelegationView[]>
  } = {}
): Promise<DelegationView> {
  const email = Absentee.from({ id: 'did:mailto:example.com:alice' })
  const login = await delegate({
    issuer: email,
    audience: issuer,
    capabilities: [{ can: '*', with: 'ucan:*' }],
    proofs: given.length > 0 ? [await allow(space, email, given)] : [],
    expiration: Infinity,
  })
  return invoke({
    issuer,
    proofs: [login, ...(await attestations(login, issuer))],
  })
}
