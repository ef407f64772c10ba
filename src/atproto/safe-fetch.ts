import {
  checkForbiddenDomainNamePolicy,
  checkProtocolPolicy,
  DEFAULT_FORBIDDEN_DOMAIN_NAMES,
  FetchRequestError,
  safeDispatchFetchWrap,
  safeFetchWrap,
} from '@atproto-labs/fetch-node'
import {
  BackupError,
  ForbiddenAddressError,
  HostError,
} from '../backup/errors.ts'
import { hasProxies, isProxied, proxyHint } from './proxies.ts'
import { byHops } from './by-hops.ts'
import { orAbort } from './or-abort.ts'
import { printable } from './printable.ts'
import {
  checkPublicAddress,
  checkPublicName,
  publicLookup,
} from './public-address.ts'

export type Fetch = typeof globalThis.fetch

/** Ways to fetch from hosts that nobody vouches for. */
export interface SafeFetch {
  /** For answers that are read whole: little memory, little time. */
  small: Fetch
  /** For answers that are streamed: large, and no slower than the least rate. */
  stream: Fetch
  /** For repositories: streamed, and some hosts take minutes to begin. */
  repo: Fetch
}

export interface SafeFetchOptions {
  /**
   * Also go to private addresses, over plain http and to any port. For local
   * networks only.
   */
  allowPrivateNetwork: boolean
  /** Value of the `User-Agent` header. */
  userAgent?: string
  small?: {
    /** Largest answer in bytes. Default 1 MiB. */
    maxSize?: number
    /** Milliseconds from the request to the last byte. Default 15 s. */
    timeout?: number
  }
  stream?: {
    /** Largest answer in bytes. Default 10 GiB. */
    maxSize?: number
    /** Milliseconds from the request to the head of the answer. Default 60 s. */
    headTimeout?: number
    /** The same for a repository, and to its first byte. Default 10 minutes. */
    repoTimeout?: number
    /** Milliseconds that a read may wait for a byte. Default 30 s. */
    idleTimeout?: number
    /**
     * Bytes a second that the host must send, measured over `rateWindow`. Only
     * the time in which the reader waits for the host counts. Default
     * {@link LEAST_RATE}; 0 for any rate.
     */
    leastRate?: number
    /** Milliseconds. Default four times `idleTimeout`. */
    rateWindow?: number
  }
}

/** Bytes a second that a host must send of a repository or a blob. */
export const LEAST_RATE = 1024

/** Milliseconds that a host may take to begin with a repository. */
export const REPO_TIMEOUT = 10 * 60_000

/** All sizes in bytes, all times in milliseconds. */
interface Limits {
  maxSize: number
  headTimeout: number
  /** How long the first byte may take after the head of the answer. */
  firstTimeout: number
  idleTimeout: number
  timeout?: number
  /** Bytes a second. */
  leastRate?: number
  rateWindow?: number
}

/** What the guard of `@atproto-labs/fetch-node` says when it refuses. */
const REFUSALS =
  /^(Blocked by url policy|Hostname is not a public domain|Hostname resolved to non-unicast address|Hostname is a non-unicast address)/

/**
 * Makes fetch functions for addresses that come from outside.
 *
 * Unless the private network is allowed, they go to https on its standard port
 * and to public addresses only. Name resolution and each hop of a redirect are
 * checked too. `redirect` must be given with each call.
 *
 * Through a proxy it is the proxy that connects, and that looks names up. The
 * same is checked before the proxy is asked, as far as names can be looked up
 * here; names that only the proxy knows, and names that it looks up otherwise,
 * are left to what the proxy permits.
 *
 * The functions, and the bodies they answer with, fail with
 * {@link ForbiddenAddressError}, with {@link HostError}, or with the reason of
 * the signal that was given.
 */
