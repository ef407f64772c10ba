import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { delegate, DID } from '@ucanto/core'
import type { Ability, Delegation, Principal, Signer } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import * as dagCBOR from '@ipld/dag-cbor'
import { sha256 } from 'multiformats/hashes/sha2'
import * as Link from 'multiformats/link'
import { connect } from '../../src/client/index.ts'
import type { Connection } from '../../src/client/index.ts'
import { createLogger } from '../../src/service/logger.ts'
import { readConfig, startService } from '../../src/service/index.ts'
import type {
  RunningService,
  ServiceOptions,
  SettingName,
} from '../../src/service/index.ts'
import { createEvent } from '../../src/space/index.ts'
import type { Block, EventLink, State } from '../../src/space/interface.ts'

/** A Space: whoever has its key may do anything in it. */
export type Space = ed25519.EdSigner

export async function createActors() {
  const [alice, bob, mallory, space] = await Promise.all(
    Array.from({ length: 4 }, () => ed25519.generate())
  )
  return { alice, bob, mallory, space } as Record<
    'alice' | 'bob' | 'mallory' | 'space',
    ed25519.EdSigner
  >
}

/** Delegates abilities in a Space; for ever if no expiration is given. */
export function allow(
  space: Signer,
  audience: Principal | string,
  abilities: readonly string[],
  {
    with: resource = space.did(),
    expiration = Infinity,
    nb,
    ...options
  }: {
    with?: string
    expiration?: number
    notBefore?: number
    nb?: Record<string, unknown>
    proofs?: Delegation[]
    facts?: Record<string, unknown>[]
  } = {}
): Promise<Delegation> {
  return delegate({
    issuer: space,
    audience: typeof audience === 'string' ? DID.parse(audience) : audience,
    capabilities: abilities.map((can) => ({
      can: can as Ability,
      with: resource as `did:key:${string}`,
      ...(nb ? { nb } : {}),
    })) as never,
    expiration,
    ...options,
  })
}

/** So that a delegation with it, and its proofs, has about so many bytes. */
export function paddedTo(size: number) {
  return { facts: [{ padding: 'x'.repeat(size) }] }
}

/** What an upload service says of a login that it has confirmed by email. */
export function attest(
  attester: Signer,
  login: Delegation,
  audience: Principal,
  expiration = Infinity
): Promise<Delegation> {
  return delegate({
    issuer: attester,
    audience,
    capabilities: [
      {
        can: 'ucan/attest',
        with: attester.did() as `did:web:${string}`,
        nb: { proof: login.cid },
      },
    ],
    expiration,
  })
}

export interface TestService extends RunningService {
  connection: Connection
  /** What was logged, one object a line. */
  logs: Record<string, unknown>[]
  /** Everything that was logged, as text. */
  logged: () => string
  config: ReturnType<typeof readConfig>
}

/**
 * Starts a service with settings of its own. Where none are given it talks to
 * nobody: what it would ask is not there.
 */
export async function startTestService(
  flags: Partial<Record<SettingName, string>> = {},
  environment: Record<string, string> = {},
  options: ServiceOptions = {}
): Promise<TestService> {
  await using resources = new AsyncDisposableStack()
  const dataFolder =
    flags.dataFolder ?? resources.use(await createFolder()).path
  const config = readConfig(
    { port: '0', drainTimeout: '0', ...flags, dataFolder },
    { ...NOWHERE, ...environment }
  )
  const logs: Record<string, unknown>[] = []
  const lines: string[] = []
  const service = resources.use(
    await startService(config, {
      ...options,
      logger: createLogger('debug', {
        write: (line) => {
          lines.push(line)
          logs.push(JSON.parse(line) as Record<string, unknown>)
        },
      }),
    })
  )
  const owned = resources.move()
  let disposed: Promise<void> | undefined
  return {
    ...service,
    config,
    logs,
    logged: () => lines.join(''),
    connection: connect({ url: service.url, did: service.did }),
    [Symbol.asyncDispose]: () => (disposed ??= owned.disposeAsync()),
  }
}

const NOWHERE = {
  BLUESKY_BACKUPS_UPLOAD_SERVICE_URL: 'http://127.0.0.1:9',
  BLUESKY_BACKUPS_RECEIPTS_URL: 'http://127.0.0.1:9/receipt/',
  BLUESKY_BACKUPS_GATEWAY_URLS: 'http://127.0.0.1:9',
  BLUESKY_BACKUPS_PLC_URL: 'http://127.0.0.1:9',
  BLUESKY_BACKUPS_ALLOW_PRIVATE_NETWORK: 'true',
  // Spaces of tests are made up, unless a test is about that.
  BLUESKY_BACKUPS_PROVISIONING_POLICY: 'off',
  BLUESKY_BACKUPS_SPACE_RATE: '0',
  BLUESKY_BACKUPS_ISSUER_RATE: '0',
}

export async function createFolder(): Promise<
  { path: string } & AsyncDisposable
> {
  const path = await mkdtemp(join(tmpdir(), 'bluesky-backups-test-'))
  return {
    path,
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  }
}

/** A server that answers as it is told to. */
export async function startServer(
  listener: RequestListener
): Promise<{ url: URL } & AsyncDisposable> {
  const server = createServer(listener)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`),
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, 'close')
      server.close()
      server.closeAllConnections()
      await closed
    },
  }
}

/** A block of DAG-CBOR. */
export async function blockOf(value: unknown): Promise<Block> {
  const bytes = dagCBOR.encode(value)
  return { cid: Link.create(dagCBOR.code, await sha256.digest(bytes)), bytes }
}

/** An event whose state is nothing anybody has. */
export async function eventOf(
  name: string,
  parents: Block[] = []
): Promise<Block & { cid: EventLink }> {
  const state = await blockOf({ name })
  return createEvent(
    state.cid as Link.Link<State>,
    parents.map(({ cid }) => cid as EventLink)
  )
}

/** Unix seconds from now. */
export function seconds(from: number): number {
  return Math.floor(Date.now() / 1000) + from
}

/** Asks again until the answer is yes. */
export async function until<T>(
  ask: () => Promise<T | undefined | false> | T | undefined | false,
  timeout = 10_000
): Promise<T> {
  const deadline = Date.now() + timeout
  for (;;) {
    const answer = await ask()
    if (answer) return answer
    if (Date.now() > deadline) throw new Error(`not within ${timeout} ms`)
    await new Promise((resolve) => setTimeout(resolve, 3))
  }
}

/** What was answered where nothing but a failure can be. */
export function failureOf(out: { ok?: unknown; error?: unknown }): {
  name: string
  message: string
} {
  if (!out.error) throw new Error('there is no failure')
  return out.error as { name: string; message: string }
}
