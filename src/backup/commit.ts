import { verifySignature } from '@atproto/crypto'
import * as dagCBOR from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { isBytes } from '../space/bytes.ts'
import { InvalidRepoError } from './errors.ts'
import type { Commit, CommitSignature, DID, Identity } from './interface.ts'

/** A TID: 13 characters of base32-sortable. */
const TID = /^[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}$/

/**
 * Decodes a commit and checks that it is one of this account.
 *
 * @throws {@link InvalidRepoError}
 * @see https://atproto.com/specs/repository#commit-objects
 */
export function decodeCommit(bytes: Uint8Array, account: DID): Commit {
  let value: unknown
  try {
    value = dagCBOR.decode(bytes)
  } catch (cause) {
    throw new InvalidRepoError('the commit is not DAG-CBOR', { cause })
  }
  const { did, version, data, rev, prev, sig } = Object(value) as Record<
    string,
    unknown
  >
  if (did !== account) {
    throw new InvalidRepoError(
      `the host sent a commit of ${typeof did === 'string' ? JSON.stringify(did.slice(0, 100)) : 'nobody'} instead of ${account}`
    )
  }
  if (version !== 3 && version !== 2) {
    throw new InvalidRepoError('the commit has a version other than 3 and 2')
  }
  const root = CID.asCID(data)
  if (!root) throw new InvalidRepoError('the commit has no tree')
  if (typeof rev !== 'string' || !TID.test(rev)) {
    throw new InvalidRepoError('the commit has no revision')
  }
  if (!isBytes(sig)) {
    throw new InvalidRepoError('the commit is not signed')
  }
  return {
    did,
    version,
    data: root,
    rev,
    ...(prev === undefined ? {} : { prev: CID.asCID(prev) }),
    sig,
  }
}

/**
 * Checks whose signature a commit carries.
 *
 * @throws {@link InvalidRepoError} if it is by none of the account's keys
 */
export async function verifyCommit(
  bytes: Uint8Array,
  keys: Pick<Identity, 'signingKey' | 'previousSigningKeys'>
): Promise<CommitSignature> {
  const { sig, ...unsigned } = dagCBOR.decode<{ sig: Uint8Array }>(bytes)
  let message: Uint8Array
  try {
    message = dagCBOR.encode(unsigned)
  } catch (cause) {
    throw new InvalidRepoError('the commit has a field that cannot be signed', {
      cause,
    })
  }
  const signedBy = async (key: DID) => {
    try {
      return await verifySignature(key, message, sig)
    } catch {
      // A key of a kind that repositories are not signed with verifies nothing.
      return false
    }
  }
  if (await signedBy(keys.signingKey)) return 'current'
  for (const key of keys.previousSigningKeys) {
    if (await signedBy(key)) return 'previous'
  }
  throw new InvalidRepoError(
    "the commit is not signed by the account's key; its host may be faulty or dishonest, nothing was backed up"
  )
}
