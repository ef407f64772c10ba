import {
  didDocumentValidator,
  extractAtprotoData,
} from '@atproto-labs/did-resolver'
import type {
  AtprotoIdentityDidMethods,
  DidDocument,
} from '@atproto-labs/did-resolver'
import {
  P256_JWT_ALG,
  SECP256K1_JWT_ALG,
  formatDidKey,
  multibaseToBytes,
  parseMultikey,
} from '@atproto/crypto'
import { DidNotFoundError, NoPdsError } from '../backup/errors.ts'
import type { DID } from '../backup/interface.ts'
import { isHandle } from './handle-resolver.ts'
import { printableError } from './printable.ts'

type AccountDocument = DidDocument<AtprotoIdentityDidMethods>

/**
 * Reads a DID document from JSON text.
 *
 * @param did - whose document it must be
 * @throws {@link DidNotFoundError} if it is not a valid document of the DID
 * @see https://www.w3.org/TR/did-1.0/#core-properties
 */
export function parseDidDocument(did: DID, text: string): AccountDocument {
  try {
    const document = didDocumentValidator.parse(JSON.parse(text))
    if (document.id === did) return document as AccountDocument
    throw new Error('It is the document of another DID')
  } catch (cause) {
    throw new DidNotFoundError(
      `The DID document of ${did} is not valid. Its owner must correct it.`,
      { cause: printableError(cause) }
    )
  }
}

/** The handle that the document claims, not verified, in lower case. */
export function claimedHandleOf(document: AccountDocument): string | undefined {
  const handle = extractAtprotoData(document).aka?.toLowerCase()
  return handle && isHandle(handle) ? handle : undefined
}

/**
 * Base URL of the account's PDS.
 *
 * @throws {@link NoPdsError}
 */
export function pdsOf(
  document: AccountDocument,
  { allowHttp }: { allowHttp: boolean }
): URL {
  const { pds } = extractAtprotoData(document)
  const url = pds && new URL(pds.serviceEndpoint)
  const isUsable =
    url &&
    (url.protocol === 'https:' || (allowHttp && url.protocol === 'http:')) &&
    !(url.username || url.password || url.search || url.hash)
  if (isUsable) return new URL(url.origin)
  throw new NoPdsError(
    `The DID document of ${document.id} names no PDS that can be used: a plain https URL. Its owner must set one.`
  )
}

/**
 * Public key of the account's repository, as `did:key`.
 *
 * @throws {@link NoPdsError}
 */
export function signingKeyOf(document: AccountDocument): DID {
  const { key } = extractAtprotoData(document)
  const signingKey = key && decodeKey(key.type, key.publicKeyMultibase)
  if (signingKey) return signingKey
  throw new NoPdsError(
    `The DID document of ${document.id} names no signing key that can be used (P-256 or K-256). Its owner must set one.`
  )
}

/** A `did:key` in its canonical form, if a repository can be signed with it. */
export function toSigningKey(didKey: string): DID | undefined {
  return decodeKey('Multikey', didKey.replace(/^did:key:/, ''))
}

/** @see https://atproto.com/specs/did#did-documents */
function decodeKey(type: string, multibase: string): DID | undefined {
  try {
    if (type === 'EcdsaSecp256k1VerificationKey2019') {
      return formatDidKey(SECP256K1_JWT_ALG, multibaseToBytes(multibase))
    }
    if (type === 'EcdsaSecp256r1VerificationKey2019') {
      return formatDidKey(P256_JWT_ALG, multibaseToBytes(multibase))
    }
    const { jwtAlg, keyBytes } = parseMultikey(multibase)
    return formatDidKey(jwtAlg, keyBytes)
  } catch {
    // Of another kind, or no key at all: a repository is not signed with it.
    return undefined
  }
}
