import { HostError, type HostUnavailableError } from '../backup/errors.ts'
import type { CallOptions } from '../backup/interface.ts'
import { retryAfter } from '../backup/retry-after.ts'
import type { Fetch } from './safe-fetch.ts'

/** Says who may ask a host of accounts, and when. */
export interface HostGate {
  /**
   * Waits until a request may be made.
   *
   * @throws {@link HostUnavailableError} when the host is not asked for now
   */
  enter(request: HostRequest, options?: CallOptions): Promise<HostVisit>
}

/** A request that somebody wants to make. */
export interface HostRequest {
  /** Name of the host, with its port if it is not the usual one. */
  host: string
  /** Account that it is made for. */
  account: string
  /** Whether it belongs to something that has begun, and may wait for a while. */
  patient: boolean
}

/** A request that may be made. One of the methods is called when it is over. */
export interface HostVisit {
  /** The host answered. */
  answered(): Promise<void>
  /**
   * The host wants fewer requests.
   *
   * @param retryAfter - seconds until the next is welcome, if it says so
   * @returns what to throw
   */
  limited(retryAfter: number | undefined): Promise<HostUnavailableError>
  /** The host answered that it has failed, which may be due to the account. */
  faulted(): Promise<void>
  /**
   * The host did not answer, or not to the end.
   *
   * @param reason - for the log
   */
  failed(reason: string): Promise<void>
  /** The request was given up before it was known what comes of it. */
  left(): Promise<void>
}

/** Makes requests as the gate allows them, and tells it what came of them. */
export function throughGate(
  fetch: Fetch,
  gate: HostGate,
  request: HostRequest
): Fetch {
  return async (input, init = {}) => {
    const signal = init.signal ?? undefined
    const visit = await gate.enter(request, { signal })
    let response
    try {
      response = await fetch(input, init)
    } catch (error) {
      await (isFailure(error) ? visit.failed(error.message) : visit.left())
      throw error
    }
    const { status, headers, body } = response
    const wait = retryAfter(headers)
    if (status === 429 || (status === 503 && wait !== undefined)) {
      const error = await visit.limited(wait)
      await body?.cancel()
      throw error
    }
    if (status === 500) await visit.faulted()
    // 501 is the answer of a host that does not have the method.
    else if (status > 501) await visit.failed(`it answered with ${status}`)
    else if (status !== 200 || !body) await visit.answered()
    else return watched(response, body, visit, signal)
    return response
  }
}

/** The same answer; the visit is over when its body is, or is given up. */
function watched(
  response: Response,
  body: ReadableStream<Uint8Array<ArrayBuffer>>,
  visit: HostVisit,
  signal: AbortSignal | undefined
): Response {
  const reader = body.getReader()
  // A body that nobody reads any more ends by the signal at the latest.
  const abort = () => void visit.left()
  signal?.addEventListener('abort', abort, { once: true })
  const end = async (told: Promise<void>) => {
    signal?.removeEventListener('abort', abort)
    await told
  }
  const { status, statusText, headers, url, redirected } = response
  const watchedResponse = new Response(
    new ReadableStream<Uint8Array<ArrayBuffer>>(
      {
        async pull(stream) {
          try {
            const { done, value } = await reader.read()
            if (!done) return stream.enqueue(value)
          } catch (error) {
            await end(
              isFailure(error) ? visit.failed(error.message) : visit.left()
            )
            throw error
          }
          await end(visit.answered())
          stream.close()
        },
        async cancel(reason) {
          await end(visit.left())
          await reader.cancel(reason)
        },
      },
      { highWaterMark: 0 }
    ),
    { status, statusText, headers }
  )
  return Object.defineProperties(watchedResponse, {
    url: { value: url },
    redirected: { value: redirected },
  })
}

function isFailure(error: unknown): error is HostError {
  return error instanceof HostError
}
