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
import { hasProxies, isProxied, proxyHint } from '../node/proxies.ts'
import { byHops } from './by-hops.ts'
import { orAbort } from './or-abort.ts'
import { printable } from './printable.ts'
import {
  checkPublicAddress,
  checkPublicName,
  publicLookup,
} from './public-address.ts'

export type Fetch = typeof globalThis.fetch

/** Two ways to fetch from hosts that nobody vouches for. */
export interface SafeFetch {
  /** For answers that are read whole: little memory, little time. */
  small: Fetch
  /** For answers that are streamed: large, and as slow as they need to be. */
  stream: Fetch
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
    /** Milliseconds that a read may wait for a byte. Default 30 s. */
    idleTimeout?: number
  }
}

/** All sizes in bytes, all times in milliseconds. */
interface Limits {
  maxSize: number
  headTimeout: number
  idleTimeout: number
  timeout?: number
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
          allowPrivateNetwork ? globalThis.fetch : publicOnly(),
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
  return {
    small: create({
      maxSize,
      timeout,
      headTimeout: timeout,
      idleTimeout: timeout,
    }),
    stream: create({
      maxSize: stream.maxSize ?? 10 * 2 ** 30,
      headTimeout: stream.headTimeout ?? 60_000,
      idleTimeout: stream.idleTimeout ?? 30_000,
    }),
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
    fetch: globalThis.fetch,
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
    const body = new ReadableStream<Uint8Array<ArrayBuffer>>(
      {
        async pull(stream) {
          const idle = expire(limits.idleTimeout, 'sent nothing for')
          try {
            const { done, value } = await reader.read()
            signal.throwIfAborted()
            if (!done) return stream.enqueue(value)
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
