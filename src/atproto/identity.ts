import { AtprotoHandleResolverNode } from '@atproto-labs/handle-resolver-node'
import { XrpcHandleResolver } from '@atproto-labs/handle-resolver'
import { ensureValidHandle } from '@atproto/syntax'
import { getHandle, getKey, getPds } from '@atproto/identity'
import { z } from 'zod'
import {
  BackupError,
  DidNotFoundError,
  ForbiddenAddressError,
  HandleNotFoundError,
  IdentityUnavailableError,
  NoPdsError,
} from '../backup/errors.ts'
import type {
  CallOptions,
  DID,
  Identity,
  IdentityResolver,
} from '../backup/interface.ts'
import { signingKeysOf } from './plc-log.ts'
import type { Fetch } from './safe-fetch.ts'

/** Largest DID document and largest log that are kept, in characters. */
const MAX_DOCUMENT_LENGTH = 1024 * 1024

const PLC_SYNTAX = /^did:plc:[a-z2-7]{24}$/
/** Host names only: ATProto allows neither paths nor, outside tests, ports. */
const WEB_SYNTAX = /^did:web:([a-zA-Z0-9.-]+(?:%3A\d{1,5})?)$/

const didDocument = z.looseObject({
  id: z.string(),
  alsoKnownAs: z.array(z.string()).optional(),
  verificationMethod: z
    .array(
      z.looseObject({
        id: z.string(),
        type: z.string(),
        controller: z.string(),
        publicKeyMultibase: z.string().optional(),
      })
    )
    .optional(),
  service: z
    .array(
      z.looseObject({
        id: z.string(),
        type: z.string(),
        serviceEndpoint: z.union([
          z.string(),
          z.record(z.string(), z.unknown()),
        ]),
      })
    )
    .optional(),
})

export interface IdentityResolverOptions {
  /** PLC directory. */
  plcUrl: URL
  /** For hosts that others name, see `createSafeFetch`. */
  fetch: Fetch
  /** Host that is asked for handles by XRPC, instead of DNS and the handle. */
  handleResolverUrl?: URL
  allowPrivateNetwork: boolean
  /** Told what is left out of an identity, and why. */
  onWarning?: (message: string) => void
}

/**
 * Finds accounts by DNS, by their handle's host, and by the PLC directory.
 *
 * @see https://atproto.com/specs/did https://atproto.com/specs/handle
 */
export function createIdentityResolver({
  plcUrl,
  fetch,
  handleResolverUrl,
  allowPrivateNetwork,
  onWarning,
}: IdentityResolverOptions): IdentityResolver {
  const handles = handleResolverUrl
    ? new XrpcHandleResolver(handleResolverUrl, { fetch })
    : new AtprotoHandleResolverNode()

  const resolveHandle = async (handle: string, signal?: AbortSignal) => {
    try {
      const did = await handles.resolve(handle, signal ? { signal } : {})
      return (did ?? undefined) as DID | undefined
    } catch (cause) {
      signal?.throwIfAborted()
      throw new IdentityUnavailableError(
        `the handle ${handle} cannot be looked up at the moment; try again later, or use the DID`,
        { cause }
      )
    }
  }

  const fetchText = async (url: URL, signal?: AbortSignal) => {
    const response = await fetch(url, {
      headers: { accept: 'application/json, application/did+ld+json' },
      redirect: 'error',
      ...(signal ? { signal } : {}),
    })
    const text = await response.text()
    return response.ok && text.length <= MAX_DOCUMENT_LENGTH
      ? { text }
      : { status: response.ok ? 413 : response.status }
  }

  const fetchDocument = async (did: DID, signal?: AbortSignal) => {
    const url = documentUrl(did, plcUrl, allowPrivateNetwork)
    let answer: Awaited<ReturnType<typeof fetchText>>
    try {
      answer = await fetchText(url, signal)
    } catch (cause) {
      signal?.throwIfAborted()
      if (cause instanceof ForbiddenAddressError) throw cause
      throw new IdentityUnavailableError(
        `the document of ${did} cannot be fetched from ${url.host}; try again later`,
        { cause }
      )
    }
    if (answer.text !== undefined) return answer.text
    if (answer.status === 404 || answer.status === 410) {
      throw new DidNotFoundError(`there is no ${did}; check the DID`)
    }
    throw new IdentityUnavailableError(
      `${url.host} answered with status ${answer.status} for ${did}; try again later`
    )
  }

  const fetchLog = async (did: DID, signal?: AbortSignal) => {
    if (!did.startsWith('did:plc:')) return undefined
    try {
      const url = new URL(`${withoutSlash(plcUrl)}/${did}/log/audit`)
      const { text, status } = await fetchText(url, signal)
      if (text !== undefined) return text
      onWarning?.(`the PLC log of ${did} was answered with status ${status}`)
    } catch (error) {
      signal?.throwIfAborted()
      onWarning?.(`the PLC log of ${did} cannot be fetched: ${String(error)}`)
    }
    return undefined
  }

  return {
    async resolve(account: string, { signal }: CallOptions = {}) {
      signal?.throwIfAborted()
      const asked = account.startsWith('did:')
        ? undefined
        : account.replace(/^@/, '').toLowerCase()
      if (asked !== undefined) checkHandle(asked)
      const did =
        asked === undefined
          ? (account as DID)
          : await resolveHandle(asked, signal)
      if (did === undefined) {
        throw new HandleNotFoundError(
          `the handle ${asked} leads to no account; check how it is written`
        )
      }
      const [document, log] = await Promise.all([
        fetchDocument(did, signal),
        fetchLog(did, signal),
      ])
      const { pds, claimed, ...keys } = await readIdentity(did, document, log, {
        allowPrivateNetwork,
        ...(onWarning ? { onWarning } : {}),
      })
      let handle: string | undefined
      if (asked !== undefined) {
        if (claimed !== asked) {
          throw new HandleNotFoundError(
            `the handle ${asked} points to ${did}, which does not claim it; use the DID if it is the right account`
          )
        }
        handle = asked
      } else if (claimed !== undefined) {
        handle = await pointsBack(claimed, did, resolveHandle, signal)
      }
      return {
        did,
        ...(handle === undefined ? {} : { handle }),
        pds,
        ...keys,
        document,
      } satisfies Identity
    },
  }
}

