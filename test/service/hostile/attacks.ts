import { randomBytes } from 'node:crypto'
import { request } from 'node:http'
import { connect } from 'node:net'
import { delegate, DID, Message } from '@ucanto/core'
import type { Delegation, Receipt, Signer } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import { CAR } from '@ucanto/transport'
import * as raw from 'multiformats/codecs/raw'
import * as Digest from 'multiformats/hashes/digest'
import { sha256 } from 'multiformats/hashes/sha2'
import * as Link from 'multiformats/link'
import {
  BACKUP_ABILITIES,
  SPACE_INFO,
} from '../../../src/capabilities/index.ts'
import { createEvent } from '../../../src/space/index.ts'
import { createStorachaClient } from '../../network/storacha-client.ts'
import { allow } from '../harness.ts'
import { createHostileState } from './states.ts'
import { ADDRESS, send, type Attack, type Tenant, type World } from './world.ts'

/** What a tenant delegates to the service to be backed up by it. */
const ABILITIES = ['backup/run', SPACE_INFO, ...BACKUP_ABILITIES]

/** Proof links of a UCAN that are not attached, and how often it is named. */
const LINKS = 40_000
const NAMED = 255
const JUNK_SIZE = 3_900_000
const STALLED_BODIES = 300
const BODY_SIZE = 4 * 1024 * 1024
const STREAMS_PER_KEY = 100
const CHAIN = 240

/** All attacks, each ready for its first step. */
export async function prepareAttacks(world: World): Promise<Attack[]> {
  const attacks: Attack[] = []
  // One after another: an invocation to log in does not live for long.
  for (const prepare of [
    useUpRates,
    breakOwnStates,
    poisonSchedules,
    scheduleHostileAccounts,
    runHostileAccounts,
    linkBombs,
    linkBombInHeader,
    fillRevocations,
    askForRevocations,
    requestAuthorizations,
    stallBodies,
    holdStreams,
    advanceFreshClocks,
  ]) {
    attacks.push(await prepare(world))
  }
  return attacks
}

/** Links in the facts make what is attached part of an invocation. */
function factsOf(delegation: Delegation): Record<string, unknown>[] {
  const blocks = [...delegation.export()]
  return [
    {
      ...Object.fromEntries(
        blocks.map(({ cid }) => [cid.toString(), cid] as const)
      ),
      // The service may ask whether the Space has a provider.
      [SPACE_INFO]: delegation.cid,
    },
  ]
}

function attach(invocation: Delegation, delegation: Delegation): void {
  for (const block of delegation.export()) invocation.attach(block)
}

/** An invocation as anybody may write it: no client checks it. */
async function invoke(
  { did }: World,
  issuer: Signer,
  {
    can,
    with: resource = issuer.did(),
    nb,
    delegation,
    proofs = [],
    facts = [],
  }: {
    can: string
    with?: string
    nb?: Record<string, unknown>
    /** Attached, and named by `nb`. */
    delegation?: Delegation
    proofs?: Delegation[]
    facts?: Record<string, unknown>[]
  }
): Promise<Delegation> {
  const invocation = await delegate({
    issuer,
    audience: DID.parse(did),
    capabilities: [
      {
        can,
        with: resource,
        nb: { ...nb, ...(delegation ? { delegation: delegation.cid } : {}) },
      },
    ] as never,
    proofs,
    facts: [...facts, ...(delegation ? factsOf(delegation) : [])] as never,
    expiration: Infinity,
    nonce: crypto.randomUUID(),
  })
  if (delegation) attach(invocation, delegation)
  return invocation
}

async function encode(...invocations: Delegation[]): Promise<Uint8Array> {
  const message = await Message.build({ invocations: invocations as never })
  return CAR.request.encode(message).body
}

/** @returns the name of the failure, `ok`, or the HTTP status */
async function post({ url }: World, body: Uint8Array): Promise<string> {
  const answer = await send(url, { body })
  if (answer.status !== 200) return `HTTP ${answer.status}`
  const { receipts } = await CAR.response.decode({
    headers: {},
    body: answer.body,
  } as never)
  const [receipt] = receipts.values() as Iterable<Receipt>
  const { error } = (receipt?.out ?? {}) as { error?: { name: string } }
  return error?.name ?? 'ok'
}

