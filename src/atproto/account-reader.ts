import { CID } from 'multiformats/cid'
import { z } from 'zod'
import {
  AccountUnavailableError,
  BlobNotFoundError,
  BlobTakenDownError,
  HostError,
} from '../backup/errors.ts'
import type {
  AccountReader,
  CallOptions,
  Identity,
} from '../backup/interface.ts'
import { throughGate, type HostGate } from './host-gate.ts'
import type { Fetch, SafeFetch } from './safe-fetch.ts'
import { XrpcError, query, readJSON } from './xrpc.ts'

/** The most that is taken from a host that lists blobs. */
const LIST_BLOBS = { pageSize: 1000, maxPages: 10_000, maxBlobs: 2_000_000 }

const CAR_TYPE = /^application\/(vnd\.ipld\.car|octet-stream)\s*(;|$)/i

/** @see https://atproto.com/specs/tid */
const TID = /^[234567a-j][234567a-z]{12}$/

const ACCOUNT_ERRORS = [
  'RepoNotFound',
  'RepoTakendown',
  'RepoDeactivated',
  'RepoSuspended',
  'AccountNotFound',
  'AccountTakedown',
  'AccountDeactivated',
]

const NO_SUCH_METHOD = ['MethodNotImplemented', 'XRPCNotSupported']

const cid = z.string().max(256).refine(isCid, 'not a CID')

const latestCommitSchema = z.object({ cid, rev: z.string().regex(TID) })

const listBlobsSchema = z.object({
  cids: z.array(cid),
  cursor: z.string().max(1024).nullish(),
})

/** The host wants fewer requests. */
export class RateLimitError extends HostError {
  /** Seconds until the next request is welcome, if the host says so. */
  readonly retryAfter?: number

  constructor(
    message: string,
    options: ErrorOptions & { retryAfter?: number }
  ) {
    super(message, options)
    this.retryAfter = options.retryAfter
  }
}

/**
 * Reads accounts from their PDSes over XRPC, without a login.
 *
 * Beside the errors of the interface, every method may fail with
 * {@link AccountUnavailableError}, {@link RateLimitError},
 * {@link ForbiddenAddressError}, or the reason of the signal; with a gate also
 * with {@link HostUnavailableError}, in place of {@link RateLimitError}.
 * Leaving a stream early closes its connection.
 *
 * @param options.gate - says when a host may be asked; at any time, if left out
 * @see https://docs.bsky.app/docs/api/com-atproto-sync-get-repo
 */
export function createAccountReader({
  fetch,
  gate,
}: {
  fetch: SafeFetch
  gate?: HostGate
}): AccountReader {
  const through = (
    kind: keyof SafeFetch,
    { did, pds }: Identity,
    { patient }: { patient: boolean }
  ): Fetch =>
    gate
      ? throughGate(fetch[kind], gate, {
          host: pds.host,
          account: did,
          patient,
        })
      : fetch[kind]
  return {
    async latestCommit(identity, options) {
      const { did, pds } = identity
      const method = 'com.atproto.sync.getLatestCommit'
      // The first request of a run: there is nothing yet to be patient for.
      const fetch = through('small', identity, { patient: false })
      const response = await call(fetch, pds, method, { did }, options)
      const { cid, rev } = await readJSON(response, latestCommitSchema)
      return { cid: CID.parse(cid), rev }
    },

    async repo(identity, { since, ...options } = {}) {
      const { did, pds } = identity
      const method = 'com.atproto.sync.getRepo'
      const parameters = { did, since }
      const fetch = through('repo', identity, { patient: true })
      const response = await call(fetch, pds, method, parameters, options)
      const type = response.headers.get('content-type') ?? ''
      if (!CAR_TYPE.test(type)) {
        await response.body.cancel()
        throw new HostError(
          `${pds.host} answered ${method} with something that is not a CAR. Check that it is a PDS.`
        )
      }
      return response.body
    },

    blobs(identity, options) {
      const fetch = through('small', identity, { patient: true })
      return listBlobs(fetch, identity, options)
    },

    async blob(identity, cid, options) {
      const { did, pds } = identity
      const fetch = through('stream', identity, { patient: true })
      const method = 'com.atproto.sync.getBlob'
      const parameters = { did, cid }
      try {
        const response = await query(fetch, pds, method, parameters, options)
        return response.body
      } catch (cause) {
        throw toBlobError(cause)
      }
    },
  }
}

