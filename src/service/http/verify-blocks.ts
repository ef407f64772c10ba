import { CarBufferReader } from '@ipld/car/buffer-reader'
import { equals } from 'multiformats/bytes'
import { identity } from 'multiformats/hashes/identity'
import { sha256 } from 'multiformats/hashes/sha2'
import { InvalidBodyError } from '../errors.ts'

/**
 * How DAG-CBOR writes the text `__proto__`. Its decoder makes a map with that
 * key pass for bytes or for a link, whose methods then throw. No request needs
 * the word, not even as a value, so that the place need not be looked at.
 */
const PROTO = Buffer.from('\x69__proto__', 'latin1')

/**
 * Checks that a body is a CAR and that every block in it hashes to its CID.
 * Ucanto takes blocks at their word: one with a false CID could pass for a
 * delegation that nobody gave.
 *
 * @throws {@link InvalidBodyError}
 */
export async function verifyBlocks(body: Uint8Array): Promise<void> {
  if (Buffer.from(body.buffer, body.byteOffset, body.length).includes(PROTO)) {
    throw new InvalidBodyError(
      'the body has the text __proto__, which no message may have'
    )
  }
  let reader: CarBufferReader
  try {
    reader = CarBufferReader.fromBytes(body)
  } catch (cause) {
    throw new InvalidBodyError('the body is not a CAR', { cause })
  }
  for (const { cid, bytes } of reader.blocks()) {
    const { code } = cid.multihash
    const digest =
      code === sha256.code
        ? await sha256.digest(bytes)
        : code === identity.code
          ? identity.digest(bytes)
          : undefined
    if (!digest) {
      throw new InvalidBodyError(
        `the block ${cid.toString()} has a hash other than sha2-256 and identity`
      )
    }
    if (!equals(digest.bytes, cid.multihash.bytes)) {
      throw new InvalidBodyError(
        `the block ${cid.toString()} has bytes that do not hash to its CID`
      )
    }
  }
}