function pick<T>(items: T[], round: number): T {
  return items[round % items.length]!
}

/** Lets the service act for a tenant. */
function delegated({ agent }: World, tenant: Tenant): Promise<Delegation> {
  return allow(tenant, agent, ABILITIES)
}

/** Schedules of accounts that are no DID, which once broke every sweep. */
async function poisonSchedules(world: World): Promise<Attack> {
  const accounts = [
    'did:plc:\0',
    `did:plc:${'a'.repeat(2_600)}`,
    'did:web:\ud800',
    `did:plc:${'\u{1f600}'.repeat(20)}`,
  ]
  return {
    name: 'poison schedules',
    pace: 1_000,
    async step(round) {
      const tenant = pick([...world.tenants, ...world.freshKeys], round)
      const delegation = await delegated(world, tenant)
      return post(
        world,
        await encode(
          await invoke(world, tenant, {
            can: 'backup/schedule',
            nb: { account: pick(accounts, round), every: 60 },
            delegation,
          })
        )
      )
    },
  }
}

/** Every hostile Space has each hostile account backed up every minute. */
async function scheduleHostileAccounts(world: World): Promise<Attack> {
  return {
    name: 'schedule accounts on hostile hosts',
    pace: 250,
    async step(round) {
      const { hostileAccounts, tenants, freshKeys } = world
      const { did } = pick(hostileAccounts, round)
      const tenant = pick(
        [...tenants, ...freshKeys],
        Math.floor(round / hostileAccounts.length)
      )
      return post(
        world,
        await encode(
          await invoke(world, tenant, {
            can: 'backup/schedule',
            nb: { account: did, every: 60 },
            delegation: await delegated(world, tenant),
          })
        )
      )
    },
  }
}

/** Runs that somebody asks for go before schedules: as many as can be. */
async function runHostileAccounts(world: World): Promise<Attack> {
  return {
    name: 'run backups of hostile accounts now',
    pace: 150,
    async step(round) {
      const { hostileAccounts, tenants, freshKeys } = world
      const tenant = pick([...tenants, ...freshKeys], round)
      const account = pick(
        hostileAccounts,
        Math.floor(round / (tenants.length + freshKeys.length))
      )
      return post(
        world,
        await encode(
          await invoke(world, tenant, {
            can: 'backup/run',
            nb: { account: account.did },
            delegation: await delegated(world, tenant),
          })
        )
      )
    },
  }
}

async function wide(
  world: World,
  issuer: Tenant,
  links: number,
  named: number
): Promise<Uint8Array> {
  const missing = Array.from({ length: links }, () =>
    Link.create(0x71, Digest.create(0x12, new Uint8Array(randomBytes(32))))
  )
  const proof = await delegate({
    issuer,
    audience: issuer,
    capabilities: [{ can: 'clock/head', with: issuer.did() }],
    proofs: missing as never,
    expiration: Infinity,
  })
  return encode(
    await invoke(world, issuer, {
      can: 'clock/head',
      proofs: Array.from({ length: named }, () => proof),
    })
  )
}

/** A UCAN with tens of thousands of proof links, named hundreds of times. */
async function linkBombs(world: World): Promise<Attack> {
  const body = await wide(world, world.freshKeys[0]!, LINKS, NAMED)
  return {
    name: 'send proof links that are not attached',
    pace: 5_000,
    step: () => post(world, body),
  }
}

/** The same in the header of a stream, which is validated again and again. */
async function linkBombInHeader(world: World): Promise<Attack> {
  const space = world.tenants[0]!
  const body = await wide(world, space, 800, NAMED)
  const header = `UCAN ${Buffer.from(body).toString('base64url')}`
  return {
    name: 'send proof links in the header of a stream',
    pace: 2_000,
    async step() {
      const url = new URL(`/clock/${space.did()}/events`, world.url)
      const { status } = await send(url, {
        method: 'GET',
        headers: { authorization: header },
      })
      return `HTTP ${status}`
    },
  }
}

