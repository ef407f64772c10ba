import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, stat } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { DID } from '@ucanto/core'
import { ed25519 } from '@ucanto/principal'
import pg from 'pg'
import { BACKUP_ABILITIES } from '../../../src/capabilities/index.ts'
import {
  Backup,
  type Connection,
  type InvocationConfig,
} from '../../../src/client/index.ts'
import {
  seedAccount,
  startNetwork,
  type Account,
  type Network,
} from '../../network/index.ts'
import { createStorachaClient } from '../../network/storacha-client.ts'
import { allow } from '../harness.ts'
import { loadServiceProcess } from '../service-process.ts'
import type { TestStore } from '../slow-stores.ts'
import type { Target } from './world.ts'

/** Spaces whose owners only want their backups. */
const GOOD = 20
/** Of these, Spaces whose owners logged in by email. */
const BY_EMAIL = 5
/** Hostile Spaces with a storage provider, and without. */
const PROVISIONED = 10
const STRANGERS = 10
/** Seconds between two backups of a schedule. */
const EVERY = 60
/** Milliseconds between two looks at a schedule. */
const LOOK = 5_000
const MINUTE = 60_000

const ABILITIES = ['backup/run', ...BACKUP_ABILITIES]

/** The service as it is by default, but for schedules every minute. */
const SETTINGS = {
  BLUESKY_BACKUPS_PROVISIONING_POLICY: 'require',
  BLUESKY_BACKUPS_REVOCATIONS_POLICY: 'open',
  BLUESKY_BACKUPS_SPACE_RATE: '',
  BLUESKY_BACKUPS_ISSUER_RATE: '',
  BLUESKY_BACKUPS_MIN_SCHEDULE_INTERVAL: `${EVERY}`,
}

/** What good tenants and operators see of a service. */
export interface Figures {
  /** Milliseconds from the time of a backup to its end, at most. */
  lateness: number
  /** Milliseconds without an answer to `/health/alive`, at most. */
  silence: number
  /** Memory of the process at its peak, in bytes. */
  memory: number
  /** Bytes by which the database has grown. */
  growth: number
  /** Backups that were due, of all good Spaces. */
  backups: number
  /** What came of each attack: how often, by outcome. */
  attacks: Record<string, Record<string, number>>
}

/**
 * Runs a service for well-behaved tenants, beside hostile ones if wanted.
 *
 * @param options.minutes - how long
 * @param options.hostile - whether the hostile tenants are there
 * @throws AssertionError when a backup of a good Space is missing or wrong
 */
export async function runTenants(
  store: TestStore,
  {
    minutes,
    hostile,
    say = () => {},
  }: { minutes: number; hostile: boolean; say?: (line: string) => void }
): Promise<Figures> {
  await using resources = new AsyncDisposableStack()
  const network = resources.use(await startNetwork())
  const service = resources.use(
    await loadServiceProcess(store, { ...network.environment, ...SETTINGS })
  )
  const connection = await service.start()
  assert.ok(connection)
  const url = urlOf(connection)
  const agent = await agentOf(url)
  const tenants: GoodTenant[] = []
  for (let at = 0; at < GOOD; at++) {
    tenants.push(
      await createGoodTenant(network, { at, byEmail: at < BY_EMAIL, agent })
    )
  }
  await Promise.all(tenants.map((tenant) => tenant.schedule(connection)))
  await Promise.all(tenants.map((tenant) => tenant.firstBackup(connection)))
  say(`${GOOD} Spaces have their first backups`)

  const attackers = hostile
    ? resources.use(await startAttackers(network, { connection, agent }))
    : undefined
  const before = await sizeOf(store)
  const probe = startProbe(url)
  attackers?.attack()
  const stopping = new AbortController()
  const living = tenants.map((tenant) =>
    tenant.live(connection, stopping.signal)
  )
  // What ends too early is told at once.
  await Promise.race([
    sleep(minutes * MINUTE),
    Promise.all(living),
    service.exited.then(() => {
      throw new Error('the service ended')
    }),
  ])
  const memory = await peakOf(service.pid)
  const silence = await probe.end()
  const growth = (await sizeOf(store)) - before
  const attacks = (await attackers?.end()) ?? {}
  stopping.abort()
  await Promise.all(living)
  const lateness = tenants.flatMap((tenant) => tenant.lateness())
  for (const tenant of tenants) await tenant.check(connection)
  return {
    lateness: Math.max(...lateness),
    silence,
    memory,
    growth,
    backups: lateness.length,
    attacks,
  }
}

