import * as dagCbor from '@ipld/dag-cbor'
import { createCodec } from './codec.ts'
import type { Account, State } from './interface.ts'
import { didMap, link } from './schema.ts'

/** Accounts of one state, at most. */
export const MAX_ACCOUNTS = 1000

const codec = createCodec<State>('State', {
  check: didMap(link<Account>(dagCbor.code), MAX_ACCOUNTS),
})

/** @throws {@link DecodeError} {@link TooLargeError} */
export const encodeState = codec.encode

/** @throws {@link DecodeError} {@link TooLargeError} */
export const decodeState = codec.decode

/** @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError} */
export const readState = codec.read
