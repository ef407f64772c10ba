import { LRUCache } from 'lru-cache'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { bytesEqual, concat } from '../backup/bytes.ts'
import { GatewayError } from '../backup/errors.ts'
import type {
  Block,
  CallOptions,
  ShardRef,
  SpaceReader,
  UnknownLink,
} from '../backup/interface.ts'
import { retryAfter } from '../backup/retry-after.ts'
import { digestOf, type CreateSha256 } from '../backup/sha256.ts'
import { webTime } from '../backup/web-time.ts'
import type { Fetch } from './connection.ts'

const CAR_CODE = 0x0202
const SHA2_256_CODE = 0x12
const IDENTITY_CODE = 0x00
/** Largest block that is read, in bytes. */
const MAX_BLOCK_SIZE = 4 * 1024 * 1024
/** Metadata that is kept in memory, in bytes. */
const CACHE_SIZE = 64 * 1024 * 1024
const TRIES_PER_GATEWAY = 2
const REQUEST_TIMEOUT = 60_000
/** Milliseconds that one read waits for gateways that want fewer requests, at most. */
const PATIENCE = 120_000
/** Milliseconds to wait for a gateway that wants fewer requests and says no more. */
const PAUSE = 1_000
/** Milliseconds over which those that wait for the same gateway come back. */
const SPREAD = 250
/** Places of which is remembered that they want fewer requests. */
const MAX_PAUSED = 1_000

/** A gateway wants fewer requests, and those who read from it wait. */
export interface GatewayPause {
  /** Origin of the gateway. */
  gateway: string
  /** Milliseconds until it is asked again. */
  wait: number
}

export interface SpaceReaderOptions {
  /** Base URLs of trustless gateways, tried in this order. */
  gateways: URL[]
  fetch: Fetch
  createSha256: CreateSha256
  /** Memory for blocks that were read, in bytes. */
  cacheSize?: number
  /** Called once for each pause. */
  onPause?: (pause: GatewayPause) => void
  /** Ends what waits; a call may bring a signal of its own. */
  signal?: AbortSignal
}

/** A gateway wants fewer requests. */
class LimitedError extends Error {
  override readonly name = 'LimitedError'
  /** Milliseconds until it may be asked again. */
  readonly wait: number

  constructor(message: string, wait: number) {
    super(message)
    this.wait = wait
  }
}

/**
 * Reads blocks through trustless gateways. What a gateway gives is checked:
 * one that lies, fails or has nothing is passed over for the next. One that
 * wants fewer requests is left alone for as long as it says, by all that read
 * here, and waited for if no other has what is read.
 *
 * @see https://specs.ipfs.tech/http-gateways/trustless-gateway/
 */
