import * as dagCbor from '@ipld/dag-cbor'
import { createCodec } from './codec.ts'
import type { Account } from './interface.ts'
import { link, optional, struct, timestamp } from './schema.ts'

const codec = createCodec<Account>('Account', {
  check: struct({
    authorizations: link(dagCbor.code),
    backups: link(dagCbor.code),
    prunedBefore: optional(timestamp),
  }),
})

/** @throws {@link DecodeError} */
export const encodeAccount = codec.encode

/** @throws {@link DecodeError} {@link TooLargeError} */
export const decodeAccount = codec.decode

/** @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError} */
export const readAccount = codec.read
