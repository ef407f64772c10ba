import type { Client } from '@storacha/client'
import type { Delegation } from '@ucanto/interface'
import { SPACE_INFO } from '../capabilities/index.ts'
import { NotAllowedError } from './errors.ts'
import type { Session } from './session.ts'

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

/**
 * The agent, the Space and what allows the agent to invoke these abilities at
 * the service. It also allows the service to ask whether the Space has a
 * storage provider: what an agent that may not ask invokes is answered where
 * the service knows the Space already.
 *
 * @throws {@link NotAllowedError} if nothing allows one of the abilities
 */
export async function serviceAuthority(
  session: Session,
  abilities: readonly string[]
) {
  const { client } = session
  const space = session.space()
  const mayAsk = client.proofs([{ can: SPACE_INFO, with: space }]).length > 0
  return {
    issuer: client.agent.issuer,
    with: space,
    proofs: proofsFor(
      client,
      space,
      mayAsk ? [...abilities, SPACE_INFO] : abilities
    ),
    ...(mayAsk ? { agent: (await session.service()).info.agent } : {}),
  }
}
