import {
  buildDidWebDocumentUrl,
  isAtprotoDid,
  isDidWeb,
} from '@atproto-labs/did-resolver'
import {
  DidNotFoundError,
  ForbiddenAddressError,
  HandleNotFoundError,
  IdentityUnavailableError,
} from '../backup/errors.ts'
import type {
  CallOptions,
  DID,
  Identity,
  IdentityResolver,
} from '../backup/interface.ts'
import {
  claimedHandleOf,
  parseDidDocument,
  pdsOf,
  signingKeyOf,
  toSigningKey,
} from './did-document.ts'
import {
  createDnsHandleResolver,
  createServiceHandleResolver,
  isHandle,
} from './handle-resolver.ts'
import { verifyPlcLog } from './plc-log.ts'
import { printable } from './printable.ts'
import type { SafeFetch } from './safe-fetch.ts'

export interface IdentityResolverOptions {
  /** Base URL of the PLC directory. */
  plcUrl: URL
  fetch: SafeFetch
  /**
   * Base URL of a service that resolves handles. Without it they are resolved
   * by DNS and `/.well-known/atproto-did`.
   */
  handleResolverUrl?: URL
  /** Addresses of name servers to ask when those of the system fail. */
  nameservers?: string[]
  /** Also take a PDS that is reached by plain http. */
  allowPrivateNetwork: boolean
  /** Called with what was left out of an identity, and why. */
  onWarning?: (warning: Error) => void
}

/**
 * Finds accounts by DID (`did:plc`, `did:web`) or handle.
 *
 * Beside the errors of the interface, it may fail with
 * {@link ForbiddenAddressError}, or with the reason of the signal.
 *
 * @see https://atproto.com/specs/did
 */
export function createIdentityResolver({
  plcUrl,
  fetch: { small: fetch },
  handleResolverUrl,
  nameservers,
  allowPrivateNetwork,
  onWarning = () => {},
}: IdentityResolverOptions): IdentityResolver {
  const resolveHandle = handleResolverUrl
    ? createServiceHandleResolver(fetch, handleResolverUrl)
    : createDnsHandleResolver({ nameservers })

  const readDocument = async (did: DID, signal?: AbortSignal) => {
    const isWeb = isDidWeb(did)
    const url = isWeb ? buildDidWebDocumentUrl(did) : plcPath(plcUrl, did)
    let response, text
    try {
      response = await fetch(url, { redirect: 'error', signal })
      text = await response.text()
    } catch (cause) {
      signal?.throwIfAborted()
      if (cause instanceof ForbiddenAddressError) throw cause
      throw unavailable(did, url, cause)
    }
    if ([404, 410].includes(response.status)) {
      throw new DidNotFoundError(
        `${url.host} knows no account ${did}. Check the DID; if the account was deleted, it cannot be backed up.`
      )
    }
    if (!response.ok) {
      throw unavailable(did, url, new Error(`HTTP status ${response.status}`))
    }
    // Not even JSON: that does not come from a PLC directory.
    if (!isWeb && !text.trimStart().startsWith('{')) {
      throw unavailable(did, url, new Error('The answer is not JSON'))
    }
    return { text, document: parseDidDocument(did, text) }
  }

  /** Answers nothing if there is no log, or none that can be trusted. */
  const readLog = async (did: DID, signingKey: DID, signal?: AbortSignal) => {
    const url = plcPath(plcUrl, `${did}/log/audit`)
    try {
      const response = await fetch(url, { redirect: 'error', signal })
      const log = await response.text()
      if (!response.ok) throw new Error(`HTTP status ${response.status}`)
      return {
        log,
        previousSigningKeys: await previousKeysOf(did, log, signingKey),
      }
    } catch (cause) {
      signal?.throwIfAborted()
      onWarning(
        new Error(`Left the PLC log of ${did} out: ${messageOf(cause)}`, {
          cause,
        })
      )
      return undefined
    }
  }

  const verifyHandle = async (
    did: DID,
    handle: string,
    options: CallOptions
  ) => {
    try {
      if ((await resolveHandle(handle, options)) === did) return handle
    } catch (cause) {
      options.signal?.throwIfAborted()
      onWarning(
        new Error(`Left the handle of ${did} out: ${messageOf(cause)}`, {
          cause,
        })
      )
    }
    return undefined
  }

  return {
    async resolve(account, { signal } = {}) {
      signal?.throwIfAborted()
      const input = account.toLowerCase()
      const asked = input.startsWith('did:') ? undefined : parseHandle(input)
      const did = asked ? await resolveHandle(asked, { signal }) : account
      assertDid(did)
      const { text, document } = await readDocument(did, signal)
      const claimed = claimedHandleOf(document)
      if (asked && asked !== claimed) {
        throw new HandleNotFoundError(
          `The handle ${asked} points to ${did}, which does not claim it. Give the DID if that is the account you mean.`
        )
      }
      const pds = pdsOf(document, { allowHttp: allowPrivateNetwork })
      const signingKey = signingKeyOf(document)
      const [handle, history] = await Promise.all([
        asked ?? (claimed && verifyHandle(did, claimed, { signal })),
        isDidWeb(did) ? undefined : readLog(did, signingKey, signal),
      ])
      return {
        did,
        handle,
        pds,
        signingKey,
        previousSigningKeys: history?.previousSigningKeys ?? [],
        document: text,
        log: history?.log,
      } satisfies Identity
    },
  }
}

/**
 * The signing keys that a stored DID document and a stored PLC log name.
 *
 * @param document - JSON text of the DID document
 * @param log - JSON text of the PLC directory's audit log
 * @throws {@link DidNotFoundError} {@link NoPdsError} for a document that is
 *   not one of the account; an error for a log that is not valid
 */
export async function signingKeysIn(
  did: DID,
  document: string,
  log: string | undefined
): Promise<Pick<Identity, 'signingKey' | 'previousSigningKeys'>> {
  const signingKey = signingKeyOf(parseDidDocument(did, document))
  return {
    signingKey,
    previousSigningKeys:
      log === undefined ? [] : await previousKeysOf(did, log, signingKey),
  }
}

async function previousKeysOf(
  did: DID,
  log: string,
  signingKey: DID
): Promise<DID[]> {
  const keys = (await verifyPlcLog(did, log)).map(toSigningKey)
  if (keys.at(-1) !== signingKey) {
    throw new Error('It ends with another signing key than the DID document')
  }
  const previous = keys.filter(
    (key): key is DID => key !== undefined && key !== signingKey
  )
  return [...new Set(previous)]
}

function plcPath(plcUrl: URL, path: string): URL {
  return new URL(`${plcUrl.href.replace(/\/$/, '')}/${path}`)
}

function parseHandle(text: string): string {
  const handle = text.replace(/^@/, '')
  if (isHandle(handle)) return handle
  throw new HandleNotFoundError(
    `“${printable(text)}” is neither a handle like alice.bsky.social nor a DID. Check its spelling.`
  )
}

function assertDid(did: string): asserts did is DID {
  if (isAtprotoDid(did)) return
  throw new DidNotFoundError(
    `“${printable(did)}” is not a DID of an account: only did:plc and did:web are.`
  )
}

function unavailable(did: DID, { host }: URL, cause: unknown): Error {
  return new IdentityUnavailableError(
    `${host}, which knows ${did}, does not answer as it should. Try again later.`,
    { cause }
  )
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
