import { identity } from 'multiformats/hashes/identity'
import * as Link from 'multiformats/link'
import type { Link as AnyLink, UnknownLink } from './interface.ts'

/** Code of the `raw` codec. */
const RAW_CODE = 0x55

/**
 * Stands where a backup was removed, for ever: the CID of no bytes, inline
 * (`bafkqaaa`). There is no block to store.
 */
export const TOMBSTONE: AnyLink = Link.create(
  RAW_CODE,
  identity.digest(new Uint8Array())
)

/** Whether a link says that the backup was removed. */
export function isTombstone(link: UnknownLink): boolean {
  return TOMBSTONE.equals(link)
}
