import type { Client } from '@storacha/client'
import type { Delegation } from '@ucanto/interface'
import { NotAllowedError } from './errors.ts'

export { expirationOf } from '../service/authority.ts'

/**
 * What allows the agent to do these things in a Space. Delegations of the Space
 * itself are taken where there are any: a login by email also tells of all the
 * account's other Spaces, and not every service accepts it.
 *
 * @throws {@link NotAllowedError} if nothing allows one of the abilities
 */
export function proofsFor(
  client: Client,
  space: `did:key:${string}`,
  abilities: readonly string[]
): Delegation[] {
  const proofs = new Map<string, Delegation>()
  for (const can of abilities) {
    const found = client.proofs([
      { can: can as `${string}/${string}`, with: space },
    ])
    if (found.length === 0) {
      throw new NotAllowedError(
        `this agent may not ${can} in the Space ${space}; log in again with \`bluesky-backups login EMAIL\` to renew what it may do, or choose another Space`
      )
    }
    const direct = found.filter(({ capabilities }) =>
      capabilities.some((capability) => capability.with === space)
    )
    for (const proof of direct.length > 0 ? direct : found) {
      proofs.set(proof.cid.toString(), proof)
    }
  }
  return [...proofs.values()]
}
