import { fork, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Delegation, DID } from '@ucanto/core'
import type { Principal } from '@ucanto/interface'
import {
  BACKUP_ABILITIES,
  SPACE_INFO,
  type Backup as BackupProtocol,
} from '../src/capabilities/index.ts'
import { Backup, connect } from '../src/client/index.ts'
import { createEnvironment, type Storacha } from '../test/network/index.ts'
import { createStorachaClient } from '../test/network/storacha-client.ts'
import type { NetworkRequest } from './network-process.ts'

const POLL_INTERVAL = 50
const DAY = 24 * 60 * 60

type Request = NetworkRequest extends infer Each
  ? Each extends { id: number }
    ? Omit<Each, 'id'>
    : never
  : never

type Storage = Pick<Storacha, 'url' | 'did' | 'didKey' | 'receiptsUrl'>

/** A local network in other processes. */
export interface Network extends AsyncDisposable {
  environment: Record<string, string>
  /** URL of the PDS. */
  pds: string
  /** The account that is backed up. */
  did: `did:${string}:${string}`
  storacha: Storage
  ask(request: Request): Promise<unknown>
}

export async function startNetworkProcess(): Promise<Network> {
  const host = await startHalf<{
    plc: string
    pds: string
    did: Network['did']
  }>('host')
  const storage = await startHalf<Storage>('storage')
  const { plc, pds, did } = host.described
  return {
    environment: createEnvironment({
      plc: { url: plc },
      pds: { url: pds },
      storacha: storage.described,
    }),
    pds,
    did,
    storacha: storage.described,
    ask: (request) =>
      (request.do === 'bytes-put' ? storage : host).ask(request),
    async [Symbol.asyncDispose]() {
      await host.close()
      await storage.close()
    },
  }
}

async function startHalf<Described>(half: 'host' | 'storage') {
  const child = fork(new URL('network-process.ts', import.meta.url), [half], {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  })
  const waiting = new Map<number, PromiseWithResolvers<unknown>>()
  const expect = (id: number) => {
    const answer = Promise.withResolvers<unknown>()
    waiting.set(id, answer)
    return answer.promise
  }
  child.on(
    'message',
    ({ id, ok, error }: { id: number; ok?: unknown; error?: string }) => {
      if (error === undefined) waiting.get(id)?.resolve(ok)
      else waiting.get(id)?.reject(new Error(error))
      waiting.delete(id)
    }
  )
  const described = (await expect(0)) as Described
  let lastId = 0
  return {
    described,
    ask(request: Request) {
      const id = ++lastId
      const answer = expect(id)
      child.send({ ...request, id })
      return answer
    },
    close: () => ended(child, () => child.disconnect()),
  }
}

/** Our service in another process, as operators run it. */
export interface ServiceProcess extends AsyncDisposable {
  url: URL
  did: string
  agent: string
  /** Memory in bytes: now, and the most so far. */
  memory(): Promise<{ resident: number; peak: number }>
}

export async function startServiceProcess(
  network: Pick<Network, 'environment'>
): Promise<ServiceProcess> {
  const folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-bench-'))
  const child = spawn(
    process.execPath,
    [
      new URL('../bin/bluesky-backups.js', import.meta.url).pathname,
      'serve',
      '--json',
      ...['--port', '0', '--data-folder', folder, '--log-level', 'warn'],
    ],
    {
      env: { ...process.env, ...network.environment },
      stdio: ['ignore', 'pipe', 'inherit'],
    }
  )
  const lines = createInterface({ input: child.stdout })
  const [line] = (await once(lines, 'line')) as [string]
  const { url, did, agent } = JSON.parse(line) as Record<
    'url' | 'did' | 'agent',
    string
  >
  return {
    url: new URL(url),
    did,
    agent,
    async memory() {
      const status = await readFile(`/proc/${child.pid}/status`, 'utf8')
      const field = (name: string) =>
        Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1]) *
        1024
      return { resident: field('VmRSS'), peak: field('VmHWM') }
    },
    async [Symbol.asyncDispose]() {
      await ended(child, () => child.kill('SIGTERM'))
      await rm(folder, { recursive: true, force: true })
    },
  }
}

async function ended(child: ChildProcess, stop: () => void): Promise<void> {
  if (child.exitCode !== null) return
  const exit = once(child, 'exit')
  stop()
  await exit
}

/** Somebody with a new Space, and the agent that uses it. */
export async function createCustomer(network: Network) {
  const client = await createStorachaClient(network.storacha)
  const account = await client.login('alice@example.com')
  const space = await client.createSpace('bench', {
    account,
    skipGatewayAuthorization: true,
  })
  await client.setCurrentSpace(space.did())
  const delegate = (audience: Principal, abilities: readonly string[]) =>
    Delegation.delegate({
      issuer: space.signer,
      audience,
      capabilities: abilities.map((can) => ({
        can,
        with: space.did(),
      })) as never,
      expiration: Math.floor(Date.now() / 1000) + DAY,
    })
  return {
    client,
    /** Has the service back the account up, and waits for it. */
    async backUp(service: ServiceProcess): Promise<BackupProtocol.RunOutcome> {
      const options = {
        connection: connect({ url: service.url, did: service.did }),
      }
      const agent = {
        issuer: client.agent.issuer,
        with: space.did(),
        proofs: [await delegate(client.agent.issuer, ['backup/*', SPACE_INFO])],
        agent: service.agent,
      }
      const started = await Backup.run(
        agent,
        {
          account: network.did,
          delegation: await delegate(
            DID.parse(service.agent),
            BACKUP_ABILITIES
          ),
        },
        { ...options, nonce: crypto.randomUUID() }
      )
      if (started.error) throw new Error(started.error.message)
      for (;;) {
        const status = await Backup.status(
          agent,
          { run: started.ok.run },
          options
        )
        if (status.error) throw new Error(status.error.message)
        const run = status.ok.runs[0]
        if (run?.outcome) return run.outcome
        if (run?.error) throw new Error(run.error.message)
        await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL))
      }
    },
  }
}

/** CIDs of the account's blobs. */
export async function listBlobs(network: Network): Promise<string[]> {
  const response = await fetch(
    `${network.pds}/xrpc/com.atproto.sync.listBlobs?did=${network.did}&limit=1000`
  )
  return ((await response.json()) as { cids: string[] }).cids
}

export function repoUrl({ pds, did }: Network): string {
  return `${pds}/xrpc/com.atproto.sync.getRepo?did=${did}`
}

export function blobUrl({ pds, did }: Network, cid: string): string {
  return `${pds}/xrpc/com.atproto.sync.getBlob?did=${did}&cid=${cid}`
}
