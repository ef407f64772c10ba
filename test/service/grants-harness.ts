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
import type { Courier } from '../../src/service/courier.ts'
import {
  createGrantKeeper,
  type GrantKeeper,
  type GrantPolicy,
  type NewGrantRequest,
} from '../../src/service/grants.ts'
import type { DID } from '../../src/space/index.ts'
import type { GrantStore } from '../../src/stores/index.ts'
import { consent } from '../network/consent.ts'
import type { Account, Network } from '../network/index.ts'
import { MemorySpace, SPACE, type TestSpace } from './test-space.ts'

export { SPACE }

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

export interface TestGrantsOptions {
  network: Network
  agent: Signer
  store: GrantStore
  time?: Time
  space?: TestSpace
  oauth?: Partial<Pick<OAuthOptions, 'metadata' | 'keys'>>
  policy?: GrantPolicy
  logger?: Logger
  courier?: Courier
  /** Of requests. */
  limits?: Pick<SafeFetchOptions, 'small' | 'stream'>
  /** Told of each request of the client, before it is sent. */
  onRequest?: (url: URL, body: string) => void | Promise<void>
  /** Answers in the place of the host, where it gives something. */
  answer?: (url: URL, body: string) => Response | undefined
  /** Changes what the host has answered. */
  change?: (url: URL, response: Response) => Response | Promise<Response>
}

type Conclusion = Awaited<ReturnType<GrantKeeper['conclude']>>

export interface TestGrants {
  keeper: GrantKeeper
  oauth: OAuth
  space: TestSpace
  /** Lets the keeper into an account, as its user does. */
  authorize: (account: Account, include?: string[]) => Promise<Conclusion>
  /**
   * Puts what is pending into the Space.
   *
   * @returns whether nothing is pending then
   */
  publish: (account: Account) => Promise<boolean>
}

/** Grants of one agent at the real host of the network. */
export function createTestGrants({
  network,
  agent,
  store,
  time = systemTime,
  space = new MemorySpace(agent),
  oauth: client = {},
  policy,
  logger = pino({ level: 'silent' }),
  courier,
  limits,
  onRequest,
  answer,
  change,
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
      const response = await fetch(input, init)
      return (await change?.(url, response)) ?? response
    }
  const fetch: SafeFetch = {
    small: watched(safe.small),
    stream: watched(safe.stream),
    repo: watched(safe.repo),
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
    courier,
    readAuthorization: (_space, account) => space.read(account),
    time,
    logger,
    ...(policy ? { policy } : {}),
  })
  const publish = async (account: Account) => {
    const did = account.did as DID
    const pending = await keeper.pending(space.did, did)
    if (!pending) return true
    const found = await space.record(did, pending.authorization)
    return keeper.published(space.did, did, found)
  }
  return {
    keeper,
    oauth,
    space,
    publish,
    async authorize(account, include) {
      const { url } = await keeper.request(
        requestFor(account, { space: space.did, include })
      )
      const { handle: username, password } = account
      const back = await consent(url, { username, password })
      return keeper.conclude(back.searchParams)
    },
  }
}

/** What a keeper is asked for. */
export function requestFor(
  { did }: Account,
  {
    space = SPACE,
    include,
  }: { space?: DID; include?: string[] | undefined } = {}
): NewGrantRequest {
  return {
    space,
    account: did as DID,
    ...(include ? { include } : {}),
    delegation: Uint8Array.of(1),
    requester: 'did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp',
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
