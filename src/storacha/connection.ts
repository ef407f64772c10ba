import { connect } from '@ucanto/client'
import type { ConnectionView, Principal } from '@ucanto/interface'
import { CAR, HTTP } from '@ucanto/transport'
import { DID } from '@ucanto/core'
import pRetry, { AbortError } from 'p-retry'
import { retryAfter } from '../backup/retry-after.ts'
import { webTime } from '../backup/web-time.ts'

export type Fetch = typeof globalThis.fetch

/** How requests to Storacha are repeated. */
export interface RetryPolicy {
  retries: number
  /** Milliseconds before the first repetition; doubles each time. */
  minDelay: number
  /**
   * Milliseconds that one try may take, and that the service may ask us to wait
   * before the next.
   */
  timeout: number
  /** Milliseconds to wait for a receipt of work that is under way. */
  receiptTimeout: number
}

export const RETRY_POLICY: RetryPolicy = {
  retries: 3,
  minDelay: 300,
  timeout: 120_000,
  receiptTimeout: 120_000,
}

const RECEIPT_POLL_DELAY = 100
const MAX_RECEIPT_POLL_DELAY = 2_000
/** Answers that tell that somebody is overloaded or restarting. */
const TRANSIENT_STATUS = new Set([429, 500, 502, 503, 504])

/** Where an upload service is. */
export interface UploadServiceConfig {
  url: URL
  /** `did:web` of the service. */
  did: string
  /** Base URL of receipts, with a slash at its end. */
  receiptsUrl: URL
}

/** An upload service, with requests that are counted and repeated. */
export interface UploadServiceConnection {
  connection: ConnectionView<never>
  audience: Principal
  receiptsUrl: URL
  fetch: Fetch
  /** Requests that were sent so far. */
  readonly requests: number
}

/** Prepares a connection; nothing is sent yet. */
export function connectUploadService(
  config: UploadServiceConfig,
  {
    fetch = globalThis.fetch,
    policy = RETRY_POLICY,
    signal,
  }: { fetch?: Fetch; policy?: RetryPolicy; signal?: AbortSignal } = {}
): UploadServiceConnection {
  let requests = 0
  const send: Fetch = async (input, init) => {
    const once = async () => {
      requests++
      const signals = [
        AbortSignal.timeout(policy.timeout),
        signal,
        init?.signal,
      ]
      const response = await fetch(input, {
        ...init,
        signal: AbortSignal.any(signals.filter((given) => given != null)),
      })
      if (TRANSIENT_STATUS.has(response.status)) {
        await response.body?.cancel()
        throw new TransientResponseError(response, urlOf(input))
      }
      return response
    }
    return pRetry(
      async () => {
        try {
          return await once()
        } catch (error) {
          signal?.throwIfAborted()
          if (init?.signal?.aborted) throw new AbortError(asError(error))
          throw asError(error)
        }
      },
      {
        retries: policy.retries,
        minTimeout: policy.minDelay,
        randomize: true,
        shouldRetry: ({ error }) =>
          !signal?.aborted && waitOf(error) <= policy.timeout,
        onFailedAttempt: ({ error, retriesLeft }) =>
          retriesLeft > 0 && waitOf(error) <= policy.timeout
            ? webTime.sleep(waitOf(error), signal)
            : undefined,
      }
    )
  }
  const withReceipts: Fetch = async (input, init) => {
    const isReceipt = urlOf(input).startsWith(config.receiptsUrl.href)
    let response = await send(input, init)
    if (!isReceipt) return response
    const deadline = Date.now() + policy.receiptTimeout
    let delay = RECEIPT_POLL_DELAY
    while (response.status === 404 && Date.now() < deadline) {
      await response.body?.cancel()
      await new Promise((resolve) => setTimeout(resolve, delay))
      delay = Math.min(delay * 2, MAX_RECEIPT_POLL_DELAY)
      response = await send(input, init)
    }
    return response
  }
  const audience = DID.parse(config.did)
  return {
    connection: connect<never>({
      id: audience,
      codec: CAR.outbound,
      channel: HTTP.open({
        url: config.url,
        method: 'POST',
        fetch: send as never,
      }),
    }),
    audience,
    receiptsUrl: config.receiptsUrl,
    fetch: withReceipts,
    get requests() {
      return requests
    },
  }
}

/** The answer tells of a failure that may pass. */
export class TransientResponseError extends Error {
  override readonly name = 'TransientResponseError'
  readonly status: number
  /** Seconds until the next request is welcome, if the answer said so. */
  readonly retryAfter: number | undefined

  constructor({ status, headers }: Response, url: string) {
    super(`${new URL(url).origin} answered with status ${status}`)
    this.status = status
    this.retryAfter = retryAfter(headers)
  }
}

/** @returns milliseconds that a service asked us to wait, 0 if it did not */
function waitOf(error: Error): number {
  return error instanceof TransientResponseError
    ? (error.retryAfter ?? 0) * 1000
    : 0
}

function urlOf(input: Parameters<Fetch>[0]): string {
  return input instanceof Request ? input.url : String(input)
}

function asError(error: unknown): Error {
  // p-retry takes a TypeError that is not a network error for a bug.
  return error instanceof TypeError
    ? new Error(error.message, { cause: error })
    : error instanceof Error
      ? error
      : new Error(String(error))
}
