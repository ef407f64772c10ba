import {
  Decrypter,
  Encrypter,
  generateX25519Identity,
  identityToRecipient,
} from 'age-encryption'
import { InvalidRecipientError, UnsealError } from './errors.ts'

/** Who private parts are sealed for. */
const RECIPIENT_SYNTAX = /^age1[02-9ac-hj-np-z]{58}$/

/**
 * Checks the public half of an identity.
 *
 * @param text - `age1…`, of an X25519 key
 * @throws {@link InvalidRecipientError}
 */
export function parseRecipient(text: string): string {
  try {
    if (!RECIPIENT_SYNTAX.test(text)) throw new TypeError('its form is another')
    // Its checksum is looked at here.
    new Encrypter().addRecipient(text)
    return text
  } catch (cause) {
    throw new InvalidRecipientError(
      'a recipient is the age1… of an X25519 key, as `age-keygen -y` prints it; check that it is complete',
      { cause }
    )
  }
}

/** The public half of an identity, under which others seal for it. */
export function recipientOf(identity: CryptoKey | string): Promise<string> {
  return identityToRecipient(identity)
}

/**
 * Makes an identity for a user to keep, under which private parts can be opened
 * when all agents are lost.
 *
 * @returns `identity`, a secret: `AGE-SECRET-KEY-1…`
 */
export async function createRecoveryIdentity(): Promise<{
  identity: string
  recipient: string
}> {
  const identity = await generateX25519Identity()
  return { identity, recipient: await identityToRecipient(identity) }
}

/**
 * Seals a private part for each of the recipients, as it streams by.
 *
 * @param recipients - at least one; in any order
 * @returns an age file
 * @throws {@link InvalidRecipientError}
 * @see https://age-encryption.org/v1
 */
export async function sealPart(
  recipients: Iterable<string>,
  part: ReadableStream<Uint8Array>
): Promise<ReadableStream<Uint8Array>> {
  const encrypter = new Encrypter()
  const unique = new Set(recipients)
  if (unique.size === 0) {
    throw new InvalidRecipientError(
      'a private part is sealed for somebody; authorize an agent, or set a recovery recipient'
    )
  }
  for (const recipient of unique) {
    encrypter.addRecipient(parseRecipient(recipient))
  }
  return encrypter.encrypt(part)
}

/** The key of one age file, which opens that file and no other. */
export interface FileKey {
  fileKey: Uint8Array
}

/** Of an age file, in bytes: more than its header with all its recipients. */
export const MAX_HEADER_SIZE = 256 * 1024

/**
 * Finds the key of a private part, so that it can be shared.
 *
 * @param start - of the age file: {@link MAX_HEADER_SIZE}, or all of it
 * @throws {@link UnsealError} when it was not sealed for the identity
 */
export async function findFileKey(
  identity: CryptoKey | string,
  start: Uint8Array
): Promise<FileKey> {
  try {
    const decrypter = new Decrypter()
    decrypter.addIdentity(identity)
    return { fileKey: await decrypter.decryptHeader(start) }
  } catch {
    throw notForIdentity()
  }
}

/**
 * Seals the key of a private part for another recipient.
 *
 * @returns an age file
 * @throws {@link InvalidRecipientError}
 */
export async function sealFileKey(
  recipient: string,
  { fileKey }: FileKey
): Promise<Uint8Array> {
  const encrypter = new Encrypter()
  encrypter.addRecipient(parseRecipient(recipient))
  return encrypter.encrypt(fileKey)
}

/** @throws {@link UnsealError} */
export async function openFileKey(
  identity: CryptoKey | string,
  sealed: Uint8Array
): Promise<FileKey> {
  try {
    const decrypter = new Decrypter()
    decrypter.addIdentity(identity)
    return { fileKey: await decrypter.decrypt(sealed) }
  } catch {
    throw notForIdentity()
  }
}

function notForIdentity(): UnsealError {
  return new UnsealError(
    'the private part was not sealed for this identity, or was changed since'
  )
}

/**
 * Opens a private part. What the stream gives is authentic as far as it goes;
 * the whole is when it has come to its end.
 *
 * @param identity - of {@link deriveIdentity}, or of a recovery; or the key of
 *   the file
 * @throws {@link UnsealError} when it was not sealed for the identity, also
 *   while the stream is read
 */
export async function openPart(
  identity: CryptoKey | string | FileKey,
  sealed: ReadableStream<Uint8Array>
): Promise<ReadableStream<Uint8Array>> {
  const decrypter = new Decrypter()
  let opened: ReadableStream<Uint8Array>
  try {
    decrypter.addIdentity(
      typeof identity === 'object' && 'fileKey' in identity
        ? { unwrapFileKey: () => identity.fileKey }
        : identity
    )
    opened = await decrypter.decrypt(sealed)
  } catch {
    // The cause may quote the identity.
    throw notForIdentity()
  }
  const reader = opened.getReader()
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { done, value } = await reader.read()
          if (done) controller.close()
          else controller.enqueue(value)
        } catch {
          controller.error(notForIdentity())
        }
      },
      cancel: (reason) => reader.cancel(reason),
    },
    { highWaterMark: 0 }
  )
}
