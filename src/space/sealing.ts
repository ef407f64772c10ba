import { CompactEncrypt, compactDecrypt, type CompactDecryptResult } from 'jose'
import { equals } from 'multiformats/bytes'
import { encodeAuthorization } from './authorization.ts'
import {
  NonDeterministicSignerError,
  ReplayedAuthorizationError,
  TooLargeError,
  UnsealError,
} from './errors.ts'
import type { Authorization, DID } from './interface.ts'

/** What is sealed, in bytes, at most. */
export const MAX_SEALED_SIZE = 64 * 1024

const VERSION = 1
const KEY_BITS = 256
const TYPE = 'bluesky-backups-authorization'
const ENCRYPTION = { alg: 'dir', enc: 'A256GCM' }
/** PKCS #8 of an X25519 key, up to its 32 bytes. RFC 8410, section 7. */
const X25519_PREFIX = Uint8Array.from([
  0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x04,
  0x22, 0x04, 0x20,
])

/** An agent, as far as it seals: any signer of Ucanto. */
export interface SealingAgent {
  did(): string
  /** The same signature each time, as Ed25519 and RSA (PKCS #1 v1.5) give. */
  sign(payload: Uint8Array): Uint8Array | PromiseLike<Uint8Array>
}

/** What a grant is for. */
export interface SealingSubject {
  /** DID of the Space it is kept in. */
  space: DID
  /** DID of the account it gives access to. */
  account: DID
}

/**
 * Seals an agent's grant so that nobody but the agent can open it: as a compact
 * JWE whose key comes from a signature of the agent. Version, Space, account,
 * agent, `seq` and `expiration` are authenticated along with it.
 *
 * @param details.seq - one more than that of the grant before
 * @param details.expiration - Unix seconds
 * @param details.recipient - see {@link deriveIdentity}
 * @param payload - of at most {@link MAX_SEALED_SIZE} bytes
 * @throws {@link NonDeterministicSignerError} {@link TooLargeError}
 * @see https://www.rfc-editor.org/rfc/rfc7516
 */
export async function sealAuthorization(
  agent: SealingAgent,
  details: SealingSubject & Omit<Authorization, 'sealed'>,
  payload: Uint8Array
): Promise<Authorization> {
  const { seq, expiration, recipient } = details
  if (payload.length > MAX_SEALED_SIZE) {
    throw new TooLargeError(
      `a grant has ${payload.length} bytes, and ${MAX_SEALED_SIZE} at most are sealed`
    )
  }
  const key = await deriveBits(agent, details, 'seal')
  const jwe = await new CompactEncrypt(payload)
    .setProtectedHeader(headerOf(agent, details, { seq, expiration }))
    .encrypt(key)
  const authorization = {
    sealed: new TextEncoder().encode(jwe),
    expiration,
    seq,
    ...(recipient === undefined ? {} : { recipient }),
  }
  // What the schema refuses is not handed out.
  await encodeAuthorization(authorization)
  return authorization
}

/**
 * Opens what the same agent has sealed for the same Space and account.
 *
 * @param subject.newestSeq - the greatest `seq` that the agent has seen; an
 *   older grant is refused, because its tokens were used already
 * @returns the payload
 * @throws {@link UnsealError} when it is somebody else's, or not as it was
 *   sealed; {@link ReplayedAuthorizationError}
 *   {@link NonDeterministicSignerError}
 */
export async function openAuthorization(
  agent: SealingAgent,
  subject: SealingSubject & { newestSeq?: number },
  authorization: Authorization
): Promise<Uint8Array> {
  const { seq, sealed } = authorization
  const { newestSeq = 0 } = subject
  if (seq < newestSeq) {
    throw new ReplayedAuthorizationError(
      `the authorization of ${agent.did()} for ${subject.account} is number ${seq}, and number ${newestSeq} was there already`
    )
  }
  const key = await deriveBits(agent, subject, 'seal')
  let opened: CompactDecryptResult
  try {
    opened = await compactDecrypt(sealed, key, {
      keyManagementAlgorithms: [ENCRYPTION.alg],
      contentEncryptionAlgorithms: [ENCRYPTION.enc],
    })
  } catch {
    // The cause may quote what it failed on.
    throw new UnsealError(
      `the authorization for ${subject.account} in ${subject.space} was not sealed by ${agent.did()}, or was changed since`
    )
  }
  const expected = headerOf(agent, subject, authorization)
  const { protectedHeader, plaintext } = opened
  const names = Object.keys(protectedHeader)
  if (
    names.length !== Object.keys(expected).length ||
    names.some((name) => protectedHeader[name] !== expected[name])
  ) {
    throw new UnsealError(
      `the authorization for ${subject.account} in ${subject.space} was sealed as another: one of another Space, account, agent, number or expiration stands in its place`
    )
  }
  return new Uint8Array(plaintext)
}

/**
 * The identity under which private parts of an account are sealed for an agent.
 * Its key cannot be taken out; it is the same each time.
 *
 * @returns a private key of X25519, as `age` takes it
 * @throws {@link NonDeterministicSignerError}
 */
export async function deriveIdentity(
  agent: SealingAgent,
  subject: SealingSubject
): Promise<CryptoKey> {
  const bits = await deriveBits(agent, subject, 'identity')
  const key = new Uint8Array(X25519_PREFIX.length + bits.length)
  key.set(X25519_PREFIX)
  key.set(bits, X25519_PREFIX.length)
  return crypto.subtle.importKey('pkcs8', key, { name: 'X25519' }, false, [
    'deriveBits',
  ])
}

function headerOf(
  agent: SealingAgent,
  { space, account }: SealingSubject,
  { seq, expiration }: Pick<Authorization, 'seq' | 'expiration'>
): Record<string, unknown> & typeof ENCRYPTION {
  return {
    ...ENCRYPTION,
    typ: TYPE,
    version: VERSION,
    space,
    account,
    agent: agent.did(),
    seq,
    expiration,
  }
}

/** Signs what names all that the key is for, and takes the key from that. */
async function deriveBits(
  agent: SealingAgent,
  { space, account }: SealingSubject,
  purpose: 'seal' | 'identity'
): Promise<Uint8Array> {
  // A UCAN's payload has no line breaks: no signature of one can serve here.
  const message = new TextEncoder().encode(
    `bluesky-backups key derivation\nversion ${VERSION}\n${space}\n${account}\n${agent.did()}\n`
  )
  const signature = Uint8Array.from(await agent.sign(message))
  if (!equals(signature, Uint8Array.from(await agent.sign(message)))) {
    throw new NonDeterministicSignerError(
      `${agent.did()} signs the same in two ways, so that no key can be taken from it; use an agent with an Ed25519 or RSA key`
    )
  }
  const secret = await crypto.subtle.importKey(
    'raw',
    signature,
    'HKDF',
    false,
    ['deriveBits']
  )
  const bits = await crypto.subtle.deriveBits(
    {
      name: 'HKDF',
      hash: 'SHA-256',
      salt: new Uint8Array(),
      info: new TextEncoder().encode(
        `bluesky-backups ${purpose} version ${VERSION}`
      ),
    },
    secret,
    KEY_BITS
  )
  return new Uint8Array(bits)
}
