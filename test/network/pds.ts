import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { RequestListener } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { AtpAgent } from '@atproto/api'
import { Secp256k1Keypair } from '@atproto/crypto'
import { PDS } from '@atproto/pds'
import type { ServerEnvironment } from '@atproto/pds'
import { Database, PlcServer } from '@did-plc/server'
import {
  closeServer,
  findFreePort,
  LOOPBACK,
  openLoopbackServer,
} from './loopback-server.ts'

/** Largest blob an account may upload, in bytes. */
const BLOB_UPLOAD_LIMIT = 1024 ** 3

/** Where nothing listens: the PDS has no app view and no moderation service. */
const NOWHERE = `http://${LOOPBACK}:9`

export interface Plc extends AsyncDisposable {
  url: string
}

export interface PlcOptions {
  /** A free port if left out. */
  port?: number
}

export interface Pds extends AsyncDisposable {
  url: string
  /** Creates an account and logs in to it. */
  createAccount(options: CreateAccountOptions): Promise<Account>
  /** Takes an account down, or puts it back if `applied` is false. */
  takedownAccount(did: string, applied?: boolean): Promise<void>
  /**
   * Deactivates an account as its owner does on the pages of the host, which
   * ends all grants, too.
   */
  deactivateAccount(did: string): Promise<void>
  /** Takes a blob of an account down, or puts it back. */
  takedownBlob(did: string, cid: string, applied?: boolean): Promise<void>
}

export interface PdsOptions {
  plcUrl: string
  /** A free port if left out. */
  port?: number
  /** Settings of the PDS to use instead of those chosen here. */
  settings?: ServerEnvironment
  /**
   * Told of each refresh of an OAuth session, and whether the token was one
   * that may be used. It is answered after that.
   */
  onRefresh?: (refresh: {
    token: string
    isTaken: boolean
  }) => void | Promise<void>
  /** Told of each token that an OAuth client is given. */
  onToken?: (token: string) => void
  /** DIDs that are resolved to nothing but this: services of the real network. */
  services?: Record<`did:web:${string}`, { id: string; url: string }>
  /**
   * Plays a host from before there were scopes by the names of methods: it
   * leaves them out without a word.
   */
  isOld?: () => boolean
  /**
   * Told of each request for data of an account (`com.atproto.sync.…`) as it
   * comes. It is answered when `ready` is, if there is one.
   */
  onRead?: (read: Read) => { ready?: Promise<void> } | void
}

export interface Read {
  did: string
  /** Without `com.atproto.sync.` */
  method: string
  /**
   * Fires when the request is over: when all of its answer is sent, or when its
   * connection closes before that.
   */
  over: AbortSignal
}

export interface CreateAccountOptions {
  /** Ends in `.test`. */
  handle: string
  password?: string
  email?: string
}

export interface Account {
  did: string
  handle: string
  password: string
  /** Logged in by password. */
  agent: AtpAgent
}

/** Starts a PLC directory that keeps its log in memory. */
export async function startPlc({ port }: PlcOptions = {}): Promise<Plc> {
  const plc = PlcServer.create({ db: Database.mock() })
  const server = await openLoopbackServer(port)
  server.serve(plc.app)
  return {
    url: server.url,
    [Symbol.asyncDispose]: async () => {
      await server[Symbol.asyncDispose]()
      await plc.destroy()
    },
  }
}

/**
 * Starts a PDS with its files in a folder of its own, removed when it is
 * closed. It has no rate limits, sends no mail and tells no relay about itself.
 */
