import {
  NodeOAuthClient,
  OAuthCallbackError,
  OAuthResponseError,
  TokenRefreshError,
  type Keyset,
  type NodeSavedSession,
  type NodeSavedState,
  type OAuthAuthorizationServerMetadata,
} from '@atproto/oauth-client-node'
import { HostError } from '../../backup/errors.ts'
import { limited } from '../limited.ts'
import { printable } from '../printable.ts'
import type { Fetch, SafeFetch } from '../safe-fetch.ts'
import { createCache } from './cache.ts'
import {
  GrantEndedError,
  hostErrorIn,
  HostRefusedError,
  REQUEST_EXPIRED,
} from './errors.ts'
import {
  CONFIDENTIAL_LIFETIMES,
  PUBLIC_LIFETIMES,
  type GrantLifetimes,
} from './lifetimes.ts'
import type { ClientMetadata } from './metadata.ts'
import { scopeFor, transitionScopeFor } from './scopes.ts'

type DID = `did:${string}:${string}`

/** What a host has granted, as JSON text: secret, and used by one at a time. */
export type OAuthSession = string & { readonly brand?: 'OAuthSession' }

/** What a request needs when the user comes back, as JSON text: secret. */
export type OAuthState = string & { readonly brand?: 'OAuthState' }

/**
 * An OAuth client that keeps nothing: sessions go in and come out. Who calls
 * makes them durable, and lets nobody else refresh at the same time.
 */
export interface OAuth {
  /** What hosts are told, where it is told by us. */
  metadata(): Promise<ClientMetadata>
  lifetimes: GrantLifetimes

  /**
   * Begins the way into an account.
   *
   * @param options.parts - private parts that it is for
   * @param options.isGranular - whether they are asked for by the names of
   *   methods, as far as the host knows these
   * @returns where the user goes, what the host sends back, what is needed
   *   then, and whether the parts were asked for by the names of methods
   * @throws {@link HostRefusedError} {@link HostError}
   */
  authorize(
    account: DID,
    options: {
      parts: Iterable<string>
      isGranular: boolean
      signal?: AbortSignal
    }
  ): Promise<{ url: URL; key: string; state: OAuthState; isGranular: boolean }>

  /**
   * Takes what the user came back with.
   *
   * @param state - of the request that `params` names by its key
   * @throws {@link HostRefusedError} {@link HostError}
   */
  callback(
    params: URLSearchParams,
    state: OAuthState
  ): Promise<{ account: DID; scope: string; session: OAuthSession }>

  /** @returns milliseconds from now on that a session is good for */
  lifetimeOf(session: OAuthSession): number

  /**
   * Trades a session for the next one; the one before is worth nothing then.
   * Nothing is done between the answer of the host and `save`.
   *
   * @param options.before - called just before the request is sent
   * @param options.send - sends the request in the place of the client, or has
   *   the answer already
   * @param options.save - makes the new session durable; a failure of it is
   *   thrown on, and changes nothing at the host
   * @throws {@link GrantEndedError} {@link HostError}
   */
  refresh(
    session: OAuthSession,
    options: {
      before: () => Promise<void>
      send?: SendRefresh | undefined
      save: (next: { session: OAuthSession; scope: string }) => Promise<void>
    }
  ): Promise<void>

  /**
   * Asks the host of the account, which answers 401 if the session does not do
   * any more. It is not refreshed.
   *
   * @param pathname - and query
   * @throws {@link HostRefusedError} {@link HostError}
   */
  fetch(
    session: OAuthSession,
    pathname: string,
    init?: RequestInit
  ): Promise<Response>

  /**
   * Gives a grant back.
   *
   * @throws {@link HostError} when the host does not confirm it
   */
  revoke(session: OAuthSession): Promise<void>
}

/**
 * Sends a request to refresh.
 *
 * @param direct - sends it from this process
 */
export type SendRefresh = (
  request: Request,
  direct: (request: Request) => Promise<Response>
) => Promise<Response>

/** Milliseconds that a session is used for whose host does not tell. */
const MAX_LIFETIME = 60 * 60_000

