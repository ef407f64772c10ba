import { fork } from 'node:child_process'
import { generateKeyPairSync, sign, verify } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DID, Message } from '@ucanto/core'
import { ed25519 } from '@ucanto/principal'
import { CAR } from '@ucanto/transport'
import Database from 'better-sqlite3'
import * as dagCBOR from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import { Clock } from '../src/capabilities/index.ts'
import { withNativeSigning } from '../src/node/index.ts'
import {
  createEvent,
  type Block,
  type EventLink,
  type Link,
  type State,
} from '../src/space/index.ts'
import type { Measurement } from './measurement.ts'
import { startServiceProcess } from './setup.ts'

const ADVANCES = 640
const CONNECTIONS = 32
const HEADS = 1_000
const PEER = 'a w3clock-style server on synced files'
const LIMIT = 'a signature check and a synced commit'

interface Target {
  url: URL
  did: string
}

/** One request, signed before the time is taken. */
interface Request {
  body: Uint8Array
  headers: Record<string, string>
}

/**
 * Advances and heads a second over HTTP, each durable, beside a server made of
 * the published clock, and beside what no server can do without.
 */
export async function run(say: (line: string) => void): Promise<Measurement[]> {
  await using service = await startServiceProcess({
    environment: {
      // Nothing but the clock is measured, and there is nobody to ask.
      BLUESKY_BACKUPS_PROVISIONING_POLICY: 'off',
      BLUESKY_BACKUPS_REVOCATIONS_POLICY: 'off',
      BLUESKY_BACKUPS_SPACE_RATE: '0',
      BLUESKY_BACKUPS_ISSUER_RATE: '0',
    },
  })
  await using peer = await startPeer()
  const limit = await limitOf(ADVANCES)
  say(`${LIMIT}: ${Math.round(limit)} a second`)

  const measurements: Measurement[] = []
  for (const { what, writers } of [
    { what: 'advances a second, 1 connection', writers: 1 },
    {
      what: `advances a second, ${CONNECTIONS} stale writers at once`,
      writers: CONNECTIONS,
    },
  ]) {
    // A server that has just started is slow: the first round does not count.
    let ours = 0
    let theirs = 0
    for (let round = 0; round < 2; round++) {
      ours = await rateOf(service, await advancesFor(service, writers))
      theirs = await rateOf(peer, await advancesFor(peer, writers))
    }
    say(`${what}: ours ${Math.round(ours)}, theirs ${Math.round(theirs)}`)
    measurements.push(
      timesMore({ what, ours, peer: PEER, theirs }, writers > 1 ? 3 : 1),
      timesMore({ what, ours, peer: LIMIT, theirs: limit }, 0.5)
    )
  }
  const requests = await headsFor(service)
  const ours = await rateOf(service, requests)
  const theirs = await rateOf(peer, await headsFor(peer))
  measurements.push(
    timesMore({ what: 'heads a second', ours, peer: PEER, theirs }, 1)
  )
  return measurements
}

function timesMore(
  measured: Pick<Measurement, 'what' | 'ours' | 'peer' | 'theirs'>,
  goal: number
): Measurement {
  const ratio = measured.ours / measured.theirs
  return {
    ...measured,
    unit: '/s',
    ratio,
    goal: `≥ ${goal}×`,
    met: ratio >= goal,
  }
}

/**
 * Advances of one clock by writers who each know only what they wrote.
 *
 * @returns for each writer its requests, in their order
 */
async function advancesFor(
  { did }: Target,
  writers: number
): Promise<Request[][]> {
  const space = withNativeSigning(await ed25519.generate())
  const lanes: Request[][] = []
  for (let writer = 0; writer < writers; writer++) {
    const lane: Request[] = []
    let parents: EventLink[] = []
    for (let number = 0; number < ADVANCES / writers; number++) {
      const event: Block = await createEvent(
        (await linkOf({ writer, number })) as Link<State>,
        parents
      )
      const invocation = Clock.advance.invoke({
        issuer: space,
        audience: DID.parse(did),
        with: space.did(),
        nb: { event: event.cid },
        facts: [{ [event.cid.toString()]: event.cid }],
        expiration: Infinity,
      })
      invocation.attach(event)
      lane.push(await encode(await invocation.delegate()))
      parents = [event.cid as EventLink]
    }
    lanes.push(lane)
  }
  return lanes
}

async function headsFor({ did }: Target): Promise<Request[][]> {
  const space = withNativeSigning(await ed25519.generate())
  const lanes: Request[][] = Array.from({ length: CONNECTIONS }, () => [])
  for (let number = 0; number < HEADS; number++) {
    const invocation = Clock.head.invoke({
      issuer: space,
      audience: DID.parse(did),
      with: space.did(),
      nonce: `${number}`,
      expiration: Infinity,
    })
    lanes[number % CONNECTIONS]?.push(await encode(await invocation.delegate()))
  }
  return lanes
}

async function encode(invocation: unknown): Promise<Request> {
  const message = await Message.build({ invocations: [invocation] as never })
  const { body, headers } = CAR.request.encode(message)
  return { body, headers: { ...headers } }
}

/** @returns requests a second, all lanes at once */
async function rateOf({ url }: Target, lanes: Request[][]): Promise<number> {
  const started = performance.now()
  await Promise.all(
    lanes.map(async (lane) => {
      for (const { body, headers } of lane) {
        const response = await fetch(url, {
          method: 'POST',
          headers,
          body: body as Uint8Array<ArrayBuffer>,
        })
        const answer = new Uint8Array(await response.arrayBuffer())
        const { receipts } = await CAR.response.decode({
          headers: {},
          body: answer,
        })
        for (const { out } of receipts.values()) {
          if (out.error) throw new Error(JSON.stringify(out.error))
        }
      }
    })
  )
  const requests = lanes.reduce((sum, lane) => sum + lane.length, 0)
  return (requests * 1000) / (performance.now() - started)
}

/** @returns what one thread can do of it in a second */
async function limitOf(count: number): Promise<number> {
  const folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-bench-limit-'))
  const database = new Database(join(folder, 'limit.sqlite'))
  database.pragma('journal_mode = WAL')
  database.pragma('synchronous = FULL')
  database.exec('create table events (event text primary key, bytes blob)')
  const insert = database.prepare('insert into events values (?, ?)')
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  const payload = Buffer.alloc(300, 1)
  const signature = sign(null, payload, privateKey)
  const started = performance.now()
  for (let number = 0; number < count; number++) {
    if (!verify(null, payload, publicKey, signature)) throw new Error('forged')
    insert.run(`event ${number}`, payload)
  }
  const elapsed = performance.now() - started
  database.close()
  await rm(folder, { recursive: true, force: true })
  return (count * 1000) / elapsed
}

async function startPeer(): Promise<Target & AsyncDisposable> {
  const child = fork(new URL('clock-peer.ts', import.meta.url), {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  })
  const [{ url, did }] = (await once(child, 'message')) as [
    { url: string; did: string },
  ]
  return {
    url: new URL(url),
    did,
    async [Symbol.asyncDispose]() {
      const exit = once(child, 'exit')
      child.disconnect()
      await exit
    },
  }
}

async function linkOf(value: unknown): Promise<CID> {
  return CID.createV1(dagCBOR.code, await sha256.digest(dagCBOR.encode(value)))
}
