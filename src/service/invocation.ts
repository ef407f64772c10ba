import type { Block, Delegation, Invocation } from '@ucanto/interface'
import { Verifier } from '@ucanto/principal'
import { CID } from 'multiformats/cid'
import { InvalidBodyError } from './errors.ts'

/**
 * Proofs that a UCAN may have, each counted as often as others refer to it:
 * that is how often Ucanto looks at it. Sixty that refer to one another in
 * pairs would keep it busy for ever.
 */
export const MAX_PROOFS = 256

/** A failure with a literal name, as handlers answer it. */
export function failure<Name extends string>(
  name: Name,
  message: string
): { ok?: undefined; error: { name: Name; message: string } } {
  return { error: { name, message } }
}

/**
 * The message of a failure of Ucanto, which describes what was claimed, and
 * cannot where that is no JSON.
 */
export function messageOf(error: { name: string; message: string }): string {
  try {
    return error.message
  } catch {
    return 'what the proofs are about has values that cannot be described, such as an integer of 64 bits'
  }
}

/** Blocks that came with an invocation. Their hashes were checked before. */
export function attachedBlocks(invocation: Invocation): Map<string, Block> {
  const blocks = new Map<string, Block>()
  for (const block of invocation.iterateIPLDBlocks()) {
    blocks.set(block.cid.toString(), block)
  }
  return blocks
}

/**
 * Reads all of a UCAN and its proofs that is read later, so that what is wrong
 * with it shows here. Whether it is valid is not looked at.
 *
 * @throws {@link InvalidBodyError}
 */
export function checkReadable(delegation: Delegation): void {
  try {
    let count = 0
    checkParts(delegation)
    for (const proof of delegation.iterate()) {
      if (++count > MAX_PROOFS) {
        throw new InvalidBodyError(
          `a UCAN has more than ${MAX_PROOFS} proofs; leave out those that it does not need`
        )
      }
      checkParts(proof)
    }
    Array.from(delegation.iterateIPLDBlocks())
  } catch (cause) {
    if (cause instanceof InvalidBodyError) throw cause
    throw new InvalidBodyError(
      `the UCAN ${delegation.cid.toString()} or a proof of it cannot be read`,
      { cause }
    )
  }
}

function checkParts({ issuer, audience, capabilities }: Delegation): void {
  const did = issuer.did()
  if (did.startsWith('did:key:')) Verifier.parse(did)
  audience.did()
  if (capabilities.length === 0) throw new TypeError('it has no capability')
  for (const { nb } of capabilities) checkDescribable(nb)
}

/**
 * Ucanto puts what it refuses into its messages as text, and a map that hides
 * how it becomes text, by a key of that name, would throw there.
 */
function checkDescribable(value: unknown): void {
  if (typeof value !== 'object' || value === null) return
  if (value instanceof Uint8Array || CID.asCID(value)) return
  if (Object.hasOwn(value, 'toString')) {
    throw new InvalidBodyError(
      'what a UCAN asks for has a map with the key toString, which no map may have'
    )
  }
  for (const part of Object.values(value)) checkDescribable(part)
}