/** What a request of the client may do, beside asking for metadata. */
type Purpose = 'authorize' | 'callback' | 'refresh' | 'read' | 'revoke'

/** How a client introduces itself to hosts. */
export interface OAuthClient {
  metadata: ClientMetadata
  /** Keys of a confidential client; without them it is a public one. */
  keys?: Keyset
}

export interface OAuthOptions extends OAuthClient {
  /** What the client is now, where keys follow each other. */
  current?: () => Promise<OAuthClient>
  fetch: SafeFetch
  plcUrl: URL
  /** Host to ask for handles. */
  handleResolverUrl?: URL | undefined
  /** Also over plain http; for local networks only. */
  allowHttp: boolean
}

export function createOAuth(options: OAuthOptions): OAuth {
  const { current = async () => options } = options
  const dpopNonceCache = createCache<string>()
  const authorizationServerMetadataCache =
    createCache<OAuthAuthorizationServerMetadata>()

  const createClient = async (
    purpose: Purpose,
    stores: {
      state?: { set?: SetState; get?: () => NodeSavedState | undefined }
      session?: { get?: () => NodeSavedSession; set?: SetSession }
    },
    hooks: Hooks = {}
  ) => {
    const { metadata, keys } = await current()
    return new NodeOAuthClient({
      clientMetadata: metadata,
      ...(keys ? { keyset: keys } : {}),
      fetch: guarded(options.fetch, purpose, hooks),
      plcDirectoryUrl: options.plcUrl,
      ...(options.handleResolverUrl
        ? { handleResolver: options.handleResolverUrl }
        : {}),
      allowHttp: options.allowHttp,
      dpopNonceCache,
      authorizationServerMetadataCache,
      // Who calls lets nobody else at it.
      requestLock: (_name, work) => work(),
      stateStore: {
        set: async (key, state) => stores.state?.set?.(key, state),
        get: async () => stores.state?.get?.(),
        del: async () => {},
      },
      sessionStore: {
        set: async (_account, session) => stores.session?.set?.(session),
        get: async () => stores.session?.get?.(),
        del: async () => {},
      },
    })
  }

  return {
    metadata: async () => (await current()).metadata,
    lifetimes: options.keys ? CONFIDENTIAL_LIFETIMES : PUBLIC_LIFETIMES,

    async authorize(account, { parts, isGranular, signal }) {
      const asked = [...parts]
      const begin = async (isGranular: boolean) => {
        const scope = isGranular ? scopeFor(asked) : transitionScopeFor(asked)
        let saved: { key: string; state: OAuthState } | undefined
        const client = await createClient('authorize', {
          state: {
            set(key, state) {
              saved = { key, state: JSON.stringify(state) }
            },
          },
        })
        const url = await client.authorize(account, {
          scope,
          ...(signal ? { signal } : {}),
        })
        if (!saved) throw new TypeError('a request without its state')
        return { url, ...saved, isGranular }
      }
      try {
        if (isGranular) return await begin(true)
      } catch (error) {
        signal?.throwIfAborted()
        if (codeOf(error) !== 'invalid_scope') throw failureOf(error, account)
      }
      // A host that knows no scopes by the names of methods.
      try {
        return await begin(false)
      } catch (error) {
        signal?.throwIfAborted()
        throw failureOf(error, account)
      }
    },

    async callback(params, state) {
      let saved: NodeSavedSession | undefined
      const client = await createClient('callback', {
        state: { get: () => JSON.parse(state) as NodeSavedState },
        session: {
          set(session) {
            saved = session
          },
        },
      })
      try {
        await client.callback(params)
      } catch (error) {
        throw failureOf(error)
      }
      if (!saved) throw new TypeError('a grant without a session')
      const { sub, scope } = saved.tokenSet
      return {
        account: sub,
        scope,
        session: JSON.stringify(saved),
      }
    },

    lifetimeOf(session) {
      const { expires_at: expiration } = parse(session).tokenSet
      return expiration === undefined
        ? MAX_LIFETIME
        : Date.parse(expiration) - Date.now()
    },

    async refresh(session, { before, send, save }) {
      const present = parse(session)
      let failure: { error: unknown } | undefined
      let isSaved = false
      const client = await createClient(
        'refresh',
        {
          session: {
            get: () => present,
            async set(next) {
              try {
                const { scope } = next.tokenSet
                await save({ session: JSON.stringify(next), scope })
                isSaved = true
              } catch (error) {
                failure = { error }
                throw error
              }
            },
          },
        },
        {
          async beforeRefresh() {
            try {
              await before()
            } catch (error) {
              failure = { error }
              throw error
            }
          },
          send,
        }
      )
      try {
        await client.restore(present.tokenSet.sub, true)
      } catch (error) {
        if (failure) throw failure.error
        // What the client asks for then is for who uses the session.
        if (isSaved) return
        throw endOf(error) ?? failureOf(error, present.tokenSet.sub)
      }
    },

    async fetch(session, pathname, init) {
      const { tokenSet, ...rest } = parse(session)
      // Without an end the client does not think of refreshing it by itself.
      const { expires_at: _expiration, ...endless } = tokenSet
      const client = await createClient('read', {
        session: { get: () => ({ ...rest, tokenSet: endless }) },
      })
      try {
        const restored = await client.restore(tokenSet.sub, false)
        return await restored.fetchHandler(pathname, init)
      } catch (error) {
        init?.signal?.throwIfAborted()
        throw failureOf(error, tokenSet.sub)
      }
    },

    async revoke(session) {
      const { tokenSet, ...rest } = parse(session)
      // The client gives back what it takes for the token of access. That to
      // refresh with is better: a host knows it also when it was traded since,
      // by somebody else, and ends what came of it.
      const { refresh_token: token = tokenSet.access_token } = tokenSet
      const present = {
        ...rest,
        tokenSet: { ...tokenSet, access_token: token },
      }
      // The client says nothing of how it went.
      let status: number | undefined
      const client = await createClient(
        'revoke',
        { session: { get: () => present } },
        { onRevoked: (response) => (status = response.status) }
      )
      const { sub } = tokenSet
      try {
        await client.revoke(sub)
      } catch (error) {
        throw failureOf(error, sub)
      }
      if (status !== 200) {
        throw new HostError(
          `the host of ${sub} has not confirmed (${status === undefined ? 'no answer' : `status ${status}`})`
        )
      }
    },
  }
}

