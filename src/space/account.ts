import * as dagCbor from '@ipld/dag-cbor'
import { createCodec } from './codec.ts'
import type { Account, Recovery } from './interface.ts'
import {
  integer,
  link,
  optional,
  recipient,
  struct,
  timestamp,
} from './schema.ts'

const codec = createCodec<Account>('Account', {
  check: struct({
    authorizations: link(dagCbor.code),
    backups: link(dagCbor.code),
    prunedBefore: optional(timestamp),
    recovery: optional(
      struct<Recovery>({ recipient: optional(recipient), seq: integer })
    ),
    shares: optional(link(dagCbor.code)),
  }),
})

/** @throws {@link DecodeError} */
export const encodeAccount = codec.encode

/** @throws {@link DecodeError} {@link TooLargeError} */
export const decodeAccount = codec.decode

/** @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError} */
export const readAccount = codec.read
