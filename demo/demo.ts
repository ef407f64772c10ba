/**
 * The whole path once, on loopback: a real account on a real PDS is backed up
 * into a real Space through the service, changed, backed up again, exported,
 * and compared with what the PDS serves.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import type { AtpAgent } from '@atproto/api'
import { CarReader } from '@ipld/car/reader'
import { Delegation, DID } from '@ucanto/core'
import type { Principal, Signer } from '@ucanto/interface'
import Table from 'cli-table3'
import { openBackup, type BackupReader } from '../src/backup/index.ts'
import {
  BACKUP_ABILITIES,
  SPACE_INFO,
  type Backup as BackupProtocol,
} from '../src/capabilities/index.ts'
import { exportBackup } from '../src/cli/export.ts'
import {
  Backup,
  Clock,
  connect,
  discover,
  type InvocationConfig,
  type InvocationOptions,
} from '../src/client/index.ts'
import { createNativeSha256 } from '../src/node/index.ts'
import { readConfig, startService } from '../src/service/index.ts'
import {
  listBackups,
  mergeHeads,
  type DID as AnyDID,
  type EventLink,
} from '../src/space/index.ts'
import { createSpaceReader } from '../src/storacha/index.ts'
import {
  createBytes,
  seedAccount,
  startNetwork,
} from '../test/network/index.ts'
import { createStorachaClient } from '../test/network/storacha-client.ts'

const POSTS = 1000
const LIKES = 600
const FOLLOWS = 340
const MEGABYTE = 1024 * 1024
/** With the 1,940 records above, the 60 posts of these make 2,000. */
const BLOB_SIZES = [
  Math.round(5.5 * MEGABYTE),
  Math.round(1.4 * MEGABYTE),
  ...Array.from({ length: 58 }, (_, index) => 20_000 + index * 1_500),
]
const NEW_POSTS = 10
const NEW_IMAGE_SIZE = 123_456
const POLL_INTERVAL = 100
/** Collections that the account writes to. */
const COLLECTIONS = [
  'app.bsky.feed.post',
  'app.bsky.feed.like',
  'app.bsky.graph.follow',
  'com.example.file',
]
const DAY = 24 * 60 * 60

const USAGE = `Usage: npm run demo [-- OPTIONS]

Backs up a real account on a local PDS into a real Space at a local upload
service, twice, exports both backups and compares them with the PDS.

Options:
  --json   print one JSON object as the last line
  --keep   leave everything running, and print what to try next
  --help   print this

Example:
  npm run demo -- --json | tail -n 1 | jq .runs
`

/** What the account's host served when a backup was made. */
interface Served {
  /** CIDs of all blocks of the repository. */
  blocks: Set<string>
  blobs: Set<string>
  records: number
}

/** A backup in the Space. */
interface ListedBackup {
  timestamp: string
  backup: BackupReader
}

/** The backup is not what the host served. */
class DifferenceError extends Error {
  override readonly name = 'DifferenceError'
}