/** What the client says when another host than that of the grant answers. */
const MOVED = 'Issuer mismatch'

/** What the client throws without the key of a session, and does not export. */
const NO_KEY = 'AuthMethodUnsatisfiableError'

/** What a PDS says in the place of its user, who has not said no. */
const DEACTIVATED = /\bdeactivated\b/i

/**
 * What a PDS says, in the place of its user, of a request that is too old, or
 * that was opened once more after the consent, which ends it.
 */
const EXPIRED = /\b(expired|already authorized)\b/i

/** Told of what the client does by itself. */
interface Hooks {
  /** Just before a session is sent to be traded. */
  beforeRefresh?: () => Promise<void>
  send?: SendRefresh | undefined
  /** When the host has answered to a session that is given back. */
  onRevoked?: (response: Response) => void
}

type SetState = (key: string, state: NodeSavedState) => void
type SetSession = (session: NodeSavedSession) => void | Promise<void>

/** What hosts may take minutes to begin with. */
const REPO_PATH = '/xrpc/com.atproto.sync.getRepo'

/**
 * Requests that the client makes by itself and that would end a grant are not
 * sent: it gives grants back that could not be stored, and refreshes where
 * nobody holds the lease.
 */
function guarded(
  fetch: SafeFetch,
  purpose: Purpose,
  {
    beforeRefresh,
    send = (request, direct) => direct(request),
    onRevoked,
  }: Hooks
): Fetch {
  return async (input, init = {}) => {
    const request = input instanceof Request ? input : undefined
    const url = new URL(request?.url ?? String(input))
    const redirect = init.redirect ?? request?.redirect ?? 'error'
    const options: RequestInit = {
      ...init,
      redirect: redirect === 'follow' ? 'error' : redirect,
    }
    const method = init.method ?? request?.method ?? 'GET'
    // A host names its own endpoints: one that is elsewhere for no reason is
    // still held to what an answer of it may be.
    if (
      purpose === 'read' &&
      method === 'GET' &&
      url.pathname.startsWith('/xrpc/')
    ) {
      return url.pathname === REPO_PATH
        ? fetch.repo(input, options)
        : fetch.stream(input, options)
    }
    if (method === 'POST') {
      const form = new URLSearchParams(
        request ? await request.clone().text() : String(init.body as string)
      )
      const isRefresh = form.get('grant_type') === 'refresh_token'
      const isRevocation = form.has('token')
      if (
        (isRefresh && purpose !== 'refresh') ||
        (isRevocation && purpose !== 'revoke' && purpose !== 'callback')
      ) {
        throw new TypeError(`a request to ${url.host} that nobody asked for`)
      }
      if (isRefresh) {
        await beforeRefresh?.()
        // What is given up has been done all the same, and the session is lost.
        const response = await send(new Request(input, init), (request) =>
          fetch.stream(request, { redirect: 'error' })
        )
        return limited(response, url)
      }
      if (isRevocation && purpose === 'revoke') {
        const response = await fetch.small(input, options)
        onRevoked?.(response)
        return response
      }
    }
    return fetch.small(input, options)
  }
}

