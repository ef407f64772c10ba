import * as dagCbor from '@ipld/dag-cbor'
import { JSON_CODE, createCodec } from './codec.ts'
import type {
  Backup,
  BackupIdentity,
  BlockIndex,
  Commit,
  CommitSignature,
  JSONText,
  MissingBlob,
  Pail,
} from './interface.ts'
import { privateParts } from './private-parts.ts'
import {
  did,
  link,
  list,
  oneOf,
  optional,
  pattern,
  struct,
  versioned,
} from './schema.ts'

/** More than the kinds of parts there are, for those to come. */
const MAX_PARTS = 64

/** @see https://atproto.com/specs/tid */
const TID_SYNTAX = /^[2-7a-j][2-7a-z]{12}$/

const fields = {
  account: did,
  rev: pattern(TID_SYNTAX, 'a TID'),
  repo: link<Commit>(dagCbor.code),
  blobs: link<Pail>(dagCbor.code),
  missing: optional(link<Pail<MissingBlob>>(dagCbor.code)),
  identity: struct<BackupIdentity>({
    document: link(JSON_CODE),
    log: optional(link(JSON_CODE)),
  }),
  signature: oneOf<CommitSignature>(['current', 'previous']),
  parts: list(oneOf(['blobs']), MAX_PARTS),
  index: link<BlockIndex>(dagCbor.code),
}

const codec = createCodec<Backup>('Backup', {
  check: versioned<Backup, 'private' | 'preferences'>(fields, {
    private: privateParts,
    preferences: optional(link<JSONText>(JSON_CODE)),
  }),
})

/** @throws {@link DecodeError} */
export const encodeBackup = codec.encode

/** @throws {@link DecodeError} {@link UnknownVersionError} {@link TooLargeError} */
export const decodeBackup = codec.decode

/**
 * @throws {@link MissingBlockError} {@link DecodeError}
 *   {@link UnknownVersionError} {@link TooLargeError}
 */
export const readBackup = codec.read
