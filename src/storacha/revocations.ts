import { CAR, Delegation, UCAN } from '@ucanto/core'
import type { Delegation as DelegationView, Verifier } from '@ucanto/interface'
import * as dagCBOR from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { concat } from '../backup/bytes.ts'
import type { CallOptions } from '../backup/interface.ts'
import type { Fetch } from './connection.ts'

const VERSION = 'revocations@0.0.1'
/** Largest answer in bytes: a few invocations with their proofs. */
const MAX_SIZE = 1024 * 1024
const TIMEOUT = 10_000

// The types of this module are not to be found where it is exported.
const { verifySignature } = UCAN as unknown as {
  verifySignature: (ucan: unknown, verifier: Verifier) => Promise<boolean>
}

/** Somebody took a delegation back. */
export interface FoundRevocation {
  /** DID of who revoked it. */
  revoker: string
  /** CAR of the invocation that revoked it. */
  cause: Uint8Array
}

/** Tells which delegations were revoked at an upload service. */
export interface RevocationReader {
  /**
   * @param delegation - CID
   * @returns revocations that are signed by who revoked
   * @throws {@link RevocationsUnavailableError}
   */
  read(delegation: string, options?: CallOptions): Promise<FoundRevocation[]>
}

/** The upload service does not tell which delegations were revoked. */
export class RevocationsUnavailableError extends Error {
  override readonly name = 'RevocationsUnavailableError'
}

/**
 * Reads revocations from an upload service.
 *
 * @param url - base URL of its revocations, with a slash at the end
 * @param options.parseVerifier - parses a `did:key`
 */
export function createRevocationReader(
  url: URL,
  {
    fetch = globalThis.fetch,
    parseVerifier,
  }: {
    fetch?: Fetch
    parseVerifier: (did: `did:${string}:${string}`) => Verifier
  }
): RevocationReader {
  return {
    async read(delegation, { signal } = {}) {
      const signals = [
        AbortSignal.timeout(TIMEOUT),
        ...(signal ? [signal] : []),
      ]
      try {
        const response = await fetch(new URL(delegation, url), {
          signal: AbortSignal.any(signals),
        })
        if (response.status === 404) {
          await response.body?.cancel()
          return []
        }
        if (!response.ok) {
          await response.body?.cancel()
          throw new Error(`HTTP status ${response.status}`)
        }
        return await decode(
          delegation,
          await readBytes(response),
          parseVerifier
        )
      } catch (cause) {
        signal?.throwIfAborted()
        throw new RevocationsUnavailableError(
          `${url.host} does not tell whether ${delegation} was revoked: ${cause instanceof Error ? cause.message : String(cause)}`,
          { cause }
        )
      }
    },
  }
}

async function decode(
  delegation: string,
  bytes: Uint8Array,
  parseVerifier: (did: `did:${string}:${string}`) => Verifier
): Promise<FoundRevocation[]> {
  const { roots, blocks } = CAR.decode(bytes)
  const [root] = roots
  const answer = Object(root && dagCBOR.decode(root.bytes)) as Record<
    string,
    { revocations?: unknown } | undefined
  >
  const listed = answer[VERSION]?.revocations
  if (!Array.isArray(listed))
    throw new TypeError('it is no list of revocations')
  const found: FoundRevocation[] = []
  for (const item of listed as unknown[]) {
    const { scope, cause } = Object(item) as Record<string, unknown>
    const block = blocks.get(linkText(cause))
    if (!block || typeof scope !== 'string') continue
    const invocation = await Delegation.extract(block.bytes)
    if (!invocation.ok) continue
    if (await isRevocation(invocation.ok, delegation, scope, parseVerifier)) {
      found.push({ revoker: scope, cause: block.bytes })
    }
  }
  return found
}

/** Whether it says what the list says. Its time may be over: it was in time. */
async function isRevocation(
  invocation: DelegationView,
  delegation: string,
  revoker: string,
  parseVerifier: (did: `did:${string}:${string}`) => Verifier
): Promise<boolean> {
  const [capability] = invocation.capabilities
  const { ucan } = Object(capability.nb) as { ucan?: unknown }
  if (
    capability.can !== 'ucan/revoke' ||
    capability.with !== revoker ||
    linkText(ucan) !== delegation
  ) {
    return false
  }
  const issuer = invocation.issuer.did()
  // In the name of somebody else: who accepted it has seen the proofs.
  if (issuer !== revoker) return invocation.proofs.length > 0
  if (!issuer.startsWith('did:key:')) return true
  return verifySignature(invocation.data, parseVerifier(issuer))
}

/** Links come as links, or as DAG-JSON writes them. */
function linkText(value: unknown): string {
  const link = CID.asCID(value)
  if (link) return link.toString()
  const text = (Object(value) as Record<string, unknown>)['/']
  return typeof text === 'string' ? text : ''
}

async function readBytes(response: Response): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  let size = 0
  for await (const part of (response.body ?? []) as AsyncIterable<Uint8Array>) {
    size += part.length
    if (size > MAX_SIZE) throw new RangeError('the answer is too large')
    parts.push(part)
  }
  return concat(parts, size)
}