export function createSpaceReader({
  gateways,
  fetch,
  createSha256,
  cacheSize = CACHE_SIZE,
  onPause,
  signal: ending,
}: SpaceReaderOptions): SpaceReader {
  /** By origin, when it may be asked again, by a clock that nobody sets. */
  const paused = new LRUCache<string, number>({ max: MAX_PAUSED })
  const cache = new LRUCache<string, Uint8Array>({
    maxSize: cacheSize,
    sizeCalculation: (bytes) => bytes.length + 256,
  })

  /** @returns milliseconds, 0 if the gateway may be asked */
  const pauseOf = ({ origin }: URL): number =>
    Math.max(0, (paused.get(origin) ?? 0) - performance.now())

  const pause = (url: URL, wait: number) => {
    const { origin } = url
    const left = pauseOf(url)
    if (wait > left) paused.set(origin, performance.now() + wait)
    if (left === 0) onPause?.({ gateway: origin, wait })
  }

  const request = async (
    url: URL,
    range: { offset: number; length: number } | undefined,
    signal: AbortSignal | undefined
  ): Promise<Uint8Array | undefined> => {
    const rest = pauseOf(url)
    if (rest > 0) {
      throw new LimitedError(`${url.origin} wants fewer requests`, rest)
    }
    const signals = [AbortSignal.timeout(REQUEST_TIMEOUT), signal]
    const response = await fetch(url, {
      redirect: 'follow',
      headers: {
        accept: 'application/vnd.ipld.raw',
        ...(range
          ? {
              range: `bytes=${range.offset}-${range.offset + range.length - 1}`,
            }
          : {}),
      },
      signal: AbortSignal.any(signals.filter((given) => given !== undefined)),
    })
    if (response.status === 404 || response.status === 410) {
      await response.body?.cancel()
      return undefined
    }
    const { status, headers } = response
    const wanted = retryAfter(headers)
    if (status === 429 || (status === 503 && wanted !== undefined)) {
      await response.body?.cancel()
      const wait = Math.max(PAUSE, (wanted ?? 0) * 1000)
      pause(url, wait)
      throw new LimitedError(
        `${url.origin} answered with status ${status} and wants to be asked again in ${wait / 1000} seconds`,
        wait
      )
    }
    if (!response.ok) {
      await response.body?.cancel()
      throw new Error(`${url.origin} answered with status ${response.status}`)
    }
    // Who ignores `Range` sends everything from the start.
    const skip = range && response.status !== 206 ? range.offset : 0
    return readPart(response, skip, range?.length, url.origin)
  }

  const fromAny = async (
    urls: URL[],
    what: string,
    range: { offset: number; length: number } | undefined,
    accept: (bytes: Uint8Array) => boolean,
    given: AbortSignal | undefined
  ): Promise<Uint8Array | undefined> => {
    const failures: unknown[] = []
    const signals = [ending, given].filter((each) => each !== undefined)
    const signal = AbortSignal.any(signals)
    let patience = PATIENCE
    let soonest = Infinity
    for (let tries = 0; tries < TRIES_PER_GATEWAY;) {
      soonest = Infinity
      failures.length = 0
      for (const url of urls) {
        try {
          const bytes = await request(url, range, signal)
          if (!bytes) continue
          if (accept(bytes)) return bytes
          throw new Error(
            `${url.origin} sent bytes that are not those of ${what}`
          )
        } catch (error) {
          signal.throwIfAborted()
          failures.push(error)
          if (error instanceof LimitedError) {
            soonest = Math.min(soonest, error.wait)
          }
        }
      }
      if (failures.length === 0) return undefined
      if (soonest === Infinity) {
        tries++
        continue
      }
      const wait = soonest + Math.random() * SPREAD
      if (wait > patience) break
      patience -= wait
      await webTime.sleep(wait, signal)
    }
    throw new GatewayError(
      `no gateway gave ${what}; try again later, or name another gateway (${failures
        .map((failure) =>
          failure instanceof Error ? failure.message : String(failure)
        )
        .join('; ')
        .slice(0, 500)})`,
      {
        cause: new AggregateError(failures),
        ...(soonest === Infinity
          ? {}
          : { retryAfter: Math.ceil(soonest / 1000) }),
      }
    )
  }

  const rawUrl = (gateway: URL, cid: { toString(): string }) =>
    new URL(`ipfs/${cid}?format=raw`, withSlash(gateway))

  const remember = (multihash: UnknownLink['multihash'], bytes: Uint8Array) => {
    if (multihash.code === SHA2_256_CODE && bytes.length < cacheSize) {
      cache.set(multihash.digest.join(), bytes)
    }
  }

  return {
    keep(blocks) {
      for (const { cid, bytes } of blocks) remember(cid.multihash, bytes)
    },

    async get(
      link: UnknownLink,
      { signal }: CallOptions = {}
    ): Promise<Block | undefined> {
      const { multihash } = link
      const block = (bytes: Uint8Array) => ({
        cid: link as Block['cid'],
        bytes,
      })
      if (multihash.code === IDENTITY_CODE) return block(multihash.digest)
      if (multihash.code !== SHA2_256_CODE) {
        throw new GatewayError(
          `the block ${link} has a hash that is not checked here: only sha2-256 is`
        )
      }
      const key = multihash.digest.join()
      const cached = cache.get(key)
      if (cached) return block(cached)
      const bytes = await fromAny(
        gateways.map((gateway) => rawUrl(gateway, link)),
        `the block ${link}`,
        undefined,
        (given) => bytesEqual(digestOf(createSha256, given), multihash.digest),
        signal
      )
      if (!bytes) return undefined
      remember(multihash, bytes)
      return block(bytes)
    },

    async getShardRange(shard: ShardRef, range, { signal } = {}) {
      const cid = CID.createV1(CAR_CODE, Digest.decode(shard.digest))
      const urls = gateways.map((gateway) => rawUrl(gateway, cid))
      if (shard.location !== undefined && URL.canParse(shard.location)) {
        urls.push(new URL(shard.location))
      }
      return fromAny(
        urls,
        `the shard ${cid}`,
        range,
        (bytes) => bytes.length === range.length,
        signal
      )
    },
  }
}

/** At most `length` bytes after `skip`; the rest is not read. */
async function readPart(
  response: Response,
  skip: number,
  length: number | undefined,
  origin: string
): Promise<Uint8Array> {
  const limit = skip + (length ?? MAX_BLOCK_SIZE + 1)
  const parts: Uint8Array[] = []
  let received = 0
  if (response.body) {
    for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
      const from = Math.max(0, skip - received)
      const to = limit - received
      if (from < chunk.length) parts.push(chunk.subarray(from, to))
      received += chunk.length
      if (received >= limit) break
    }
  }
  if (length === undefined && received > MAX_BLOCK_SIZE) {
    throw new Error(
      `${origin} sent more than the ${MAX_BLOCK_SIZE} bytes a block may have`
    )
  }
  const size = parts.reduce((sum, { length }) => sum + length, 0)
  return concat(parts, size)
}

function withSlash(url: URL): URL {
  return url.pathname.endsWith('/') ? url : new URL(`${url.href}/`)
}
