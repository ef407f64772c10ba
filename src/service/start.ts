import { mkdir } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { serve } from '@hono/node-server'
import { connect } from '@ucanto/client'
import { CAR } from '@ucanto/transport'
import type { Logger } from 'pino'
import {
  createAccountReader,
  createIdentityResolver,
  createSafeFetch,
} from '../atproto/index.ts'
import { DEFAULT_LIMITS, type Time } from '../backup/index.ts'
import type { Service } from '../capabilities/index.ts'
import {
  createFileSpool,
  createNativeSha256,
  loadKeyFile,
  PACKAGE,
  systemTime,
} from '../node/index.ts'
import { openStores } from '../stores/index.ts'
import type { ServiceConfig } from './config.ts'
import { createApp } from './http/app.ts'
import { createLogger } from './logger.ts'
import { startRunner, type Runner } from './runner.ts'
import { createServer } from './server.ts'

/** A service that listens. Disposing of it drains and stops it. */
export interface RunningService extends AsyncDisposable {
  url: URL
  /** `did:web` of the service. */
  did: string
  /** `did:key` that capabilities of Storacha are delegated to. */
  agent: string
  /** Whether a new key was made at this start. */
  keyCreated: boolean
}

/**
 * Starts the service.
 *
 * @throws {@link StoreUnavailableError} {@link NewerSchemaError}
 *   {@link KeyFileError}, or what listening on the port throws
 */
export async function startService(
  config: ServiceConfig,
  {
    logger = createLogger(config.logLevel),
    time = systemTime,
  }: { logger?: Logger; time?: Time } = {}
): Promise<RunningService> {
  await mkdir(config.dataFolder, { recursive: true, mode: 0o700 })
  const agent = await loadKeyFile(config.keyFile)
  const stores = await openStores(
    config.databaseUrl === undefined
      ? { path: join(config.dataFolder, 'service.sqlite') }
      : { databaseUrl: config.databaseUrl }
  )
  let draining = false
  let runner: Runner | undefined
  // The port is known when the server listens; the DID may depend on it.
  let handle: (request: Request) => Response | Promise<Response> = () =>
    new Response('the service is starting', { status: 503 })
  const http = serve({
    fetch: (request) => handle(request),
    hostname: config.host,
    port: config.port,
  })
  try {
    await new Promise<void>((resolve, reject) => {
      http.once('listening', resolve)
      http.once('error', reject)
    })
    const { port } = http.address() as AddressInfo
    const url = config.publicUrl ?? new URL(`http://localhost:${port}`)
    const did: `did:web:${string}` = `did:web:${encodeURIComponent(url.host)}`
    const id = agent.withDID(did)
    if (config.allowPrivateNetwork) {
      logger.warn(
        'private and loopback addresses are allowed: only for local networks'
      )
    }
    const safeFetch = createSafeFetch({
      allowPrivateNetwork: config.allowPrivateNetwork,
    })
    const context = {
      id,
      agent,
      stores,
      time,
      logger,
      authorities: config.trustedAuthorities,
      runner: { kick: () => runner?.kick() },
    }
    const server = await createServer(context)
    runner = startRunner({
      ...context,
      connection: () =>
        connect<Service>({
          id,
          codec: CAR.outbound,
          channel: server as never,
        }),
      identities: createIdentityResolver({
        plcUrl: config.plcUrl,
        fetch: safeFetch,
        allowPrivateNetwork: config.allowPrivateNetwork,
        ...(config.handleResolverUrl
          ? { handleResolverUrl: config.handleResolverUrl }
          : {}),
        onWarning: (warning) => logger.warn({ err: warning }, 'identity'),
      }),
      accounts: createAccountReader({ fetch: safeFetch }),
      uploadService: {
        url: config.uploadServiceUrl,
        did: config.uploadServiceDid,
        receiptsUrl: config.receiptsUrl,
      },
      gateways: config.gatewayUrls,
      fetch: globalThis.fetch,
      foreignFetch: safeFetch.stream,
      createSpool: () => createFileSpool(),
      createSha256: createNativeSha256,
      limits: {
        ...DEFAULT_LIMITS,
        maxBlobSize: config.maxBlobSize,
        concurrentBlobs: config.concurrentBlobs,
      },
      concurrency: config.concurrentRuns,
    })
    const app = createApp({
      info: {
        name: PACKAGE.name,
        version: PACKAGE.version,
        did,
        agent: agent.did(),
      },
      server: server as never,
      stores,
      logger,
      maxBodySize: config.maxBodySize,
      isDraining: () => draining,
    })
    handle = (request) => app.fetch(request)
    const running = runner
    return {
      url,
      did,
      agent: agent.did(),
      keyCreated: agent.created,
      async [Symbol.asyncDispose]() {
        if (draining) return
        draining = true
        await running.drain(config.drainTimeout * 1000)
        await closeServer(http)
        await stores[Symbol.asyncDispose]()
      },
    }
  } catch (error) {
    await closeServer(http)
    await stores[Symbol.asyncDispose]()
    throw error
  }
}

async function closeServer(http: ReturnType<typeof serve>): Promise<void> {
  const closed = new Promise<void>((resolve) => {
    http.close(() => resolve())
  })
  if ('closeAllConnections' in http) http.closeAllConnections()
  await closed
}
