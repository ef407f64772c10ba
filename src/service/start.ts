import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { connect } from '@ucanto/client'
import { CAR } from '@ucanto/transport'
import type { Channel, Signer } from '@ucanto/interface'
import { CID } from 'multiformats/cid'
import type { Logger } from 'pino'
import {
  createAccountReader,
  createIdentityResolver,
  createSafeFetch,
  type SafeFetch,
  type HostGate,
  type SafeFetchOptions,
} from '../atproto/index.ts'
import {
  CALLBACK_PATH,
  confidentialMetadata,
  createOAuth,
  isLoopback,
  loopbackMetadata,
  type OAuth,
} from '../atproto/oauth/index.ts'
import { BlockOverlay } from '../backup/block-overlay.ts'
import { DEFAULT_LIMITS, type SpaceReader, type Time } from '../backup/index.ts'
import type { Service } from '../capabilities/index.ts'
import {
  createFileSpool,
  createNativeSha256,
  loadKeyFile,
  openClientKeys,
  PACKAGE,
  parseVerifier,
  systemTime,
  withNativeSigning,
} from '../node/index.ts'
import {
  createEmbeddedEngine,
  createScheduler,
  openPgBossEngine,
  RHYTHM_LIMITS,
  SCHEDULER_POLICY,
  type JobEngine,
  type SchedulerContext,
  type SchedulerPolicy,
} from '../scheduler/index.ts'
import {
  listAuthorizations,
  mergeHeads,
  type EventLink,
} from '../space/index.ts'
import {
  connectUploadService,
  createRevocationReader,
  type RetryPolicy,
} from '../storacha/index.ts'
import { openStores, type Stores, type StoresOptions } from '../stores/index.ts'
import { decodeDelegations } from './authority.ts'
import type { ServiceConfig } from './config.ts'
import type { PipelineContext } from './context.ts'
import { counted } from './counted.ts'
import { createCourier } from './courier.ts'
import { createConclusion } from './conclude.ts'
import { DataFolderError, KeyMismatchError } from './errors.ts'
import { createGrantKeeper, type GrantKeeperContext } from './grants.ts'
import { createHealth } from './health.ts'
import { createApp } from './http/app.ts'
import { createOperatorsApp } from './http/operators.ts'
import { listen, type Handle } from './http/listen.ts'
import { createHostBudget } from './host-budget.ts'
import { createHosts, HOST_POLICY, type HostPolicy } from './hosts.ts'
import { createLogger } from './logger.ts'
import { createMetrics } from './metrics.ts'
import { createProvisioning } from './provisioning.ts'
import {
  createPublisher,
  PUBLISHER_POLICY,
  type Publisher,
  type PublisherPolicy,
} from './publisher.ts'
import { createRates } from './rates.ts'
import { createRevocations } from './revocations.ts'
import { startRetention } from './retention.ts'
import { createRunFeed } from './run-feed.ts'
import { RUNNER_POLICY, startRunner, type RunnerPolicy } from './runner.ts'
import { createServer } from './server.ts'
import { createSharer, SHARER_POLICY, type SharerPolicy } from './sharer.ts'
import { openReader } from './space.ts'
import { createWatchers } from './watchers.ts'

/** Somebody waits for the answer: it must not take long. */
const ASKING_POLICY: RetryPolicy = {
  retries: 1,
  minDelay: 200,
  timeout: 10_000,
  receiptTimeout: 10_000,
}

/** A service that listens. Disposing of it drains and stops it. */
export interface RunningService extends AsyncDisposable {
  url: URL
  /** `did:web` of the service. */
  did: string
  /** `did:key` that capabilities of Storacha are delegated to. */
  agent: string
  /** Where operators see how it is, if there is such a place. */
  metricsUrl?: URL
  /** Whether a new key was made at this start. */
  keyCreated: boolean
}

/** What is no matter of configuration. */
export interface ServiceOptions {
  logger?: Logger
  time?: Time
  policy?: RunnerPolicy
  schedulerPolicy?: SchedulerPolicy
  publisherPolicy?: PublisherPolicy
  sharerPolicy?: SharerPolicy
  hostPolicy?: HostPolicy
  /** How large answers of hosts may be, and how long they may take. */
  fetchLimits?: Pick<SafeFetchOptions, 'small' | 'stream'>
  /** Size of the CARs that are put into Spaces, in bytes. */
  shardSize?: number
}

/**
 * How long who goes down waits at least for what must not be cut off, in
 * milliseconds. Nearly always there is nothing, or it takes less than a second.
 */
const SETTLE_TIMEOUT = 10_000

const DAY = 24 * 60 * 60_000

/**
 * Starts the service.
 *
 * @throws {@link DataFolderError} {@link KeyFileError} {@link KeyMismatchError}
 *   {@link StoreUnavailableError} {@link NewerSchemaError} {@link ListenError}
 */