export async function startPds({
  plcUrl,
  port,
  settings,
  onRefresh,
  onToken,
  services = {},
  isOld,
  onRead,
}: PdsOptions): Promise<Pds> {
  await using resources = new AsyncDisposableStack()
  const folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-pds-'))
  resources.defer(() => rm(folder, { recursive: true, force: true }))

  const blobs = join(folder, 'blobs')
  await mkdir(blobs)
  const rotationKey = await Secp256k1Keypair.create({ exportable: true })
  const recoveryKey = await Secp256k1Keypair.create()
  const adminPassword = randomBytes(16).toString('hex')
  // The PDS puts its own address into its identity, so it has to be known
  // before it listens.
  const actualPort = port ?? (await findFreePort())
  const pds = await PDS.fromEnv({
    port: actualPort,
    // The only name for which a PDS calls itself by http.
    hostname: 'localhost',
    devMode: true,
    dataDirectory: folder,
    blobstoreDiskLocation: blobs,
    blobUploadLimit: BLOB_UPLOAD_LIMIT,
    didPlcUrl: plcUrl,
    serviceHandleDomains: ['.test'],
    inviteRequired: false,
    disableSsrfProtection: true,
    // OAuth scopes name the audience, so it has the name of the real one.
    bskyAppViewDid: 'did:web:api.bsky.app',
    bskyAppViewUrl: NOWHERE,
    adminPassword,
    jwtSecret: randomBytes(32).toString('hex'),
    dpopSecret: randomBytes(32).toString('hex'),
    recoveryDidKey: recoveryKey.did(),
    plcRotationKeyK256PrivateKeyHex: Buffer.from(
      await rotationKey.export()
    ).toString('hex'),
    ...settings,
  })
  resources.defer(() => pds.destroy())
  if (onRefresh) watchRefreshes(pds, onRefresh)
  if (onToken) watchTokens(pds, onToken)
  if (isOld) forgetScopes(pds, isOld)
  placeServices(pds, services)

  await pds.ctx.sequencer.start()
  const app: RequestListener = pds.app
  const server = createServer(onRead ? watchReads(app, onRead) : app)
  server.listen(actualPort, LOOPBACK)
  await once(server, 'listening')
  resources.defer(() => closeServer(server))

  const url = `http://localhost:${actualPort}`
  const admin = new AtpAgent({ service: url })
  admin.setHeader(
    'authorization',
    `Basic ${Buffer.from(`admin:${adminPassword}`).toString('base64')}`
  )
  const owned = resources.move()
  return {
    url,
    createAccount: async ({
      handle,
      password = 'correct horse',
      email = `${handle}@example.com`,
    }) => {
      const agent = new AtpAgent({ service: url })
      const { data } = await agent.createAccount({ handle, password, email })
      return { did: data.did, handle, password, agent }
    },
    takedownAccount: async (did, applied = true) => {
      await admin.com.atproto.admin.updateSubjectStatus({
        subject: { $type: 'com.atproto.admin.defs#repoRef', did },
        takedown: { applied },
      })
    },
    deactivateAccount: async (did) => {
      await pds.ctx.accountManager.deactivateAccount(
        did as `did:plc:${string}`,
        {
          deleteCredentials: true,
        }
      )
    },
    takedownBlob: async (did, cid, applied = true) => {
      await admin.com.atproto.admin.updateSubjectStatus({
        subject: { $type: 'com.atproto.admin.defs#repoBlobRef', did, cid },
        takedown: { applied },
      })
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function watchReads(
  app: RequestListener,
  onRead: NonNullable<PdsOptions['onRead']>
): RequestListener {
  return (request, response) => {
    const url = new URL(request.url ?? '/', NOWHERE)
    const did = url.searchParams.get('did')
    const [, method] =
      /^\/xrpc\/com\.atproto\.sync\.(\w+)$/.exec(url.pathname) ?? []
    if (did === null || method === undefined) return app(request, response)
    const over = new AbortController()
    // The PDS has as many listeners of its own as go without a warning.
    response.setMaxListeners(response.getMaxListeners() + 1)
    response.once('close', () => over.abort())
    const { ready } = onRead({ did, method, over: over.signal }) ?? {}
    if (!ready) return app(request, response)
    void ready.then(() => {
      if (!over.signal.aborted) app(request, response)
    })
  }
}

function watchTokens(pds: PDS, onToken: (token: string) => void): void {
  const tokens = pds.ctx.oauthProvider?.tokenManager
  if (!tokens) throw new TypeError('a PDS without OAuth')
  const create = tokens.createToken.bind(tokens)
  const rotate = tokens.rotateToken.bind(tokens)
  const note = (given: { access_token: string; refresh_token?: string }) => {
    onToken(given.access_token)
    if (given.refresh_token !== undefined) onToken(given.refresh_token)
  }
  tokens.createToken = async (...input) => {
    const given = await create(...input)
    note(given)
    return given
  }
  tokens.rotateToken = async (...input) => {
    const given = await rotate(...input)
    note(given)
    return given
  }
}

function placeServices(
  pds: PDS,
  services: NonNullable<PdsOptions['services']>
): void {
  const { did: resolver } = pds.ctx.idResolver
  const resolve = resolver.resolve.bind(resolver)
  resolver.resolve = async (did, ...options) => {
    const service = services[did as `did:web:${string}`]
    if (!service) return resolve(did, ...options)
    const { id, url } = service
    return {
      id: did,
      service: [{ id, type: 'Service', serviceEndpoint: url }],
    }
  }
}

function forgetScopes(pds: PDS, isOld: () => boolean): void {
  const requests = pds.ctx.oauthProvider?.requestManager
  if (!requests) throw new TypeError('a PDS without OAuth')
  const create = requests.createAuthorizationRequest.bind(requests)
  requests.createAuthorizationRequest = (client, auth, input, device) => {
    const scope = input.scope
      ?.split(' ')
      .filter(
        (each) => !isOld() || !each.includes(':') || /^transition:/.test(each)
      )
      .join(' ')
    return create(
      client,
      auth,
      { ...input, ...(scope ? { scope } : {}) },
      device
    )
  }
}

function watchRefreshes(
  pds: PDS,
  onRefresh: NonNullable<PdsOptions['onRefresh']>
): void {
  const tokens = pds.ctx.oauthProvider?.tokenManager
  if (!tokens) throw new TypeError('a PDS without OAuth')
  const consume = tokens.consumeRefreshToken.bind(tokens)
  tokens.consumeRefreshToken = async (token) => {
    const consumed = consume(token)
    const isTaken = await consumed.then(
      () => true,
      () => false
    )
    await onRefresh({ token, isTaken })
    return consumed
  }
}