async function main(): Promise<void> {
  const { values: options } = parseArgs({
    options: {
      json: { type: 'boolean', default: false },
      keep: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  if (options.help) {
    process.stdout.write(USAGE)
    return
  }
  const say = (line: string) =>
    (options.json ? process.stderr : process.stdout).write(`${line}\n`)
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => stop.abort(new Error(`stopped by ${signal}`)))
  }

  await using resources = new AsyncDisposableStack()
  const folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-demo-'))
  resources.defer(() => rm(folder, { recursive: true, force: true }))

  const network = resources.use(await startNetwork())
  say(`PLC directory    ${network.plc.url}`)
  say(`PDS              ${network.pds.url}`)
  say(`upload service   ${network.storacha.url}`)
  const service = resources.use(
    await startService(
      readConfig(
        {
          port: '0',
          dataFolder: join(folder, 'service'),
          logLevel: 'error',
        },
        network.environment
      )
    )
  )
  const info = await discover(service.url)
  say(`backup service   ${service.url.origin} (${info.did})`)

  const alice = await network.pds.createAccount({ handle: 'alice.test' })
  say(
    `\n${alice.handle} writes ${POSTS + LIKES + FOLLOWS + BLOB_SIZES.length} records with ${BLOB_SIZES.length} blobs …`
  )
  await seedAccount(alice.agent, {
    posts: POSTS,
    likes: LIKES,
    follows: FOLLOWS,
    blobs: BLOB_SIZES,
  })

  const storacha = await createStorachaClient(network.storacha)
  const customer = await storacha.login('alice@example.com')
  const space = await storacha.createSpace('backups', {
    account: customer,
    skipGatewayAuthorization: true,
  })
  await storacha.setCurrentSpace(space.did())
  say(`${customer.toEmail()} logs in to Storacha and creates ${space.did()}`)

  const agent: InvocationConfig = {
    issuer: storacha.agent.issuer,
    with: space.did(),
    proofs: [
      await delegate(space, storacha.agent.issuer, [
        'clock/*',
        'backup/*',
        SPACE_INFO,
      ]),
    ],
    agent: info.agent,
  }
  const connection = connect({ url: service.url, did: info.did })
  const delegation = await delegate(
    space,
    DID.parse(info.agent),
    BACKUP_ABILITIES
  )
  const backUp = () =>
    runToEnd(
      agent,
      alice.did as AnyDID,
      delegation,
      { connection },
      {
        onProgress: (line) => say(`  ${line}`),
        signal: stop.signal,
      }
    )

  say('\nfirst backup')
  const first = await backUp()
  const servedFirst = await readServed(network.pds.url, alice.did)
  await listFromSpace(network.storacha.url, agent, connection, alice.did, say)

  say(`\n${alice.handle} adds ${NEW_POSTS} posts and an image`)
  await writeMore(alice.agent)
  say('second backup')
  const second = await backUp()
  const servedSecond = await readServed(network.pds.url, alice.did)
  const backups = await listFromSpace(
    network.storacha.url,
    agent,
    connection,
    alice.did,
    say
  )

  say('\nexporting both backups from the Space and comparing with the PDS')
  const [newest, oldest] = backups
  if (backups.length !== 2 || !newest || !oldest) {
    throw new DifferenceError(
      `the Space lists ${backups.length} backups, not 2`
    )
  }
  await compare(oldest, servedFirst, join(folder, 'first'), network.pds.url)
  await compare(newest, servedSecond, join(folder, 'second'), network.pds.url)

  const runs = [first, second].map((outcome) => ({
    kind: outcome.kind,
    blocksUploaded: outcome.blocksUploaded,
    bytesUploaded: outcome.bytesUploaded,
    blobsUploaded: outcome.blobsUploaded,
    requests: outcome.requests,
    ms: outcome.ms,
  }))
  say(`\n${tableOf(runs)}`)
  say('both backups are exactly what the PDS serves')

  if (options.keep) {
    say(hints(network.environment, service.url, alice.handle))
    if (options.json) say('')
  }
  if (options.json) {
    process.stdout.write(
      `${JSON.stringify({
        records: servedSecond.records,
        blobs: servedSecond.blobs.size,
        runs,
        verified: true,
      })}\n`
    )
  }
  if (options.keep && !stop.signal.aborted) {
    await new Promise<void>((resolve) => {
      stop.signal.addEventListener('abort', () => resolve(), { once: true })
    })
  }
}

async function delegate(
  space: { signer: Signer; did(): `did:key:${string}` },
  audience: Principal,
  abilities: readonly `${string}/${string}`[]
) {
  return Delegation.delegate({
    issuer: space.signer,
    audience,
    capabilities: abilities.map((can) => ({ can, with: space.did() })) as never,
    expiration: Math.floor(Date.now() / 1000) + DAY,
  })
}

/** Asks for a backup and waits for its end. */
async function runToEnd(
  agent: InvocationConfig,
  account: AnyDID,
  delegation: Awaited<ReturnType<typeof delegate>>,
  options: InvocationOptions,
  {
    onProgress,
    signal,
  }: { onProgress: (line: string) => void; signal: AbortSignal }
): Promise<BackupProtocol.RunOutcome> {
  const started = await Backup.run(agent, { account, delegation }, options)
  if (started.error) throw refused('backup/run', started.error)
  let shown = ''
  for (;;) {
    signal.throwIfAborted()
    const status = await Backup.status(agent, { run: started.ok.run }, options)
    if (status.error) throw refused('backup/status', status.error)
    const run = status.ok.runs[0]
    if (run?.progress) {
      const { stage, records, blobsDone, blobs, bytesUploaded } = run.progress
      const line = `${stage}: ${records} records, ${blobsDone} of ${blobs} blobs, ${inMegabytes(bytesUploaded)} uploaded`
      if (line !== shown) onProgress(line)
      shown = line
    }
    if (run?.outcome) {
      const { bytesUploaded, blocksUploaded, ms } = run.outcome
      onProgress(
        `done: ${blocksUploaded} blocks in ${inMegabytes(bytesUploaded)}, ${ms} ms`
      )
      return run.outcome
    }
    if (run?.state === 'failed') throw refused('the run', run.error)
    await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL))
  }
}