/** Revocations with megabytes attached, each from a fresh key. */
async function fillRevocations(world: World): Promise<Attack> {
  const bytes = new Uint8Array(randomBytes(JUNK_SIZE))
  const junk = {
    cid: Link.create(raw.code, await sha256.digest(bytes)),
    bytes,
  }
  return {
    name: 'revoke with megabytes attached',
    pace: 3_000,
    async step(round) {
      const mallory = await ed25519.generate()
      const invocations: Delegation[] = []
      for (let at = 0; at < 16; at++) {
        const own = await delegate({
          issuer: mallory,
          audience: mallory,
          capabilities: [{ can: 'a/b', with: mallory.did() }],
          nonce: `${round} ${at}`,
          expiration: Infinity,
        })
        const invocation = await invoke(world, mallory, {
          can: 'ucan/revoke',
          nb: { ucan: own.cid },
          proofs: [own],
          facts: [{ junk: junk.cid }],
        })
        invocation.attach(junk)
        invocations.push(invocation)
      }
      return post(world, await encode(...invocations))
    },
  }
}

/** One who logged in by email invokes as often as it gets through. */
async function useUpRates(world: World): Promise<Attack> {
  const client = await createStorachaClient(world.storacha)
  const account = await client.login('mallory@example.com')
  const space = await client.createSpace('hostile', {
    account,
    skipGatewayAuthorization: true,
  })
  const laptop = await createStorachaClient(world.storacha)
  await laptop.login('mallory@example.com')
  await laptop.capability.access.claim()
  const proofs = laptop.proofs([
    { can: 'clock/head', with: space.did() },
  ] as never)
  return {
    name: 'use up the rate of logins by email',
    pace: 40,
    step: async () =>
      post(
        world,
        await encode(
          await invoke(world, laptop.agent.issuer, {
            can: 'clock/head',
            with: space.did(),
            proofs: proofs,
          })
        )
      ),
  }
}

/** Long chains of proofs, each of which has to be looked up. */
async function askForRevocations(world: World): Promise<Attack> {
  return {
    name: 'have long chains of proofs looked up',
    pace: 2_000,
    async step(round) {
      const root = pick([...world.tenants, ...world.freshKeys], round)
      const agent = await ed25519.generate()
      let proofs: Delegation[] = []
      for (let at = 0; at < CHAIN; at++) {
        proofs = [
          await delegate({
            issuer: at === 0 ? root : agent,
            audience: agent,
            capabilities: [{ can: 'clock/head', with: root.did() }],
            proofs,
            expiration: Infinity,
            nonce: `${round} ${at}`,
          }),
        ]
      }
      return post(
        world,
        await encode(
          await invoke(world, agent, {
            can: 'clock/head',
            with: root.did(),
            proofs,
          })
        )
      )
    },
  }
}

async function requestAuthorizations(world: World): Promise<Attack> {
  return {
    name: 'request authorizations of hostile accounts',
    pace: 500,
    async step(round) {
      const tenant = pick([...world.freshKeys, ...world.tenants], round)
      const { did } = pick(world.hostileAccounts, round)
      return post(
        world,
        await encode(
          await invoke(world, tenant, {
            can: 'authorization/request',
            nb: {
              account: did,
              returnTo: `https://bsky.app/${'x'.repeat(2_000)}`,
            },
            delegation: await delegated(world, tenant),
          })
        )
      )
    },
  }
}

