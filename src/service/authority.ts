import { CAR, Delegation, isDelegation } from '@ucanto/core'
import type {
  Block,
  Delegation as DelegationView,
  Link,
} from '@ucanto/interface'

/** CAR of delegations with all their proofs; its roots are the delegations. */
export function encodeDelegations(delegations: DelegationView[]): Uint8Array {
  const blocks = new Map<string, Block>()
  const roots: Block[] = []
  for (const delegation of delegations) {
    roots.push(delegation.root)
    for (const block of delegation.export())
      blocks.set(block.cid.toString(), block)
  }
  for (const { cid } of roots) blocks.delete(cid.toString())
  return CAR.encode({ roots, blocks })
}

/** What `encodeDelegations` encoded. */
export function decodeDelegations(bytes: Uint8Array): DelegationView[] {
  const { roots, blocks } = CAR.decode(bytes)
  const all = new Map<string, Block>(blocks)
  for (const root of roots) all.set(root.cid.toString(), root)
  return roots.map(({ cid }) =>
    Delegation.view({ root: cid as Link<never>, blocks: all })
  )
}

/**
 * The earliest expiry in a delegation's proof chain.
 *
 * @returns Unix seconds, or `Infinity`
 */
export function expirationOf(delegation: DelegationView): number {
  return Math.min(
    delegation.expiration,
    ...delegation.proofs
      .filter((proof) => isDelegation(proof))
      .map(expirationOf)
  )
}
