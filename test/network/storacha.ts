import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as Assert from '@storacha/capabilities/assert'
import * as Provider from '@storacha/capabilities/provider'
import { fromEmail } from '@storacha/client/account'
import { unwrap } from '@storacha/client/result'
import { createServer } from '@storacha/upload-api'
import { createContext } from '@storacha/upload-api/test/context'
import { RoutingService } from '@storacha/upload-api/test/external-service'
import { authorizeFromUrl } from '@storacha/upload-api/validate'
import { error, ok } from '@ucanto/core'
import type { DID, DIDKey, Proof, Signer } from '@ucanto/interface'
import type { ed25519 } from '@ucanto/principal'
import { DIDResolutionError } from '@ucanto/validator'
import { base58btc } from 'multiformats/bases/base58'
import { parseVerifier, withNativeSigning } from '../../src/node/index.ts'
import { BlobFiles } from './blob-files.ts'
import { createFaults, injectFaults } from './faults.ts'
import type { Faults } from './faults.ts'
import { Gateway } from './gateway.ts'
import { RequestError } from './http.ts'
import { Indexer } from './indexer.ts'
import { openLoopbackServer } from './loopback-server.ts'
import { createRoutes } from './routes.ts'
import { createStorageNode } from './storage-node.ts'

/** Who pays for a space that was provisioned without an account. */
const CUSTOMER = 'did:mailto:example.com:network'

/** Plan that each account gets when its email address is confirmed. */
const PLAN = 'did:web:free.storacha.network'

/** Pages of any origin may use everything. */
const CORS = {
  'access-control-allow-origin': '*',
  'access-control-allow-methods': 'GET, HEAD, POST, PUT, OPTIONS',
  'access-control-allow-headers': '*',
  'access-control-expose-headers': '*',
}

export interface StorachaOptions {
  /** A free port if left out. */
  port?: number
  /** Whether email addresses confirm themselves; they do if left out. */
  autoConfirm?: boolean
  /**
   * Folder for the blobs, which stays. If left out, a temporary one that is
   * removed on closing.
   */
  blobDirectory?: string
}

export interface Stats {
  /** HTTP requests of all kinds. */
  requests: number
  /** Blobs uploaded. */
  puts: number
  /** Size of these blobs together. */
  bytesPut: number
  /** Sets all counts to zero. */
  reset(): void
}

export interface StoredBlob {
  /** Multihash in base58btc. */
  digest: string
  /** In bytes. */
  size: number
}

/** Asks whether an email address belongs to the agent that says so. */
export interface Mail {
  to: string
  /** Link that confirms it. */
  url: string
}

export interface Storacha extends AsyncDisposable {
  /** Upload service, gateway and indexer, without a slash at the end. */
  url: string
  /** Name of the upload service, a `did:web` that nobody else resolves. */
  did: DID<'web'>
  /** Key of the upload service. */
  didKey: DIDKey
  receiptsUrl: string
  /** What goes wrong on purpose; nothing at first. */
  faults: Faults
  stats: Stats
  /** Mails that were sent, oldest first. */
  mails: Mail[]
  /** Does what a click on the link in a mail does. */
  confirm(url: string | URL): Promise<void>
  /** Gives a space storage that nobody pays for. */
  provision(space: DIDKey): Promise<void>
  /** The blobs in a space, in the order of their digests. */
  blobs(space: DIDKey): Promise<StoredBlob[]>
}

/**
 * Starts the upload service of Storacha with one storage node, the indexing
 * service and a gateway. What was stored is forgotten when it is closed.
 */
