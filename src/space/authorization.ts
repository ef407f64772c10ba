import * as dagCbor from '@ipld/dag-cbor'
import { compareBytes } from './bytes.ts'
import { createCodec, readBlock } from './codec.ts'
import type {
  Authorization,
  Authorizations,
  Block,
  BlockFetcher,
  Link,
} from './interface.ts'
import {
  bytes,
  didMap,
  integer,
  link,
  optional,
  recipient,
  struct,
} from './schema.ts'

/** Agents that are authorized for one account, at most. */
export const MAX_AUTHORIZATIONS = 1000

const authorization = createCodec<Authorization>('Authorization', {
  check: struct({
    sealed: bytes,
    expiration: integer,
    seq: integer,
    recipient: optional(recipient),
  }),
})

const authorizations = createCodec<Authorizations>('Authorizations', {
  check: didMap(link<Authorization>(dagCbor.code), MAX_AUTHORIZATIONS),
})

/** @throws {@link DecodeError} {@link TooLargeError} */
export const encodeAuthorization = authorization.encode

/** @throws {@link DecodeError} {@link TooLargeError} */
export const decodeAuthorization = authorization.decode

/** @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError} */
export const readAuthorization = authorization.read

/** @throws {@link DecodeError} {@link TooLargeError} */
export const encodeAuthorizations = authorizations.encode

/** @throws {@link DecodeError} {@link TooLargeError} */
export const decodeAuthorizations = authorizations.decode

/** @throws {@link MissingBlockError} {@link DecodeError} {@link TooLargeError} */
export const readAuthorizations = authorizations.read

/**
 * Whether an authorization holds: it was not given back, and has not ended. For
 * agents whose authorization holds private parts are sealed, and shared with
 * them, and with no others.
 *
 * @param now - Unix milliseconds
 */
export function isInForce(
  { expiration }: Pick<Authorization, 'expiration'>,
  now: number
): boolean {
  // One that was given back stays where it was, and ended at once.
  return expiration > 0 && expiration * 1000 > now
}

/** An authorization together with the bytes that decide between equals. */
export interface RankedAuthorization {
  link: Link<Authorization>
  authorization: Authorization
  bytes: Uint8Array
}

/** Reads an authorization so that it can be compared with another. */
export async function readRanked(
  fetcher: BlockFetcher,
  link: Link<Authorization>
): Promise<RankedAuthorization> {
  return rank(await readBlock(fetcher, link, 'Authorization'))
}

/** Decodes an authorization so that it can be compared with another. */
export function rank(block: Block): RankedAuthorization {
  return {
    link: block.cid as Link<Authorization>,
    authorization: decodeAuthorization(block),
    bytes: block.bytes,
  }
}

/**
 * Of two authorizations of one agent, the one that counts: the greater `seq`,
 * then the later `expiration`, then the greater bytes. A total order, so every
 * agent chooses the same.
 */
export function greaterAuthorization(
  a: RankedAuthorization,
  b: RankedAuthorization
): RankedAuthorization {
  const order =
    a.authorization.seq - b.authorization.seq ||
    a.authorization.expiration - b.authorization.expiration ||
    compareBytes(a.bytes, b.bytes)
  return order >= 0 ? a : b
}