export function createSafeFetch({
  allowPrivateNetwork,
  userAgent,
  small = {},
  stream = {},
}: SafeFetchOptions): SafeFetch {
  const create = (limits: Limits) =>
    withLimits(
      safeFetchWrap({
        fetch: throughProxies(
          allowPrivateNetwork ? withoutTimeouts() : publicOnly(),
          allowPrivateNetwork ? undefined : checkPublic
        ),
        ssrfProtection: !allowPrivateNetwork,
        responseMaxSize: limits.maxSize,
        // The library's timeout ends a stream that is alive, and cannot be told
        // from an abort by the caller.
        timeout: Infinity,
      }),
      limits,
      userAgent
    )
  const { maxSize = 2 ** 20, timeout = 15_000 } = small
  const {
    headTimeout = 60_000,
    repoTimeout = REPO_TIMEOUT,
    idleTimeout = 30_000,
    leastRate = LEAST_RATE,
    rateWindow = 4 * idleTimeout,
  } = stream
  const streamed = {
    maxSize: stream.maxSize ?? 10 * 2 ** 30,
    headTimeout,
    firstTimeout: idleTimeout,
    idleTimeout,
    leastRate,
    rateWindow,
  }
  return {
    small: create({
      maxSize,
      timeout,
      headTimeout: timeout,
      firstTimeout: timeout,
      idleTimeout: timeout,
    }),
    stream: create(streamed),
    repo: create({
      ...streamed,
      headTimeout: repoTimeout,
      firstTimeout: repoTimeout,
    }),
  }
}

/** What a dispatcher of undici does with a request. */
type Dispatch = (options: object, handler: object) => boolean

interface Dispatcher {
  compose(interceptor: (dispatch: Dispatch) => Dispatch): Dispatcher
}

/**
 * Fetches without the timeouts of undici, which gives up after five minutes
 * without the head of the answer, or without a byte: the limits are ours.
 */
function withoutTimeouts(): Fetch {
  const patient = new WeakMap<Dispatcher, Dispatcher>()
  return (input, init) => {
    const { dispatcher } = init as { dispatcher: Dispatcher }
    const composed =
      patient.get(dispatcher) ??
      dispatcher.compose(
        (dispatch) => (options, handler) =>
          dispatch({ ...options, headersTimeout: 0, bodyTimeout: 0 }, handler)
      )
    patient.set(dispatcher, composed)
    return globalThis.fetch(input, {
      ...init,
      dispatcher: composed,
    } as RequestInit)
  }
}

const FORBIDDEN_NAMES = new Set(DEFAULT_FORBIDDEN_DOMAIN_NAMES)

/** @returns why a URL is not asked, as far as it tells by itself */
function checkPublic(url: URL): string | undefined {
  return (
    checkProtocolPolicy(url, { 'https:': { allowCustomPort: false } }) ??
    checkForbiddenDomainNamePolicy(url, FORBIDDEN_NAMES) ??
    checkPublicAddress(url)
  )
}

/**
 * Takes the place of the connections of `@atproto-labs/fetch-node`, whose guard
 * knows fewer addresses that are not public. Each hop of a redirect is held to
 * what the first is held to.
 */
function publicOnly(): Fetch {
  const fetch = safeDispatchFetchWrap({
    fetch: withoutTimeouts(),
    checkUrl: checkPublic,
    lookup: publicLookup,
  })
  return (input, init) => fetch(input, withoutDispatcher(init))
}

/**
 * Sends requests through the proxies of this process, if it has any, and else
 * as `direct` does.
 *
 * @param check - tells why a URL is not asked; names are looked up as well
 */
function throughProxies(
  direct: Fetch,
  check: typeof checkPublic | undefined
): Fetch {
  const refuse = (url: URL, reason: string) => {
    const cause = new Error(`Blocked by url policy (${url.origin}): ${reason}`)
    throw new TypeError('fetch failed', { cause })
  }
  return (input, init) => {
    // The connections of the library, which go to the host itself.
    const { dispatcher } = Object(init) as { dispatcher?: unknown }
    if (!hasProxies()) return direct(input, init)
    const fetch = byHops(async (request) => {
      const url = new URL(request.url)
      if (!isProxied(url)) {
        return direct(request, {
          redirect: 'manual',
          dispatcher,
        } as RequestInit)
      }
      if (check) {
        const reason = check(url) ?? (await checkPublicName(url.hostname))
        if (reason !== undefined) refuse(url, reason)
      }
      return globalThis.fetch(request, { redirect: 'manual' })
    })
    return fetch(input, withoutDispatcher(init))
  }
}

function withoutDispatcher(init: RequestInit | undefined): RequestInit {
  const { dispatcher: _dispatcher, ...rest } = { ...init } as RequestInit & {
    dispatcher?: unknown
  }
  return rest
}