export async function startService(
  config: ServiceConfig,
  {
    logger = createLogger(config.logLevel),
    time = systemTime,
    policy = RUNNER_POLICY,
    schedulerPolicy = SCHEDULER_POLICY,
    publisherPolicy = PUBLISHER_POLICY,
    sharerPolicy = SHARER_POLICY,
    hostPolicy = HOST_POLICY,
    fetchLimits = {},
    shardSize = DEFAULT_LIMITS.shardSize,
  }: ServiceOptions = {}
): Promise<RunningService> {
  await using resources = new AsyncDisposableStack()
  await makeDataFolder(config.dataFolder)
  const agent = withNativeSigning(await loadKeyFile(config.keyFile))
  const health = createHealth({ time, logger })
  const metrics = createMetrics({
    time,
    logger,
    ofProcess: config.metricsPort !== undefined,
  })
  // Operators see the service from its start to its end.
  const operators =
    config.metricsPort === undefined
      ? undefined
      : resources.use(
          await listen(createOperatorsApp({ health, metrics, logger }).fetch, {
            host: config.metricsHost,
            port: config.metricsPort,
            flags: '--metrics-',
          })
        )
  const storesOptions: StoresOptions =
    config.databaseUrl === undefined
      ? { path: join(config.dataFolder, 'service.sqlite') }
      : { databaseUrl: config.databaseUrl }
  const stores = resources.use(await openStores(storesOptions))
  await claimDatabase(stores, agent, config, logger)
  health.opened(stores)
  // The DID may depend on the port, which is known when the service listens.
  let handle: Handle = () =>
    new Response('the service is starting', { status: 503 })
  const http = resources.use(
    await listen((request, env) => handle(request, env), config)
  )

  const url = config.publicUrl ?? new URL(`http://localhost:${http.port}`)
  const did: `did:web:${string}` = `did:web:${encodeURIComponent(url.host)}`
  const id = agent.withDID(did)
  const budget = createHostBudget({
    rate: config.hostRate,
    period: hostPolicy.period / 1000,
    ...(config.databaseUrl === undefined ? {} : { database: stores.database }),
  })
  const hosts = createHosts({
    store: stores.hosts,
    budget,
    waiting: Math.max(1, Math.floor(config.concurrentRuns / 2)),
    time,
    logger,
    policy: hostPolicy,
  })
  const pipeline = createPipeline(config, {
    logger,
    shardSize,
    fetchLimits,
    gate: hosts,
  })
  const oauth = await createOAuthFor(url, config, {
    time,
    logger,
    fetch: counted(pipeline.safeFetch, {
      budget,
      time,
      patience: hostPolicy.patience,
      directory: config.plcUrl,
    }),
  })
  const reader = openReader({ ...pipeline, logger })
  const grants =
    oauth &&
    createGrantKeeper({
      agent,
      grants: stores.grants,
      oauth,
      courier: resources.use(
        createCourier({
          stores: storesOptions,
          fetch: {
            ...fetchLimits,
            allowPrivateNetwork: config.allowPrivateNetwork,
          },
          logLevel: logger.level,
        })
      ),
      readAuthorization: createAuthorizationReader({ stores, agent, reader }),
      time,
      logger,
    })
  const context = {
    id,
    agent,
    stores,
    time,
    logger,
    metrics,
    authorities: config.trustedAuthorities,
    rhythmLimits: {
      ...RHYTHM_LIMITS,
      minimum: config.minScheduleInterval,
    },
    schedulesPerSpace: config.schedulesPerSpace,
    revocations: createRevocations({
      store: stores.revocations,
      ...(config.revocationsPolicy === 'off'
        ? { policy: 'open' }
        : {
            policy: config.revocationsPolicy,
            reader: createRevocationReader(config.revocationsUrl, {
              parseVerifier,
            }),
          }),
      maxAge: config.revocationsMaxAge * 1000,
      time,
      logger,
    }),
    rates: createRates({ ...config, agent: agent.did() }),
    watchers: createWatchers(),
    provisioning: createProvisioning({
      store: stores.spaces,
      agent,
      connect: () =>
        connectUploadService(
          {
            url: config.uploadServiceUrl,
            did: config.uploadServiceDid,
            receiptsUrl: config.receiptsUrl,
          },
          { policy: ASKING_POLICY }
        ),
      policy: config.provisioningPolicy,
      maxAge: config.provisioningMaxAge * 1000,
      time,
      logger,
    }),
    runner: { kick: () => runner?.kick() },
    identities: pipeline.identities,
    grants,
    publisher: {
      publish: async (...input: Parameters<Publisher['publish']>) =>
        (await publisher?.publish(...input)) ?? false,
    },
    sharer: createSharer({
      ...pipeline,
      agent,
      connection: () => connection(),
      time,
      logger,
      policy: sharerPolicy,
    }),
  }
  const server = await createServer(context)
  const channel = server as unknown as Channel<Service>
  const connection = () => connect({ id, codec: CAR.outbound, channel })
  const publisher =
    grants &&
    createPublisher({
      ...pipeline,
      agent,
      connection,
      grants,
      time,
      logger,
      policy: publisherPolicy,
    })
  publisher?.start()
  const has = (role: ServiceConfig['role']) =>
    config.role === 'all' || config.role === role
  const runner = has('worker')
    ? startRunner({
        ...context,
        ...pipeline,
        policy,
        connection,
        concurrency: config.concurrentRuns,
        onEnded: (report) => metrics.runEnded(report),
      })
    : undefined
  const engine =
    has('scheduler') || has('worker')
      ? resources.use(await openEngine(config, { stores, time, logger }))
      : undefined
  const scheduler =
    engine === undefined
      ? undefined
      : createScheduler({
          ...context,
          engine,
          connection,
          decodeDelegations,
          findHost: createHostFinder(pipeline, logger),
          hosts,
          policy: {
            ...schedulerPolicy,
            // Alone, it keeps room for the accounts of other hosts.
            ...(config.databaseUrl === undefined
              ? {
                  perHost: Math.min(
                    schedulerPolicy.perHost,
                    Math.max(1, config.concurrentRuns - 1)
                  ),
                }
              : {}),
          },
        })
  if (has('scheduler')) scheduler?.sweep()
  if (has('worker')) scheduler?.work({ concurrency: config.concurrentRuns })
  const stopRetention = has('scheduler')
    ? startRetention({
        runs: stores.runs,
        keep: config.keepRuns * DAY,
        time,
        logger,
      })
    : undefined
  const feed = createRunFeed({ runs: stores.runs, time, logger })
  const { watchers } = context
  metrics.observe(stores, {
    ...(runner ? { activeRuns: () => runner.active } : {}),
    eventStreams: () => ({ clock: watchers.size, runs: feed.size }),
    ...(engine ? { jobs: () => engine.counts() } : {}),
    hosts: () => hosts.snapshot(),
  })
  const stopping = new AbortController()
  resources.defer(async () => {
    health.drain()
    stopping.abort()
    const timeout = config.drainTimeout * 1000
    await Promise.all([scheduler?.drain(timeout), runner?.drain(timeout)])
    await Promise.all([
      publisher?.stop(),
      context.sharer.stop(),
      stopRetention?.(),
    ])
    // What a host has traded is lost if it cannot be kept any more.
    const waited = new AbortController()
    await Promise.race([
      grants?.settle(),
      time
        .sleep(Math.max(timeout, SETTLE_TIMEOUT), waited.signal)
        .catch(() => {}),
    ])
    waited.abort()
  })
  const app = createApp({
    info: {
      name: PACKAGE.name,
      version: PACKAGE.version,
      did,
      agent: agent.did(),
    },
    server,
    stores,
    logger,
    maxBodySize: config.maxBodySize,
    ...(grants && publisher
      ? {
          oauth: {
            ...(isLoopback(url) ? {} : { metadata: () => oauth.metadata() }),
            conclusion: createConclusion({
              ...context,
              grants,
              publisher,
              receipts: stores.receipts,
            }),
          },
        }
      : {}),
    watch: { watchers, feed, time, stopping: stopping.signal },
    health,
    metrics,
    isDraining: () => stopping.signal.aborted,
  })
  handle = (request, env) => app.fetch(request, env)

  const owned = resources.move()
  let disposed: Promise<void> | undefined
  return {
    url,
    did,
    agent: agent.did(),
    ...(operators
      ? { metricsUrl: urlOf(config.metricsHost, operators.port) }
      : {}),
    keyCreated: agent.created,
    [Symbol.asyncDispose]: () => (disposed ??= owned.disposeAsync()),
  }
}