interface GoodTenant {
  schedule(connection: Connection): Promise<void>
  firstBackup(connection: Connection): Promise<void>
  /** Posts, and looks after the schedule, until it is stopped. */
  live(connection: Connection, signal: AbortSignal): Promise<void>
  /** Of each backup that was due, milliseconds until it was there. */
  lateness(): number[]
  /** The last backup has what was posted a while ago. */
  check(connection: Connection): Promise<void>
}

async function createGoodTenant(
  network: Network,
  { at, byEmail, agent }: { at: number; byEmail: boolean; agent: string }
): Promise<GoodTenant> {
  const account = await network.pds.createAccount({ handle: `good-${at}.test` })
  await seedAccount(account.agent, { posts: 5, blobs: [500], salt: `${at}` })
  const { config, delegation } = byEmail
    ? await logIn(network, `good-${at}@example.com`, agent)
    : await ownSpace(network, agent)
  const did = account.did as `did:plc:${string}`
  /** Times at which backups were due, in Unix milliseconds. */
  const due = new Set<number>()
  const done = new Set<number>()
  const posts: { at: number; rev: string }[] = []
  let stopped = 0

  const look = async (connection: Connection): Promise<void> => {
    const { ok, error } = await Backup.schedules(config, {
      connection,
      nonce: crypto.randomUUID(),
    })
    if (error) {
      // Asking again is what every client does.
      assert.equal(error.name, 'ServiceUnavailable', error.message)
      return
    }
    const [schedule] = ok.schedules
    assert.ok(schedule)
    assert.equal(schedule.state, 'active', JSON.stringify(schedule.reason))
    if (schedule.next !== undefined) due.add(schedule.next)
    const { lastRun } = schedule
    if (lastRun && lastRun.outcome !== 'failed') done.add(lastRun.finished)
  }

  return {
    async schedule(connection) {
      const { error } = await Backup.schedule(
        config,
        { account: did, every: EVERY, delegation },
        { connection }
      )
      assert.equal(error, undefined, error?.message)
    },

    async firstBackup(connection) {
      while (done.size === 0) {
        await look(connection)
        await sleep(500)
      }
      due.clear()
    },

    async live(connection, signal) {
      let posted = 0
      while (!signal.aborted) {
        await look(connection)
        if (Date.now() - posted > MINUTE) {
          posted = Date.now()
          posts.push(await post(account))
        }
        await sleep(LOOK, undefined, { signal }).catch(() => {})
      }
      stopped = Date.now()
    },

    lateness() {
      const ends = [...done].sort((a, b) => a - b)
      return [...due]
        .filter((time) => time < stopped)
        .map((time) => {
          const end = ends.find((end) => end >= time)
          return (end ?? stopped) - time
        })
    },

    async check(connection) {
      const { ok } = await Backup.status(
        config,
        { account: did, limit: 1 },
        { connection, nonce: crypto.randomUUID() }
      )
      const outcome = ok?.runs[0]?.outcome
      const old = posts.filter(({ at }) => at < stopped - 2 * MINUTE)
      for (const { rev } of old) {
        assert.ok(outcome && outcome.rev >= rev, 'a post is not backed up')
      }
    },
  }
}

type Granted = {
  config: InvocationConfig
  delegation: Awaited<ReturnType<typeof allow>>
}

/** A Space whose owner uses its key. */
async function ownSpace(network: Network, agent: string): Promise<Granted> {
  const space = await ed25519.generate()
  await network.storacha.provision(space.did())
  return {
    config: { issuer: space, with: space.did(), agent },
    delegation: await allow(space, agent, ABILITIES),
  }
}

