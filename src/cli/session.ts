import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { create, type Client } from '@storacha/client'
import { connect as connectTo } from '@ucanto/client'
import { DID } from '@ucanto/core'
import { CAR, HTTP } from '@ucanto/transport'
import {
  createIdentityResolver,
  createSafeFetch,
  proxyHint,
  type SafeFetch,
} from '../atproto/index.ts'
import type { Clock, IdentityResolver, SpaceReader } from '../backup/index.ts'
import { SPACE_INFO } from '../capabilities/index.ts'
import { createClock } from '../client/clock.ts'
import {
  connect,
  discover,
  ServiceUnreachableError,
  type Connection,
  type ServiceInfo,
} from '../client/index.ts'
import { createNativeSha256 } from '../node/index.ts'
import { createCourier, type Courier } from '../service/courier.ts'
import { openStores, type Stores } from '../stores/index.ts'
import { createSpaceReader, type Fetch } from '../storacha/index.ts'
import { createAgentStore } from './agent-store.ts'
import { proofsFor } from './authority.ts'
import { NoSpaceError, UsageError } from './errors.ts'
import { printLine, type Io } from './io.ts'
import { createLastHead } from './last-head.ts'
import { createLocalClock, pushLocalClock } from './local-clock.ts'
import { readAgentConfig, type AgentConfig, type Flags } from './options.ts'
import { refused } from './service.ts'

/** Milliseconds that a service may take for an answer. */
const SERVICE_TIMEOUT = 60_000

/** Milliseconds that a gateway may want to be left alone without a word to the user. */
const SHORT_PAUSE = 5_000

/** A Space by its DID. */
export type SpaceDID = `did:key:${string}`

/** A service that answered. */
export interface FoundService {
  url: URL
  info: ServiceInfo
  connection: Connection
}

/**
 * The agent of one command: its key, what was delegated to it, and its ways to
 * the network. What a command does not use is never opened.
 */
export interface Session extends AsyncDisposable {
  config: AgentConfig
  client: Client
  /** Asks foreign hosts; ended by an interrupt. */
  fetch: SafeFetch
  /** Aborted when the user interrupts the command. */
  signal: AbortSignal
  /** Asks foreign hosts until this signal is aborted, whatever the user does. */
  fetchUntil(signal: AbortSignal): SafeFetch
  identities: IdentityResolver
  /** Shared by all that is read from the Space in this command. */
  reader: SpaceReader
  /** The agent's own store. */
  stores(): Promise<Stores>
  /** Carries what must not be lost when the command is killed. */
  courier: Courier
  /** @throws {@link NoSpaceError} */
  space(): SpaceDID
  /** @throws {@link UsageError} {@link ServiceUnreachableError} */
  service(): Promise<FoundService>
  /**
   * The clock of the Space: the service's if one is set, else the agent's own.
   * What the agent's own clock has and the service does not is told to it first.
   */
  clock(): Promise<Clock>
  /**
   * Finds a service beside the one that is set.
   *
   * @throws {@link ServiceUnreachableError}
   */
  findService(url: URL): Promise<FoundService>
  /** The clock of the Space at a service; nothing is told to it. */
  clockAt(service: FoundService): Clock
  /** Tells the user what should not go unseen. */
  warn(message: string): void
  /** Does something when the command is at its end, while all is there yet. */
  defer(work: () => Promise<void>): void
}

/**
 * Opens the agent, and makes one if there is none.
 *
 * @throws {@link ConfigError} {@link AgentFileError}
 */