function refused(
  what: string,
  error: { name: string; message: string } | undefined
): Error {
  return new Error(`${what} failed: ${error?.name}: ${error?.message}`)
}

/** Reads the list of backups from the Space, newest first, and shows it. */
async function listFromSpace(
  gateway: string,
  agent: InvocationConfig,
  connection: InvocationOptions['connection'],
  account: string,
  say: (line: string) => void
): Promise<ListedBackup[]> {
  const head = await Clock.head(agent, { connection })
  if (head.error) throw refused('clock/head', head.error)
  // A reader of its own for each list: nothing comes from a cache.
  const reader = createSpaceReader({
    gateways: [new URL(gateway)],
    fetch: globalThis.fetch,
    createSha256: createNativeSha256,
  })
  const { state } = await mergeHeads(reader, head.ok.head as EventLink[])
  const backups: ListedBackup[] = []
  say('  in the Space:')
  for await (const { timestamp, backup } of listBackups(
    reader,
    state,
    account as AnyDID,
    { reverse: true }
  )) {
    const opened = await openBackup(reader, backup, {
      createSha256: createNativeSha256,
    })
    backups.push({ timestamp, backup: opened })
    say(`  ${timestamp}  rev ${opened.value.rev}  ${backup}`)
  }
  return backups
}

async function writeMore(agent: AtpAgent): Promise<void> {
  for (let index = 1; index < NEW_POSTS; index++) {
    await agent.post({ text: `one more, ${index}` })
  }
  const { data } = await agent.uploadBlob(
    createBytes(NEW_IMAGE_SIZE, 'one more image'),
    { encoding: 'image/jpeg' }
  )
  await agent.post({
    text: 'one more, with an image',
    embed: {
      $type: 'app.bsky.embed.images',
      images: [{ image: data.blob, alt: 'noise' }],
    },
  })
}

/** What the PDS serves, read without any code of the project. */
async function readServed(pds: string, did: string): Promise<Served> {
  const get = async (method: string) => {
    const response = await fetch(`${pds}/xrpc/com.atproto.${method}`)
    if (!response.ok) throw new Error(`${method} answered ${response.status}`)
    return response
  }
  const car = await CarReader.fromBytes(
    new Uint8Array(await (await get(`sync.getRepo?did=${did}`)).arrayBuffer())
  )
  const blocks = new Set<string>()
  for await (const { cid } of car.blocks()) blocks.add(cid.toString())
  const listed = (await (
    await get(`sync.listBlobs?did=${did}&limit=1000`)
  ).json()) as { cids: string[] }
  let records = 0
  for (const collection of COLLECTIONS) {
    let cursor: string | undefined
    do {
      const page = (await (
        await get(
          `repo.listRecords?repo=${did}&collection=${collection}&limit=100${cursor ? `&cursor=${cursor}` : ''}`
        )
      ).json()) as { records: unknown[]; cursor?: string }
      records += page.records.length
      cursor = page.cursor
    } while (cursor)
  }
  return { blocks, blobs: new Set(listed.cids), records }
}