/** A Space whose owner logged in on a second device by email. */
async function logIn(
  { storacha }: Network,
  email: `${string}@${string}`,
  agent: string
): Promise<Granted> {
  const laptop = await createStorachaClient(storacha)
  const account = await laptop.login(email)
  const space = await laptop.createSpace('backups', {
    account,
    skipGatewayAuthorization: true,
  })
  const phone = await createStorachaClient(storacha)
  await phone.login(email)
  await phone.capability.access.claim()
  await phone.setCurrentSpace(space.did())
  return {
    config: {
      issuer: phone.agent.issuer,
      with: space.did(),
      agent,
      proofs: phone.proofs([{ can: 'backup/run', with: space.did() }] as never),
    },
    delegation: await phone.createDelegation(
      DID.parse(agent),
      ABILITIES as never,
      { expiration: Infinity }
    ),
  }
}

async function post({
  did,
  agent,
}: Account): Promise<{ at: number; rev: string }> {
  await agent.post({ text: `good news of ${new Date().toISOString()}` })
  const { data } = await agent.com.atproto.sync.getLatestCommit({ did })
  return { at: Date.now(), rev: data.rev }
}

interface Attackers extends AsyncDisposable {
  attack(): void
  /** @returns what came of each attack */
  end(): Promise<Figures['attacks']>
}

async function startAttackers(
  network: Network,
  { connection, agent }: { connection: Connection; agent: string }
): Promise<Attackers> {
  const { storacha, plc, pds } = network
  const provisioned: string[] = []
  const accounts: `did:plc:${string}`[] = []
  for (let at = 0; at < PROVISIONED; at++) {
    const space = await ed25519.generate()
    await storacha.provision(space.did())
    provisioned.push(ed25519.format(space))
    const account = await pds.createAccount({ handle: `hostile-${at}.test` })
    await seedAccount(account.agent, { posts: 1 })
    accounts.push(account.did as `did:plc:${string}`)
  }
  const target: Target = {
    url: urlOf(connection).href,
    did: connection.id.did(),
    agent,
    storacha: {
      url: storacha.url,
      did: storacha.did,
      receiptsUrl: storacha.receiptsUrl,
    },
    plcUrl: plc.url,
    provisioned,
    strangers: STRANGERS,
    accounts,
  }
  const script = fileURLToPath(new URL('attack-process.ts', import.meta.url))
  const child = spawn(process.execPath, [script, JSON.stringify(target)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const exited = once(child, 'exit')
  child.stdin.on('error', () => {})
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  const ready = await lines.next()
  if (ready.done) throw new Error('the attackers could not be started')
  return {
    attack: () => void child.stdin.write('attack\n'),
    async end() {
      child.stdin.write('end\n')
      const line = await lines.next()
      if (line.done) throw new Error('the attackers ended without a word')
      return JSON.parse(line.value) as Figures['attacks']
    },
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL')
      await exited
    },
  }
}

/** @returns how to end it, and how long the service was silent at most, in ms */
function startProbe(url: URL): { end(): Promise<number> } {
  const probe = new Worker(new URL('probe-thread.ts', import.meta.url), {
    workerData: { url: url.href },
  })
  const told = once(probe, 'message')
  return {
    async end() {
      probe.postMessage('end')
      const [{ longest, answers }] = (await told) as [
        { longest: number; answers: number },
      ]
      assert.ok(answers > 0)
      return longest
    },
  }
}

/** @returns bytes that the database takes */
async function sizeOf({ options, dataFolder }: TestStore): Promise<number> {
  if ('path' in options) {
    const sizes = await Promise.all(
      ['', '-wal'].map((suffix) =>
        stat(`${options.path}${suffix}`).then(
          ({ size }) => size,
          () => 0
        )
      )
    )
    return sizes.reduce((sum, size) => sum + size, 0)
  }
  assert.ok(dataFolder)
  const client = new pg.Client(options.databaseUrl)
  await client.connect()
  const { rows } = await client.query<{ size: string }>(
    'select pg_database_size(current_database()) as size'
  )
  await client.end()
  return Number(rows[0]?.size)
}

/** @returns the most memory that a process had, in bytes */
async function peakOf(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8')
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024
}

function urlOf({ id }: Connection): URL {
  const host = decodeURIComponent(id.did().slice('did:web:'.length))
  return new URL(`http://${host}/`)
}

async function agentOf(url: URL): Promise<string> {
  const response = await fetch(url)
  return ((await response.json()) as { agent: string }).agent
}
