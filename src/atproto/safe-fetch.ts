import { safeFetchWrap } from '@atproto-labs/fetch-node'
import { ForbiddenAddressError, HostError } from '../backup/errors.ts'

export type Fetch = typeof globalThis.fetch

/** Ways to fetch from addresses that somebody else named. */
export interface SafeFetch {
  /** For answers that are small: a size limit, and a limit of the whole time. */
  small: Fetch
  /**
   * For repositories and blobs: as long as bytes come, it may take its time.
   * Reading the body throws {@link HostError} when none come any more.
   */
  stream: Fetch
}

export interface SafeFetchOptions {
  /**
   * Go to private and loopback addresses, to any port, and by plain http. For
   * local networks only.
   */
  allowPrivateNetwork: boolean
  /** Largest small answer, in bytes. */
  maxSmallSize?: number
  /** Largest streamed answer, in bytes. */
  maxStreamSize?: number
  /** Milliseconds that a small answer may take. */
  timeout?: number
  /** Milliseconds without a byte until a stream is given up. */
  idleTimeout?: number
}

const MAX_SMALL_SIZE = 2 * 1024 * 1024
const MAX_STREAM_SIZE = 16 * 1024 ** 3
const TIMEOUT = 15_000
const IDLE_TIMEOUT = 30_000
/** Longest timer there is, in milliseconds: for what has another limit. */
const NO_TIMEOUT = 2 ** 31 - 1

/**
 * Makes fetches that do not go where they must not: a host, a redirect or a
 * name that leads to a private address is refused before a connection is made.
 *
 * @throws from the fetches: {@link ForbiddenAddressError} {@link HostError}
 */
export function createSafeFetch({
  allowPrivateNetwork,
  maxSmallSize = MAX_SMALL_SIZE,
  maxStreamSize = MAX_STREAM_SIZE,
  timeout = TIMEOUT,
  idleTimeout = IDLE_TIMEOUT,
}: SafeFetchOptions): SafeFetch {
  const policy = {
    ssrfProtection: !allowPrivateNetwork,
    allowImplicitRedirect: true,
  }
  const small = safeFetchWrap({
    ...policy,
    responseMaxSize: maxSmallSize,
    timeout,
  })
  const stream = safeFetchWrap({
    ...policy,
    responseMaxSize: maxStreamSize,
    timeout: NO_TIMEOUT,
  })
  return {
    small: async (input, init) => {
      const signal = init?.signal ?? undefined
      try {
        const response = await small(input, init ?? {})
        // Within the time, or not at all: the caller gets bytes that are here.
        return new Response(await response.arrayBuffer(), {
          status: response.status,
          statusText: response.statusText,
          headers: response.headers,
        })
      } catch (error) {
        throw explained(error, originOf(input), signal)
      }
    },
    stream: async (input, init) => {
      const given = init?.signal ?? undefined
      const origin = originOf(input)
      const idle = new AbortController()
      const giveUp = () =>
        idle.abort(
          new HostError(
            `${origin} sent nothing for ${idleTimeout / 1000} seconds`
          )
        )
      let timer = setTimeout(giveUp, idleTimeout)
      const signal = given ? AbortSignal.any([given, idle.signal]) : idle.signal
      let response: Response
      try {
        response = await stream(input, { ...init, signal })
      } catch (error) {
        clearTimeout(timer)
        throw explained(error, origin, signal)
      }
      const { body } = response
      if (!body) {
        clearTimeout(timer)
        return response
      }
      const reader = (body as ReadableStream<Uint8Array>).getReader()
      const watched = new ReadableStream<Uint8Array>(
        {
          async pull(controller) {
            clearTimeout(timer)
            timer = setTimeout(giveUp, idleTimeout)
            try {
              const { done, value } = await reader.read()
              clearTimeout(timer)
              if (done) controller.close()
              else controller.enqueue(value)
            } catch (error) {
              clearTimeout(timer)
              controller.error(explained(error, origin, signal))
            }
          },
          async cancel(reason) {
            clearTimeout(timer)
            await reader.cancel(reason)
          },
        },
        { highWaterMark: 0 }
      )
      // The time until somebody reads does not count.
      clearTimeout(timer)
      return new Response(watched as ReadableStream<Uint8Array<ArrayBuffer>>, {
        status: response.status,
        statusText: response.statusText,
        headers: response.headers,
      })
    },
  }
}

/** Whoever aborted says why; the rest is a host that fails, or is forbidden. */
function explained(
  error: unknown,
  origin: string,
  signal: AbortSignal | undefined
): unknown {
  if (signal?.aborted) return signal.reason
  const messages: string[] = []
  for (
    let cause: unknown = error;
    cause instanceof Error && messages.length < 8;
    cause = cause.cause
  ) {
    messages.push(cause.message)
  }
  const text = messages.join(': ')
  if (FORBIDDEN.test(text)) {
    return new ForbiddenAddressError(
      `${origin} is, or leads to, an address that must not be gone to (${text.slice(0, 300)})`,
      { cause: error }
    )
  }
  return new HostError(
    `${origin} cannot be read; try again later (${text.slice(0, 300)})`,
    { cause: error }
  )
}

/** What the policy of the library says when it refuses an address. */
const FORBIDDEN =
  /Blocked by url policy|non-unicast|not a public domain|Forbidden (domain|hostname)|protocol|custom port|IP addresses? not allowed/i

function originOf(input: Parameters<Fetch>[0]): string {
  const url = input instanceof Request ? input.url : String(input)
  return URL.canParse(url) ? new URL(url).origin : 'an address that is no URL'
}