function withLimits(fetch: Fetch, limits: Limits, userAgent?: string): Fetch {
  return async (input, init = {}) => {
    const request = input instanceof Request ? input : undefined
    const url = new URL(request?.url ?? String(input))
    if (url.username || url.password) {
      throw new ForbiddenAddressError(
        `The address of ${url.host} carries a user name or a password. Remove it from where the address was published.`
      )
    }
    const headers = new Headers(init.headers ?? request?.headers)
    if (userAgent) headers.set('user-agent', userAgent)

    const outer = init.signal ?? request?.signal
    outer?.throwIfAborted()
    const controller = new AbortController()
    const { signal } = controller
    const abort = () => controller.abort(outer?.reason)
    outer?.addEventListener('abort', abort)
    const expire = (ms: number, failure: string) =>
      setTimeout(() => {
        const message = `${url.host} ${failure} ${ms / 1000} seconds. Try again later.`
        controller.abort(new HostError(message))
      }, ms)
    const total =
      limits.timeout && expire(limits.timeout, 'did not finish within')
    const release = () => {
      clearTimeout(total)
      outer?.removeEventListener('abort', abort)
    }
    const fail = (cause: unknown): never => {
      release()
      signal.throwIfAborted()
      throw toBackupError(cause, url)
    }

    const head = expire(limits.headTimeout, 'did not answer within')
    let response
    try {
      const pending = fetch(input, { ...init, headers, signal })
      response = await orAbort(pending, signal)
    } catch (cause) {
      return fail(cause)
    } finally {
      clearTimeout(head)
    }
    if (!response.body) {
      release()
      return response
    }

    // Aborting is not left to fetch alone: it holds its signals weakly, and may
    // have lost them by the time the body is read.
    const reader = response.body.getReader()
    const cancel = async (reason: unknown) =>
      reader.cancel(reason).catch(() => undefined)
    signal.addEventListener('abort', () => void cancel(signal.reason))
    const isTooSlow = measureRate(limits)
    let isFirst = true
    const body = new ReadableStream<Uint8Array<ArrayBuffer>>(
      {
        async pull(stream) {
          const silence = isFirst ? limits.firstTimeout : limits.idleTimeout
          const idle = expire(silence, 'sent nothing for')
          const asked = performance.now()
          try {
            const { done, value } = await reader.read()
            signal.throwIfAborted()
            if (!done) {
              const waited = isFirst ? 0 : performance.now() - asked
              isFirst = false
              if (isTooSlow(value.length, waited)) {
                const message = `${url.host} sent less than ${limits.leastRate} bytes a second for ${(limits.rateWindow ?? 0) / 1000} seconds. Try again later.`
                controller.abort(new HostError(message))
                signal.throwIfAborted()
              }
              return stream.enqueue(value)
            }
            release()
            stream.close()
          } catch (cause) {
            fail(cause)
          } finally {
            clearTimeout(idle)
          }
        },
        async cancel(reason) {
          release()
          await cancel(reason)
        },
      },
      { highWaterMark: 0 }
    )
    const { status, statusText, redirected } = response
    const guarded = new Response(body, {
      status,
      statusText,
      headers: response.headers,
    })
    return Object.defineProperties(guarded, {
      url: { value: response.url },
      redirected: { value: redirected },
    })
  }
}

/**
 * Tells whether a host sends less than the least rate. A new window begins
 * when one is over, so that a fast start does not pay for a slow rest.
 *
 * @returns a function of the bytes that were read, and of the milliseconds
 *   that the reader has waited for them
 */
function measureRate({ leastRate = 0, rateWindow = 0 }: Limits) {
  let bytes = 0
  let time = 0
  return (read: number, waited: number): boolean => {
    bytes += read
    time += waited
    if (time < rateWindow) return false
    const isTooSlow = bytes < (leastRate * time) / 1000
    bytes = 0
    time = 0
    return isTooSlow
  }
}

function toBackupError(cause: unknown, url: URL): BackupError {
  const { host } = url
  if (cause instanceof BackupError) return cause
  const messages = []
  for (let error = cause; error instanceof Error; error = error.cause) {
    const isRefusal =
      REFUSALS.test(error.message) ||
      (error instanceof FetchRequestError &&
        [400, 403].includes(error.statusCode))
    if (isRefusal) {
      return new ForbiddenAddressError(
        `${host} is not at a public https address, or sends us to one that is not (${printable(error.message)}). Hosts in a private network need the service to allow it.`,
        { cause }
      )
    }
    messages.push(error.message)
  }
  return new HostError(
    `${host} did not answer (${printable(messages.at(-1) ?? String(cause))}). Try again later${proxyHint(url)}.`,
    { cause }
  )
}