/** @param host - a name, or an address of either kind */
function urlOf(host: string, port: number): URL {
  return new URL(
    `http://${host.includes(':') ? `[${host}]` : host}:${port}/metrics`
  )
}

/** Opens the engine of the jobs, on the database that the stores are on. */
function openEngine(
  { databaseUrl }: ServiceConfig,
  { stores, time, logger }: { stores: Stores; time: Time; logger: Logger }
): JobEngine | Promise<JobEngine> {
  const options = { database: stores.database, time, logger }
  return databaseUrl === undefined
    ? createEmbeddedEngine(options)
    : openPgBossEngine({ ...options, databaseUrl })
}

/** Runs of one host are limited; who knows the host of an account tells. */
function createHostFinder(
  { identities }: PipelineContext,
  logger: Logger
): SchedulerContext['findHost'] {
  return async (account, signal) => {
    try {
      const { pds } = await identities.resolve(account, { signal })
      return pds.host
    } catch (error) {
      logger.debug({ err: error, account }, 'the host is not known')
      return undefined
    }
  }
}

/**
 * Delegations and grants in the database are for one agent. A process with
 * another key could do nothing but stop the schedules that it comes upon.
 */
async function claimDatabase(
  { service }: Stores,
  agent: { did(): string; created: boolean },
  { keyFile, replaceKey }: ServiceConfig,
  logger: Logger
): Promise<void> {
  const did = agent.did()
  let owner = await service.claim(did)
  if (owner === replaceKey && (await service.replace(owner, did))) {
    logger.warn(
      { old: owner, agent: did },
      'the key was replaced: what was delegated and granted to the old agent does not hold any more; users have to schedule and authorize again'
    )
    owner = await service.claim(did)
  }
  if (owner !== did) {
    throw new KeyMismatchError(
      `the database belongs to the agent ${owner}, and the key in ${keyFile} is of ${did}${agent.created ? ', made just now because there was none' : ''}; copy the key file of the other processes here, or name it by --key-file (--replace-key ${owner} if that key is lost)`
    )
  }
}

