import { z } from 'zod'
import { CID } from 'multiformats/cid'
import {
  AccountUnavailableError,
  BlobNotFoundError,
  BlobTakenDownError,
  HostError,
} from '../backup/errors.ts'
import type { AccountReader, Identity } from '../backup/interface.ts'
import type { SafeFetch } from './safe-fetch.ts'

/** CIDs that `listBlobs` gives at once. */
const BLOBS_PER_PAGE = 1000
/** Pages of a host that never ends its list. */
const MAX_PAGES = 10_000
const MAX_ERROR_SIZE = 64 * 1024
const MAX_DETAIL_LENGTH = 256

const xrpcError = z.object({
  error: z.string().optional(),
  message: z.string().optional(),
})

const latestCommit = z.object({ cid: z.string().max(256), rev: z.string() })

const blobPage = z.object({
  cids: z.array(z.string().max(256)).max(BLOBS_PER_PAGE),
  cursor: z.string().max(4096).optional(),
})

/** Errors by which hosts say that an account is not to be read. */
const UNAVAILABLE = new Set([
  'RepoNotFound',
  'RepoTakendown',
  'RepoSuspended',
  'RepoDeactivated',
  'AccountTakedown',
  'AccountDeactivated',
])
const TAKEN_DOWN = new Set(['BlobTakendown', 'BlobTakenDown'])
const NOT_OFFERED = new Set(['MethodNotImplemented', 'XRPCNotSupported'])

/**
 * Reads accounts through the public methods of their hosts.
 *
 * @see https://docs.bsky.app/docs/category/http-reference `com.atproto.sync.*`
 */
export function createAccountReader({
  fetch,
}: {
  fetch: SafeFetch
}): AccountReader {
  return {
    async latestCommit({ pds, did }, { signal } = {}) {
      const url = methodUrl(pds, 'com.atproto.sync.getLatestCommit', { did })
      const response = await fetch.small(url, withSignal(signal))
      if (!response.ok) throw await failureOf(response, url)
      const { cid, rev } = await jsonOf(response, url, latestCommit)
      try {
        return { cid: CID.parse(cid), rev }
      } catch (cause) {
        throw new HostError(`${url.host} named a commit that is no CID`, {
          cause,
        })
      }
    },

    async repo({ pds, did }, { signal, since } = {}) {
      const url = methodUrl(pds, 'com.atproto.sync.getRepo', {
        did,
        ...(since === undefined ? {} : { since }),
      })
      const response = await fetch.stream(url, withSignal(signal))
      if (!response.ok) throw await failureOf(response, url)
      if (response.headers.get('content-type')?.includes('html')) {
        await response.body?.cancel()
        throw new HostError(
          `${url.host} answered with a web page instead of a repository; it may not be a PDS`
        )
      }
      return bodyOf(response)
    },

    async *blobs({ pds, did }, { signal, since } = {}) {
      let cursor: string | undefined
      for (let page = 0; page < MAX_PAGES; page++) {
        const url = methodUrl(pds, 'com.atproto.sync.listBlobs', {
          did,
          limit: String(BLOBS_PER_PAGE),
          ...(since === undefined ? {} : { since }),
          ...(cursor === undefined ? {} : { cursor }),
        })
        const response = await fetch.small(url, withSignal(signal))
        if (!response.ok) {
          const { name } = await readError(response)
          if (NOT_OFFERED.has(name) || response.status === 501) return
          throw await failureOf(response, url, name)
        }
        const { cids, cursor: next } = await jsonOf(response, url, blobPage)
        yield* cids
        if (next === undefined || next === cursor || cids.length === 0) return
        cursor = next
      }
      throw new HostError(`${pds.host} lists blobs without an end`)
    },

    async blob({ pds, did }, cid, { signal } = {}) {
      const url = methodUrl(pds, 'com.atproto.sync.getBlob', { did, cid })
      const response = await fetch.stream(url, withSignal(signal))
      if (response.ok) return bodyOf(response)
      const { name, message } = await readError(response)
      if (TAKEN_DOWN.has(name)) {
        throw new BlobTakenDownError(message || 'the host withholds the blob')
      }
      if (
        name === 'BlobNotFound' ||
        (name === 'InvalidRequest' && /not found/i.test(message))
      ) {
        throw new BlobNotFoundError(
          message || 'the host does not have the blob'
        )
      }
      throw await failureOf(response, url, name, message)
    },
  }
}

function methodUrl(
  pds: Identity['pds'],
  method: string,
  parameters: Record<string, string>
): URL {
  const url = new URL(`/xrpc/${method}`, pds)
  for (const [name, value] of Object.entries(parameters)) {
    url.searchParams.set(name, value)
  }
  return url
}

function withSignal(signal: AbortSignal | undefined): RequestInit {
  return signal ? { signal } : {}
}

async function* bodyOf(response: Response): AsyncGenerator<Uint8Array> {
  if (response.body) yield* response.body as AsyncIterable<Uint8Array>
}

async function jsonOf<T>(
  response: Response,
  url: URL,
  schema: z.ZodType<T>
): Promise<T> {
  try {
    return schema.parse(await response.json())
  } catch (cause) {
    throw new HostError(
      `${url.host} did not answer ${methodOf(url)} as the protocol says; it may not be a PDS`,
      { cause }
    )
  }
}

/** What an answer says went wrong; never more than a part of a long one. */
async function readError(
  response: Response
): Promise<{ name: string; message: string }> {
  let text = ''
  try {
    const decoder = new TextDecoder()
    for await (const chunk of bodyOf(response)) {
      text += decoder.decode(chunk, { stream: true })
      if (text.length > MAX_ERROR_SIZE) break
    }
    const { error, message } = xrpcError.parse(JSON.parse(text))
    return { name: error ?? '', message: printable(message ?? '') }
  } catch {
    // Not an error of XRPC, such as a page of a proxy: the status says it.
    return { name: '', message: '' }
  }
}

async function failureOf(
  response: Response,
  url: URL,
  knownName?: string,
  knownMessage?: string
): Promise<Error> {
  const { name, message } =
    knownName === undefined
      ? await readError(response)
      : { name: knownName, message: knownMessage ?? '' }
  if (UNAVAILABLE.has(name)) {
    return new AccountUnavailableError(
      `${url.host} does not give the account out: ${name}${message ? ` (${message})` : ''}`
    )
  }
  if (response.status === 429) {
    const wait = response.headers.get('retry-after')
    return new HostError(
      `${url.host} wants fewer requests; try again ${wait && /^\d+$/.test(wait) ? `in ${wait} seconds` : 'in some minutes'}`
    )
  }
  return new HostError(
    `${url.host} answered ${methodOf(url)} with status ${response.status}${name ? ` ${printable(name)}` : ''}${message ? `: ${message}` : ''}`
  )
}

function methodOf(url: URL): string {
  return url.pathname.slice('/xrpc/'.length)
}

function printable(text: string): string {
  return text.slice(0, MAX_DETAIL_LENGTH).replace(/[^\x20-\x7e]/g, '?')
}