/**
 * What a DID document and a PLC log say of an account.
 *
 * @param document - JSON text of the DID document
 * @param log - JSON text of the PLC audit log; left out of the answer if it
 *   is not valid
 * @throws {@link DidNotFoundError} {@link NoPdsError}
 */
export async function readIdentity(
  did: DID,
  document: string,
  log: string | undefined,
  {
    allowPrivateNetwork,
    onWarning,
  }: { allowPrivateNetwork: boolean; onWarning?: (message: string) => void }
): Promise<
  Pick<Identity, 'pds' | 'signingKey' | 'previousSigningKeys' | 'log'> & {
    /** Handle that the document claims; nobody has checked it. */
    claimed?: string
  }
> {
  const parsed = parseDocument(did, document)
  const endpoint = getPds(parsed)
  const signingKey = keyIn(parsed)
  if (endpoint === undefined || signingKey === undefined) {
    throw new NoPdsError(
      `the document of ${did} names no PDS or no signing key; there is nothing to back up from`
    )
  }
  const pds = new URL(endpoint)
  if (pds.protocol !== 'https:' && !allowPrivateNetwork) {
    throw new NoPdsError(`the PDS of ${did} is not at an https address`)
  }
  let previousSigningKeys: DID[] = []
  let validLog = log
  if (log !== undefined) {
    try {
      const keys = await signingKeysOf(did, log)
      previousSigningKeys = keys.filter((key) => key !== signingKey)
    } catch (error) {
      validLog = undefined
      onWarning?.(`the PLC log of ${did} is not valid: ${String(error)}`)
    }
  }
  const claimed = getHandle(parsed)?.toLowerCase()
  return {
    pds,
    signingKey,
    previousSigningKeys,
    ...(validLog === undefined ? {} : { log: validLog }),
    ...(claimed === undefined ? {} : { claimed }),
  }
}

type ParsedDocument = Parameters<typeof getKey>[0]

function parseDocument(did: DID, text: string): ParsedDocument {
  let parsed: z.infer<typeof didDocument>
  try {
    parsed = didDocument.parse(JSON.parse(text))
  } catch (cause) {
    throw new DidNotFoundError(`the document of ${did} is not a DID document`, {
      cause,
    })
  }
  if (parsed.id !== did) {
    throw new DidNotFoundError(
      `the document of ${did} is that of another DID: ${parsed.id.slice(0, 100)}`
    )
  }
  return parsed as ParsedDocument
}

function keyIn(document: ParsedDocument): DID | undefined {
  try {
    return getKey(document) as DID | undefined
  } catch {
    // A key that cannot be read is no key.
    return undefined
  }
}

function documentUrl(did: DID, plcUrl: URL, allowPrivateNetwork: boolean): URL {
  if (PLC_SYNTAX.test(did)) return new URL(`${withoutSlash(plcUrl)}/${did}`)
  const host = WEB_SYNTAX.exec(did)?.[1]
  if (host === undefined || (host.includes('%') && !allowPrivateNetwork)) {
    throw new DidNotFoundError(
      `${did.slice(0, 100)} is not a DID of ATProto: use a did:plc or a did:web`
    )
  }
  const local = /^localhost(%|$)/.test(host) && allowPrivateNetwork
  return new URL(
    `${local ? 'http' : 'https'}://${decodeURIComponent(host)}/.well-known/did.json`
  )
}

function checkHandle(handle: string): void {
  try {
    ensureValidHandle(handle)
  } catch (cause) {
    throw new HandleNotFoundError(
      `${JSON.stringify(handle.slice(0, 100))} is neither a handle, like alice.bsky.social, nor a DID`,
      { cause }
    )
  }
}

async function pointsBack(
  handle: string,
  did: DID,
  resolveHandle: (handle: string, signal?: AbortSignal) => Promise<unknown>,
  signal: AbortSignal | undefined
): Promise<string | undefined> {
  try {
    checkHandle(handle)
    return (await resolveHandle(handle, signal)) === did ? handle : undefined
  } catch (error) {
    signal?.throwIfAborted()
    // The account is found by its DID; its handle is only shown to people.
    if (error instanceof BackupError) return undefined
    throw error
  }
}

function withoutSlash(url: URL): string {
  return url.href.replace(/\/$/, '')
}
