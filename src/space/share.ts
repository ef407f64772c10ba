import { createCodec } from './codec.ts'
import type { DID, Share } from './interface.ts'
import { PRIVATE_PARTS } from './private-parts.ts'
import { bytes, partial, versioned } from './schema.ts'

const codec = createCodec<Share>('Share', {
  check: versioned<Share>({ keys: partial(PRIVATE_PARTS, bytes) }),
})

/** @throws {@link DecodeError} {@link TooLargeError} */
export const encodeShare = codec.encode

/** @throws {@link DecodeError} {@link UnknownVersionError} {@link TooLargeError} */
export const decodeShare = codec.decode

/**
 * @throws {@link MissingBlockError} {@link DecodeError}
 *   {@link UnknownVersionError} {@link TooLargeError}
 */
export const readShare = codec.read

/** Where the share of an agent in a backup stands. */
export function shareKey(timestamp: string, agent: DID): string {
  return `${timestamp}/${agent}`
}