/** Exports a backup and compares each block and blob with the PDS. */
async function compare(
  { timestamp, backup }: ListedBackup,
  served: Served,
  folder: string,
  pds: string
): Promise<void> {
  const manifest = await exportBackup(backup, folder, { timestamp })
  const car = await CarReader.fromBytes(
    await readFile(join(folder, 'repo.car'))
  )
  const blocks = new Set<string>()
  for await (const { cid } of car.blocks()) blocks.add(cid.toString())
  expectSame('blocks of the repository', blocks, served.blocks)
  expectSame(
    'blobs',
    new Set(manifest.blobs.map(({ cid }) => cid)),
    served.blobs
  )
  if (manifest.records !== served.records) {
    throw new DifferenceError(
      `the backup has ${manifest.records} records, the PDS ${served.records}`
    )
  }
  for (const { cid, file } of manifest.blobs) {
    const response = await fetch(
      `${pds}/xrpc/com.atproto.sync.getBlob?did=${backup.value.account}&cid=${cid}`
    )
    const expected = new Uint8Array(await response.arrayBuffer())
    const exported = await readFile(join(folder, file))
    if (!exported.equals(expected)) {
      throw new DifferenceError(
        `the exported blob ${cid} is not that of the PDS`
      )
    }
  }
}

function expectSame(
  what: string,
  found: Set<string>,
  served: Set<string>
): void {
  const lost = served.difference(found)
  const extra = found.difference(served)
  if (lost.size === 0 && extra.size === 0) return
  throw new DifferenceError(
    `${what}: ${lost.size} that the PDS serves are not in the backup, ${extra.size} are in the backup only`
  )
}

function tableOf(
  runs: Pick<
    BackupProtocol.RunOutcome,
    | 'kind'
    | 'blocksUploaded'
    | 'bytesUploaded'
    | 'blobsUploaded'
    | 'requests'
    | 'ms'
  >[]
): string {
  const table = new Table({
    head: ['backup', 'blocks', 'bytes', 'blobs', 'requests', 'ms'],
    colAligns: ['left', 'right', 'right', 'right', 'right', 'right'],
    style: { head: [], border: [] },
  })
  for (const run of runs) {
    table.push([
      run.kind,
      run.blocksUploaded,
      run.bytesUploaded,
      run.blobsUploaded,
      run.requests,
      run.ms,
    ])
  }
  return table.toString()
}

function inMegabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`
}

function hints(
  environment: Record<string, string>,
  service: URL,
  handle: string
): string {
  const variables = Object.entries({
    ...environment,
    BLUESKY_BACKUPS_SERVICE_URL: service.origin,
    BLUESKY_BACKUPS_HOME: './demo-agent',
  })
  return [
    '\nEverything goes on running until Ctrl-C. In another terminal:',
    ...variables.map(([name, value]) => `  export ${name}='${value}'`),
    '  npx bluesky-backups login you@example.com',
    '  npx bluesky-backups space create mine',
    `  npx bluesky-backups backup run ${handle}`,
    '  npx bluesky-backups backup ls',
    '  npx bluesky-backups backup export latest --out ./exported',
  ].join('\n')
}

try {
  await main()
} catch (error) {
  process.stderr.write(
    `error: ${error instanceof Error ? `${error.name}: ${error.message}` : String(error)}\n`
  )
  process.exitCode = 1
}