export async function openSession(io: Io, flags: Flags): Promise<Session> {
  const config = readAgentConfig(flags, io.env)
  const askingFetch = abortable(globalThis.fetch, io.signal, SERVICE_TIMEOUT)
  // One service answers for all that the client tells apart.
  const connection = connectTo<never>({
    id: DID.parse(config.uploadServiceDid),
    codec: CAR.outbound,
    channel: HTTP.open({
      url: config.uploadServiceUrl,
      method: 'POST',
      fetch: askingFetch as never,
    }),
  })
  const client = await create({
    store: createAgentStore(join(config.home, 'agent.json')),
    serviceConf: {
      access: connection,
      upload: connection,
      filecoin: connection,
      gateway: connection,
    },
    receiptsEndpoint: config.receiptsUrl,
  })
  const safeFetch = createSafeFetch({
    allowPrivateNetwork: config.allowPrivateNetwork,
  })
  const fetchUntil = (signal: AbortSignal): SafeFetch => ({
    small: abortable(safeFetch.small, signal),
    stream: abortable(safeFetch.stream, signal),
    repo: abortable(safeFetch.repo, signal),
  })
  const fetch = fetchUntil(io.signal)
  const warn = (message: string) => printLine(io.stderr, `warning: ${message}`)
  if (config.allowPrivateNetwork) {
    warn('private and loopback addresses are allowed: only for local networks')
  }

  const storesOptions = { path: join(config.home, 'agent.sqlite') }
  let stores: Promise<Stores> | undefined
  const ending = new AsyncDisposableStack()
  ending.defer(async () => {
    const opened = await stores?.catch(() => undefined)
    await opened?.[Symbol.asyncDispose]()
  })
  const courier = ending.use(
    createCourier({
      stores: storesOptions,
      fetch: { allowPrivateNetwork: config.allowPrivateNetwork },
      // Nobody looks at a terminal for what comes after the command.
      logLevel: 'silent',
    })
  )
  const openOwnStores = async () => {
    await mkdir(config.home, { recursive: true, mode: 0o700 })
    return openStores(storesOptions)
  }
  let service: Promise<FoundService> | undefined
  const findSetService = async () => {
    if (!config.serviceUrl) {
      throw new UsageError(
        'no backup service is set; name one with --service URL or BLUESKY_BACKUPS_SERVICE_URL'
      )
    }
    return findService(config.serviceUrl)
  }
  const findService = async (url: URL) => {
    const info = await discover(url, { fetch: askingFetch }).catch(
      (cause: unknown) => {
        if (!(cause instanceof ServiceUnreachableError)) throw cause
        throw new ServiceUnreachableError(`${cause.message}${proxyHint(url)}`, {
          cause,
        })
      }
    )
    const connection = connect({ url, did: info.did, fetch: askingFetch })
    return { url, info, connection }
  }

  const clockAuthority = ({ info }: FoundService) => {
    const space = session.space()
    return {
      agent: info.agent,
      issuer: client.agent.issuer,
      with: space,
      proofs: proofsFor(client, space, [
        'clock/head',
        'clock/advance',
        SPACE_INFO,
      ]),
    }
  }

  const session: Session = {
    config,
    client,
    fetch,
    signal: io.signal,
    fetchUntil,
    warn,
    identities: createIdentityResolver({
      plcUrl: config.plcUrl,
      fetch,
      allowPrivateNetwork: config.allowPrivateNetwork,
      ...(config.handleResolverUrl
        ? { handleResolverUrl: config.handleResolverUrl }
        : {}),
      onWarning: ({ message }) => warn(message),
    }),
    reader: createSpaceReader({
      gateways: config.gatewayUrls,
      fetch: fetch.stream,
      createSha256: createNativeSha256,
      onPause: ({ gateway, wait }) => {
        if (wait >= SHORT_PAUSE) {
          warn(
            `${gateway} wants fewer requests; waiting ${Math.ceil(wait / 1000)} seconds`
          )
        }
      },
      signal: io.signal,
    }),
    stores: () => (stores ??= openOwnStores()),
    courier,
    space() {
      const space = client.currentSpace()
      if (!space) {
        throw new NoSpaceError(
          'no Space is chosen; make one with `bluesky-backups space create NAME`, or choose one with `bluesky-backups space use NAME`'
        )
      }
      return space.did()
    },
    service: () => (service ??= findSetService()),
    findService,
    async clock() {
      const space = session.space()
      const local = (await session.stores()).clock
      if (!config.serviceUrl) return createLocalClock(local, space)
      const service = await session.service()
      await pushLocalClock(local, clockAuthority(service), service.connection)
      return session.clockAt(service)
    },
    clockAt: (service) =>
      createLastHead(config.home, session.space()).keep(
        explained(
          createClock(clockAuthority(service), {
            connection: service.connection,
          })
        )
      ),
    defer: (work) => ending.defer(work),
    [Symbol.asyncDispose]: () => ending.disposeAsync(),
  }
  return session
}

/**
 * Requests end with the signal.
 *
 * @param timeout - milliseconds that a request may take
 */
function abortable(fetch: Fetch, signal: AbortSignal, timeout?: number): Fetch {
  return (input, init) => {
    const signals = [
      signal,
      ...(init?.signal ? [init.signal] : []),
      ...(timeout === undefined ? [] : [AbortSignal.timeout(timeout)]),
    ]
    return fetch(input, { ...init, signal: AbortSignal.any(signals) })
  }
}

/** A clock whose refusals say what the user can do. */
function explained(clock: Clock): Clock {
  const explain = (error: unknown): never => {
    const { name, message } = Object((error as Error).cause) as Partial<Error>
    if (name !== 'Unauthorized') throw error
    throw refused({ name, message: message ?? '' })
  }
  return {
    head: (...input) => clock.head(...input).catch(explain),
    advance: (...input) => clock.advance(...input).catch(explain),
  }
}