function parse(session: OAuthSession): NodeSavedSession {
  return JSON.parse(session) as NodeSavedSession
}

/** What the host calls an error, in words of OAuth. */
function codeOf(error: unknown): string | undefined {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof OAuthResponseError) return cause.error
    if (cause instanceof OAuthCallbackError) {
      const code = cause.params.get('error')
      if (code !== null) return code
    }
  }
  return undefined
}

/** A failure for which there is no session any more. */
function endOf(error: unknown): GrantEndedError | undefined {
  if (error instanceof TypeError && error.message === MOVED) {
    return new GrantEndedError(
      'the account has moved to another host, which knows nothing of the grant; authorize again',
      { cause: error }
    )
  }
  return error instanceof TokenRefreshError || codeOf(error) === 'invalid_grant'
    ? new GrantEndedError(
        `the host takes the grant no more (${said(error)}); authorize again`,
        { cause: error }
      )
    : undefined
}

/** @param account - that it is about */
function failureOf(error: unknown, account?: string): Error {
  const trouble = hostErrorIn(error)
  if (trouble) return trouble
  const about = account === undefined ? 'the account' : account
  const code = codeOf(error)
  if (error instanceof Error && error.constructor.name === NO_KEY) {
    return new HostRefusedError(
      `the key by which the host of ${about} knows us is not there; put the file of client keys back`,
      { cause: error }
    )
  }
  if (code === 'access_denied' && DEACTIVATED.test(said(error))) {
    return new HostRefusedError(
      `the host of ${about} lets nobody in while it is deactivated. Activate it there, and authorize again.`,
      { cause: error }
    )
  }
  if (code === 'access_denied' && EXPIRED.test(said(error))) {
    return new HostRefusedError(
      `the host of ${about} takes a request for some minutes only, and only once, and that was over. Start again.`,
      { cause: error, code: REQUEST_EXPIRED }
    )
  }
  if (error instanceof OAuthResponseError && error.status >= 500) {
    return new HostError(
      `the host of ${about} failed (status ${error.status}). Try again later.`,
      { cause: error }
    )
  }
  return new HostRefusedError(
    `the host of ${about} does not let us in (${said(error)})`,
    { cause: error, ...(code === undefined ? {} : { code }) }
  )
}

/** What an error says, without what may be secret in it. */
function said(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error)
  // A state, a token or a code is long and has no spaces.
  return printable(message.replace(/[\w.~+/=-]{24,}/g, '…').slice(0, 300))
}