/** Connections that send all of a body but its last byte. */
async function stallBodies(world: World): Promise<Attack> {
  const { hostname, port } = new URL(world.url)
  const body = Buffer.alloc(BODY_SIZE - 1, 1)
  const open = new Set<object>()
  return {
    name: 'stall in the last byte of a body',
    pace: 20,
    async step() {
      if (open.size >= STALLED_BODIES) return 'held'
      const socket = connect({
        port: Number(port),
        host: hostname,
        localAddress: ADDRESS,
      })
      open.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => open.delete(socket))
      // The answer is read, so that a refusal arrives.
      socket.resume()
      socket.write(
        `POST / HTTP/1.1\r\nhost: ${hostname}\r\ncontent-type: application/vnd.ipld.car\r\ncontent-length: ${BODY_SIZE}\r\n\r\n`
      )
      socket.write(body)
      return 'sent'
    },
  }
}

/** Keys that hold as many event streams as there is room for. */
async function holdStreams(world: World): Promise<Attack> {
  const keys = [...world.tenants, ...world.freshKeys]
  const headers = new Map<Tenant, string>()
  const open = new Map<Tenant, number>()
  return {
    name: 'hold event streams',
    pace: 30,
    async step(round) {
      const tenant = pick(keys, round)
      const held = open.get(tenant) ?? 0
      if (held >= STREAMS_PER_KEY) return 'held'
      let header = headers.get(tenant)
      if (header === undefined) {
        const body = await encode(
          await invoke(world, tenant, { can: 'clock/head' })
        )
        header = `UCAN ${Buffer.from(body).toString('base64url')}`
        headers.set(tenant, header)
      }
      const { promise, resolve } = Promise.withResolvers<string>()
      const stream = request(
        new URL(`/clock/${tenant.did()}/events`, world.url),
        {
          headers: { authorization: header },
          localAddress: ADDRESS,
          agent: false,
        },
        (response) => {
          const { statusCode } = response
          resolve(`HTTP ${statusCode}`)
          if (statusCode !== 200) return response.destroy()
          open.set(tenant, (open.get(tenant) ?? 0) + 1)
          response.resume()
          response.on('error', () => {})
          response.on('close', () => {
            open.set(tenant, (open.get(tenant) ?? 1) - 1)
          })
        }
      )
      stream.on('error', (error: NodeJS.ErrnoException) =>
        resolve(error.code ?? error.name)
      )
      stream.setTimeout(20_000, () => resolve('no answer'))
      stream.end()
      return promise
    },
  }
}

/** Every fresh key is a Space, and each has a clock. */
async function advanceFreshClocks(world: World): Promise<Attack> {
  return {
    name: 'advance the clocks of fresh keys',
    pace: 200,
    async step(round) {
      const mallory = await ed25519.generate()
      const state = Link.create(
        0x71,
        await sha256.digest(new TextEncoder().encode(`state ${round}`))
      )
      const event = await createEvent(state as never, [])
      const invocation = await invoke(world, mallory, {
        can: 'clock/advance',
        nb: { event: event.cid },
        facts: [{ [event.cid.toString()]: event.cid }],
      })
      invocation.attach(event)
      return post(world, await encode(invocation))
    },
  }
}

/** States in Spaces of their own that are expensive or impossible to read. */
async function breakOwnStates(world: World): Promise<Attack> {
  const prepared = await Promise.all(
    world.tenants.map(async (tenant, at) => ({
      tenant,
      account: pick(world.accounts, at),
      events: await createHostileState(world, tenant, {
        account: pick(world.accounts, at),
        kind: pick(['shared', 'future', 'index', 'unreadable'] as const, at),
      }),
    }))
  )
  return {
    name: 'back up into Spaces with hostile states',
    pace: 1_000,
    async step(round) {
      const { tenant, account, events } = pick(prepared, round)
      const delegation = await delegated(world, tenant)
      const [event] = events.splice(0, 1)
      if (event) {
        const invocation = await invoke(world, tenant, {
          can: 'clock/advance',
          nb: { event: event.cid },
          facts: [
            { [event.cid.toString()]: event.cid },
            ...factsOf(delegation),
          ],
        })
        invocation.attach(event)
        attach(invocation, delegation)
        return `advance: ${await post(world, await encode(invocation))}`
      }
      return post(
        world,
        await encode(
          await invoke(world, tenant, {
            can: 'backup/run',
            nb: { account },
            delegation,
          })
        )
      )
    },
  }
}
