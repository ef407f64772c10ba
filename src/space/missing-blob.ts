import { createCodec } from './codec.ts'
import type { MissingBlob } from './interface.ts'
import { integer, oneOf, struct, text } from './schema.ts'

/** Length of the detail in UTF-16 code units, at most. */
export const MAX_DETAIL_LENGTH = 256

const codec = createCodec<MissingBlob>('MissingBlob', {
  check: struct({
    reason: oneOf([
      'not-found',
      'taken-down',
      'too-large',
      'wrong-hash',
      'failed',
    ]),
    detail: text(MAX_DETAIL_LENGTH),
    tried: integer,
  }),
})

/** @throws {@link DecodeError} {@link TooLargeError} */
export const encodeMissingBlob = codec.encode

/** @throws {@link DecodeError} {@link TooLargeError} */
export const decodeMissingBlob = codec.decode

/** @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError} */
export const readMissingBlob = codec.read
