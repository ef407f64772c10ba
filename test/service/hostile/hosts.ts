import { createHash } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { Secp256k1Keypair } from '@atproto/crypto'
import {
  getFullRepo,
  MemoryBlockstore,
  Repo,
  WriteOpAction,
} from '@atproto/repo'
import { Client, didForCreateOp, signOperation } from '@did-plc/lib'
import { CID } from 'multiformats/cid'
import {
  encodeCarHeader,
  encodeCarSection,
  repoCidBytes,
} from '../../../src/backup/car.ts'
import {
  openLoopbackServer,
  type Handler,
} from '../../network/loopback-server.ts'

/** What is wrong with a host. */
export type Malice =
  /** It accepts requests and never answers. */
  | 'hangs'
  /** It sends one byte every five seconds. */
  | 'trickles'
  /** It sends blocks without end that belong to nothing. */
  | 'sends-junk'
  /** Its account is well signed and refers to 200,000 blobs that do not exist. */
  | 'makes-up-blobs'

/** Milliseconds between two bytes of a host that trickles. */
const TRICKLE = 5_000
/** Blocks of junk that are made; the host repeats them. */
const JUNK_BLOCKS = 400_000
/** Size of what a host that sends junk sends at once, in bytes. */
const JUNK_CHUNK = 1024 * 1024
const RECORDS = 10
const BLOBS_PER_RECORD = 20_000
/** A TID, so that the answer looks right. */
const REV = '3lqvxk5jw2c2a'

/** An account on a hostile host. */
export interface HostileAccount {
  did: `did:plc:${string}`
  malice: Malice
}

export interface HostileHosts extends AsyncDisposable {
  accounts: HostileAccount[]
}

/**
 * Starts hosts that attack those who read them, each on a port of its own,
 * and registers their accounts.
 *
 * @param kinds - what each host does, and how many accounts it has
 */
export async function startHostileHosts(
  plcUrl: string,
  kinds: { malice: Malice; accounts: number }[]
): Promise<HostileHosts> {
  await using resources = new AsyncDisposableStack()
  const plc = new Client(plcUrl)
  const accounts: HostileAccount[] = []
  for (const { malice, accounts: count } of kinds) {
    const server = resources.use(await openLoopbackServer())
    const repos = new Map<string, HostedRepo>()
    server.serve(handlers[malice](repos))
    for (let at = 0; at < count; at++) {
      const key = await Secp256k1Keypair.create()
      const did = await register(plc, key, server.url)
      if (malice === 'makes-up-blobs') repos.set(did, await makeUp(did, key))
      accounts.push({ did, malice })
    }
  }
  const owned = resources.move()
  return { accounts, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

interface HostedRepo {
  car: Uint8Array
  commit: { cid: string; rev: string }
}

const handlers: Record<Malice, (repos: Map<string, HostedRepo>) => Handler> = {
  hangs: () => () => {},

  trickles: () => async (request, response) => {
    if (methodOf(request) === 'getLatestCommit') return latest(response)
    response.writeHead(200, { 'content-type': 'application/vnd.ipld.car' })
    while (!response.destroyed) {
      response.write(Uint8Array.of(1))
      await sleep(TRICKLE)
    }
  },

  'sends-junk': () => {
    const chunks = junk()
    return async (request, response) => {
      if (methodOf(request) === 'getLatestCommit') return latest(response)
      response.writeHead(200, { 'content-type': 'application/vnd.ipld.car' })
      response.write(encodeCarHeader([JUNK_ROOT]))
      await send(response, chunks)
    }
  },

  'makes-up-blobs': (repos) => async (request, response) => {
    const url = new URL(request.url ?? '/', 'http://host.test')
    const repo = repos.get(url.searchParams.get('did') ?? '')
    const method = methodOf(request)
    if (repo && method === 'getLatestCommit') return json(response, repo.commit)
    if (repo && method === 'getRepo') {
      response.writeHead(200, { 'content-type': 'application/vnd.ipld.car' })
      response.end(repo.car)
      return
    }
    if (method === 'listBlobs') return json(response, { cids: [] })
    json(response, { error: 'InvalidRequest', message: 'Blob not found' }, 400)
  },
}

/** The digest of nothing that exists. */
const JUNK_ROOT = CID.decode(repoCidBytes(new Uint8Array(32).fill(7)))

function methodOf(request: IncomingMessage): string {
  return /com\.atproto\.sync\.(\w+)/.exec(request.url ?? '')?.[1] ?? ''
}

function json(response: ServerResponse, body: object, status = 200): void {
  response.writeHead(status, { 'content-type': 'application/json' })
  response.end(JSON.stringify(body))
}

function latest(response: ServerResponse): void {
  json(response, { cid: JUNK_ROOT.toString(), rev: REV })
}

/** Sends the chunks again and again, as fast as the other side takes them. */
async function send(
  response: ServerResponse,
  chunks: Uint8Array[]
): Promise<void> {
  const forever = function* () {
    for (;;) yield* chunks
  }
  const stream = Readable.from(forever(), { objectMode: false })
  response.on('close', () => stream.destroy())
  stream.on('error', () => response.destroy())
  stream.pipe(response)
}

/** Sections of a CAR with small blocks, each with its right CID. */
function junk(): Uint8Array[] {
  const chunks: Uint8Array[] = []
  let parts: Uint8Array[] = []
  let size = 0
  for (let at = 0; at < JUNK_BLOCKS; at++) {
    const bytes = new Uint8Array(4)
    new DataView(bytes.buffer).setUint32(0, at)
    const digest = createHash('sha256').update(bytes).digest()
    const section = encodeCarSection(repoCidBytes(digest), bytes.length)
    parts.push(section, bytes)
    size += section.length + bytes.length
    if (size < JUNK_CHUNK && at < JUNK_BLOCKS - 1) continue
    chunks.push(Buffer.concat(parts))
    parts = []
    size = 0
  }
  return chunks
}

/** A repository whose records refer to blobs that nobody has. */
async function makeUp(did: string, key: Secp256k1Keypair): Promise<HostedRepo> {
  const storage = new MemoryBlockstore()
  const collection = 'org.example.made.up'
  const repo = await Repo.create(
    storage,
    did,
    key,
    Array.from({ length: RECORDS }, (_, record) => ({
      action: WriteOpAction.Create,
      collection,
      rkey: `record-${record}`,
      record: {
        $type: collection,
        blobs: Array.from({ length: BLOBS_PER_RECORD }, (_, at) => ({
          cid: `${record}.${at}`,
          mimeType: '',
        })),
      },
    }))
  )
  const parts: Uint8Array[] = []
  for await (const part of getFullRepo(storage, repo.cid)) parts.push(part)
  return {
    car: Buffer.concat(parts),
    commit: { cid: repo.cid.toString(), rev: repo.commit.rev },
  }
}

async function register(
  plc: Client,
  key: Secp256k1Keypair,
  endpoint: string
): Promise<`did:plc:${string}`> {
  const operation = await signOperation(
    {
      type: 'plc_operation',
      rotationKeys: [key.did()],
      verificationMethods: { atproto: key.did() },
      alsoKnownAs: ['at://mallory.test'],
      services: {
        atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint },
      },
      prev: null,
    },
    key
  )
  const did = await didForCreateOp(operation)
  await plc.sendOperation(did, operation)
  return did as `did:plc:${string}`
}
