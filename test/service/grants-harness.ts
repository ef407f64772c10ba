import { pino, type Logger } from 'pino'
import type { Signer } from '@ucanto/interface'
import {
  createSafeFetch,
  type Fetch,
  type SafeFetch,
  type SafeFetchOptions,
} from '../../src/atproto/index.ts'
import assert from 'node:assert/strict'
import { join } from 'node:path'
import {
  confidentialMetadata,
  createOAuth,
  loopbackMetadata,
  METADATA_PATH,
  type OAuth,
  type OAuthOptions,
} from '../../src/atproto/oauth/index.ts'
import type { Time } from '../../src/backup/index.ts'
import { loadClientKeys, systemTime } from '../../src/node/index.ts'
import {
  createGrantKeeper,
  type GrantKeeper,
  type GrantPolicy,
} from '../../src/service/grants.ts'
import type { Authorization, DID } from '../../src/space/index.ts'
import type { GrantStore } from '../../src/stores/index.ts'
import { consent } from '../network/consent.ts'
import type { Account, Network } from '../network/index.ts'

export const SPACE: DID =
  'did:key:z6MkgGwb4xuUuddp6KsJqKNstgHUzkup95CyebHLDZZka9eU'

/** Time that passes when somebody says so, or sleeps if that is wanted. */
export class HeldTime implements Time {
  #now = Date.now()
  readonly #sleeps: boolean

  constructor({ sleeps = false }: { sleeps?: boolean } = {}) {
    this.#sleeps = sleeps
  }

  now(): number {
    return this.#now
  }

  async sleep(ms: number): Promise<void> {
    if (this.#sleeps) this.#now += ms
    await new Promise((resolve) => setTimeout(resolve, this.#sleeps ? 0 : 2))
  }

  pass(ms: number): void {
    this.#now += ms
  }
}

/** What a Space has of the agent's authorizations, by account. */
export type SpaceContent = Map<string, Authorization>

export interface TestGrantsOptions {
  network: Network
  agent: Signer
  store: GrantStore
  time?: Time
  /** Of the Space; the clock has what is in it. */
  space?: SpaceContent
  oauth?: Partial<Pick<OAuthOptions, 'metadata' | 'keys'>>
  policy?: GrantPolicy
  logger?: Logger
  /** Of requests. */
  limits?: Pick<SafeFetchOptions, 'small' | 'stream'>
  /** Told of each request of the client, before it is sent. */
  onRequest?: (url: URL, body: string) => void | Promise<void>
  /** Answers in the place of the host, where it gives something. */
  answer?: (url: URL, body: string) => Response | undefined
}

export interface TestGrants {
  keeper: GrantKeeper
  oauth: OAuth
  space: SpaceContent
  /** Lets the keeper into an account, as its user does. */
  authorize: (account: Account, include?: string[]) => Promise<void>
  /** Puts what is pending into the Space. */
  publish: (account: Account) => Promise<void>
}

/** Grants of one agent at the real host of the network. */
export function createTestGrants({
  network,
  agent,
  store,
  time = systemTime,
  space = new Map<string, Authorization>(),
  oauth: client = {},
  policy,
  logger = pino({ level: 'silent' }),
  limits,
  onRequest,
  answer,
}: TestGrantsOptions): TestGrants {
  const safe = createSafeFetch({ allowPrivateNetwork: true, ...limits })
  const watched =
    (fetch: Fetch): Fetch =>
    async (input, init) => {
      const url = new URL(input instanceof Request ? input.url : String(input))
      const body =
        input instanceof Request
          ? await input.clone().text()
          : String((init?.body as string | undefined) ?? '')
      await onRequest?.(url, body)
      const given = answer?.(url, body)
      if (given) return given
      return fetch(input, init)
    }
  const fetch: SafeFetch = {
    small: watched(safe.small),
    stream: watched(safe.stream),
  }
  const oauth = createOAuth({
    metadata: loopbackMetadata(new URL('http://127.0.0.1:1/oauth/callback')),
    ...client,
    fetch,
    plcUrl: new URL(network.plc.url),
    handleResolverUrl: new URL(network.pds.url),
    allowHttp: true,
  })
  const keeper = createGrantKeeper({
    agent,
    grants: store,
    oauth,
    readAuthorization: async (_space, account) => space.get(account),
    time,
    logger,
    ...(policy ? { policy } : {}),
  })
  const publish = async ({ did }: Account) => {
    const pending = await keeper.pending(SPACE, did as DID)
    if (!pending) return
    space.set(did, pending.authorization)
    await keeper.published(SPACE, did as DID, pending.authorization.seq)
  }
  return {
    keeper,
    oauth,
    space,
    publish,
    async authorize(account, include) {
      const { url } = await keeper.request({
        space: SPACE,
        account: account.did as DID,
        ...(include ? { include } : {}),
        delegation: Uint8Array.of(1),
      })
      const back = await consent(url, {
        username: account.handle,
        password: account.password,
      })
      await keeper.conclude(back.searchParams)
    },
  }
}

/** Whether a request trades a refresh token. */
export function isRefresh(body: string): boolean {
  return new URLSearchParams(body).get('grant_type') === 'refresh_token'
}

/**
 * A confidential client has an address with https and a name: a made-up one,
 * which the PDS in this process is led to.
 *
 * @param host - the PDS remembers the keys of one for minutes
 */
export async function routeClient(
  folder: string,
  host = 'backups.example.dev'
) {
  const origin = new URL(`https://${host}`)
  const keys = await loadClientKeys(join(folder, 'client-keys.json'), {
    now: Date.now(),
  })
  const metadata = confidentialMetadata(origin, keys)
  const { fetch } = globalThis
  globalThis.fetch = async (input, init) => {
    const url = new URL(input instanceof Request ? input.url : String(input))
    if (url.origin !== origin.origin) return fetch(input, init)
    assert.equal(url.pathname, METADATA_PATH)
    return Response.json(metadata)
  }
  return {
    metadata,
    keys,
    async [Symbol.asyncDispose]() {
      globalThis.fetch = fetch
    },
  }
}