async function makeDataFolder(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 })
  } catch (cause) {
    throw new DataFolderError(
      `the data folder ${path} cannot be made; choose another with --data-folder`,
      { cause }
    )
  }
}

/**
 * How hosts of accounts know us: by our address, or, on the user's own
 * machine, as nobody in particular.
 */
async function createOAuthFor(
  url: URL,
  config: ServiceConfig,
  { time, logger, fetch }: { time: Time; logger: Logger; fetch: SafeFetch }
): Promise<OAuth | undefined> {
  const options = {
    fetch,
    plcUrl: config.plcUrl,
    handleResolverUrl: config.handleResolverUrl,
    allowHttp: config.allowPrivateNetwork,
  }
  if (isLoopback(url)) {
    const callback = new URL(CALLBACK_PATH, url)
    callback.hostname = '127.0.0.1'
    return createOAuth({ ...options, metadata: loopbackMetadata(callback) })
  }
  if (url.protocol !== 'https:') return undefined
  const clientKeys = await openClientKeys(config.clientKeyFile, {
    time,
    onWarning: (message, error) => logger.warn({ err: error }, message),
  })
  const current = async () => {
    const keys = await clientKeys.current()
    return { keys, metadata: confidentialMetadata(url, keys) }
  }
  return createOAuth({ ...options, ...(await current()), current })
}

/** Reads what the Space has of the agent's own authorization. */
function createAuthorizationReader({
  stores,
  agent,
  reader,
}: {
  stores: Stores
  agent: Signer
  reader: SpaceReader
}): GrantKeeperContext['readAuthorization'] {
  return async (space, account) => {
    const head = await stores.clock.head(space)
    const overlay = new BlockOverlay(reader)
    const { state, additions, unreadable } = await mergeHeads(
      overlay,
      head.map((cid) => CID.parse(cid) as EventLink)
    )
    overlay.put(additions)
    const [own] = await listAuthorizations(overlay, state, account, {
      agent: agent.did(),
    })
    // It may be below the head that cannot be read.
    const [unread] = unreadable
    if (!own && unread) throw unread.error
    return own?.authorization
  }
}

/** What runs need of the world. */
function createPipeline(
  config: ServiceConfig,
  {
    logger,
    shardSize,
    fetchLimits,
    gate,
  }: Required<Pick<ServiceOptions, 'logger' | 'shardSize' | 'fetchLimits'>> & {
    gate: HostGate
  }
): PipelineContext & { safeFetch: SafeFetch } {
  const { allowPrivateNetwork, handleResolverUrl } = config
  if (allowPrivateNetwork) {
    logger.warn(
      'private and loopback addresses are allowed: only for local networks'
    )
  }
  const safeFetch = createSafeFetch({
    ...fetchLimits,
    stream: {
      repoTimeout: config.repoTimeout * 1000,
      leastRate: config.leastRate,
      ...fetchLimits.stream,
    },
    allowPrivateNetwork,
  })
  return {
    safeFetch,
    identities: createIdentityResolver({
      plcUrl: config.plcUrl,
      fetch: safeFetch,
      allowPrivateNetwork,
      ...(handleResolverUrl ? { handleResolverUrl } : {}),
      onWarning: (warning) => logger.warn({ err: warning }, 'identity'),
    }),
    accounts: createAccountReader({ fetch: safeFetch, gate }),
    gate,
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
      shardSize,
      maxBlobSize: config.maxBlobSize,
      concurrentBlobs: config.concurrentBlobs,
    },
  }
}