async function* listBlobs(
  fetch: Fetch,
  { did, pds }: Identity,
  { since, signal }: CallOptions & { since?: string } = {}
): AsyncGenerator<string> {
  const limit = String(LIST_BLOBS.pageSize)
  let cursor: string | undefined
  let total = 0
  for (let page = 0; page < LIST_BLOBS.maxPages; page++) {
    let response
    try {
      const parameters = { did, since, limit, cursor }
      const method = 'com.atproto.sync.listBlobs'
      response = await query(fetch, pds, method, parameters, { signal })
    } catch (cause) {
      // Some hosts do not list blobs: the records name them too.
      if (page === 0 && isNoSuchMethod(cause)) return
      throw toBackupError(cause)
    }
    const answer = await readJSON(response, listBlobsSchema)
    total += answer.cids.length
    if (total > LIST_BLOBS.maxBlobs) break
    yield* answer.cids
    if (!answer.cursor) return
    if (answer.cursor === cursor) break
    cursor = answer.cursor
  }
  throw new HostError(
    `${pds.host} does not come to the end of its list of blobs. Tell the people who run it.`
  )
}

async function call(...parameters: Parameters<typeof query>) {
  try {
    return await query(...parameters)
  } catch (cause) {
    throw toBackupError(cause)
  }
}

function isCid(text: string): boolean {
  try {
    CID.parse(text)
    return true
  } catch {
    return false
  }
}

function isNoSuchMethod(error: unknown): boolean {
  return (
    error instanceof XrpcError &&
    (error.status === 501 || NO_SUCH_METHOD.includes(error.error))
  )
}

function isAccountError({ error, detail }: XrpcError): boolean {
  return (
    ACCOUNT_ERRORS.includes(error) ||
    /^could not find (repo|root)/i.test(detail)
  )
}

/** What to do about an account that its host does not give. */
function adviceFor({ error }: XrpcError): string {
  if (/deactivated$/i.test(error)) {
    return 'Activate it at the host to have it backed up again.'
  }
  if (/(take(n)?down|suspended)$/i.test(error)) {
    return 'Only the people who run the host can put it back: ask them. Backups that there are stay.'
  }
  return 'Sign in at the host to see what became of the account.'
}

function toBlobError(cause: unknown): unknown {
  if (!(cause instanceof XrpcError) || isAccountError(cause)) {
    return toBackupError(cause)
  }
  const { status, error, detail, message } = cause
  if (status === 451 || /taken? ?down/i.test(`${error} ${detail}`)) {
    return new BlobTakenDownError(
      `${message}. Ask the people who run the host why they withhold it.`,
      { cause }
    )
  }
  if (error === 'BlobNotFound' || /^blob not found/i.test(detail)) {
    return new BlobNotFoundError(
      `${message}. If you still have the file, post it again.`,
      { cause }
    )
  }
  return toBackupError(cause)
}

function toBackupError(cause: unknown): unknown {
  if (!(cause instanceof XrpcError)) return cause
  const { status, message, retryAfter } = cause
  if (isAccountError(cause)) {
    return new AccountUnavailableError(`${message}. ${adviceFor(cause)}`, {
      cause,
    })
  }
  if (status === 429) {
    const when = retryAfter === undefined ? 'later' : `in ${retryAfter} seconds`
    return new RateLimitError(`${message}. Try again ${when}.`, {
      cause,
      retryAfter,
    })
  }
  return new HostError(`${message}. Try again later.`, { cause })
}