export async function startStoracha({
  port,
  autoConfirm = true,
  blobDirectory,
}: StorachaOptions = {}): Promise<Storacha> {
  await using resources = new AsyncDisposableStack()
  const folder =
    blobDirectory ?? (await mkdtemp(join(tmpdir(), 'bluesky-backups-blobs-')))
  if (!blobDirectory) {
    resources.defer(() => rm(folder, { recursive: true, force: true }))
  }
  const server = resources.use(await openLoopbackServer(port))
  const { url } = server

  // Without `http` in its options the context opens no ports.
  const base = await createContext()
  const { service, indexingService } = base
  // The same signatures, in less time.
  withNativeSigning((service as unknown as { key: ed25519.EdSigner }).key)
  await keepAuthorized(indexingService)
  await keepAuthorized(base.claimsService)
  const resolveDIDKey = async (did: DID) =>
    did === service.did()
      ? ok([service.toDIDKey()] as [DIDKey])
      : error(new DIDResolutionError(did))
  const blobs = new BlobFiles(folder)
  const indexer = new Indexer(indexingService)
  const node = await createStorageNode({
    url,
    blobs,
    indexingService,
    resolveDIDKey,
  })
  const mails: Mail[] = []
  const context = {
    ...base,
    url: new URL(url),
    resolveDIDKey,
    // The same checks as by default, in less time.
    principal: { parse: parseVerifier },
    ipniService: indexer,
    router: RoutingService.create(service, [node]),
    maxReplicas: 0,
    email: {
      sendValidation: async (mail: Mail) => {
        mails.push(mail)
        if (autoConfirm) await confirm(mail.url)
      },
    },
  }
  const agent = createServer(context)
  const faults = createFaults()
  injectFaults(agent.service, faults)

  const confirm = async (link: string | URL) => {
    const { email } = unwrap<{ email: `${string}@${string}` }>(
      await authorizeFromUrl(link, context)
    )
    const account = fromEmail(email)
    const plan = await context.plansStorage.get(account)
    if (plan.ok) return
    unwrap(await context.plansStorage.initialize(account, CUSTOMER, PLAN))
  }

  const provision = async (space: DIDKey) => {
    const { provisionsStorage } = context
    if (unwrap(await provisionsStorage.hasStorageProvider(space))) return
    const provider = service.did()
    const cause = await Provider.add
      .invoke({
        issuer: service,
        audience: service,
        with: CUSTOMER,
        nb: { provider, consumer: space },
      })
      .buildIPLDView()
    unwrap(
      await provisionsStorage.put({
        cause,
        consumer: space,
        customer: CUSTOMER,
        provider,
      })
    )
  }

  const stats = createStats()
  const routes = createRoutes({
    context,
    agent,
    blobs,
    node,
    indexer,
    gateway: new Gateway({ blobs, indexer, lies: () => faults.lyingGateway }),
    confirm,
    onBlob: (size) => {
      stats.puts++
      stats.bytesPut += size
    },
  })
  server.serve(async (request, response) => {
    stats.requests++
    for (const [name, value] of Object.entries(CORS)) {
      response.setHeader(name, value)
    }
    if (faults.down) throw new RequestError(503, 'The service is down')
    await routes(request, response)
  })

  const owned = resources.move()
  return {
    url,
    did: service.did(),
    didKey: service.toDIDKey(),
    receiptsUrl: `${url}/receipt/`,
    faults,
    stats,
    mails,
    confirm,
    provision,
    blobs: async (space) => {
      const { results } = unwrap(await context.registry.entries(space))
      return results
        .map(({ blob }) => ({
          digest: base58btc.encode(blob.digest.bytes),
          size: blob.size,
        }))
        .sort((a, b) => (a.digest < b.digest ? -1 : 1))
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function createStats(): Stats {
  const counts = { requests: 0, puts: 0, bytesPut: 0 }
  return {
    ...counts,
    reset() {
      Object.assign(this, counts)
    },
  }
}

/**
 * The stock context may claim for as long as a UCAN lives by default: half a
 * minute. This network goes on.
 */
async function keepAuthorized({
  connection,
  invocationConfig,
}: {
  connection: { id: unknown }
  invocationConfig: { issuer: Signer; proofs?: Proof[] }
}): Promise<void> {
  const issuer = withNativeSigning(connection.id as ed25519.EdSigner)
  withNativeSigning(invocationConfig.issuer as ed25519.EdSigner)
  invocationConfig.proofs = [
    await Assert.assert.delegate({
      issuer,
      audience: invocationConfig.issuer,
      with: issuer.did(),
      expiration: Infinity,
    }),
  ]
}
