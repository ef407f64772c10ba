/**
 * Taking delegations back at a service.
 *
 * @packageDocumentation
 */
import type { Delegation, Proof, Signer } from '@ucanto/interface'
import { Revocation } from '../capabilities/index.ts'
import type { InvocationOptions } from './connection.ts'

/**
 * Revokes a delegation: from then on the service refuses what is done by it.
 *
 * @param config.issuer - who issued the delegation, was given it, or stands
 *   above it in its proofs
 * @param config.with - DID in whose name it is revoked; that of the issuer, if
 *   left out
 */
export async function revoke(
  {
    issuer,
    with: resource = issuer.did(),
    proofs = [],
  }: {
    issuer: Signer
    with?: `did:${string}:${string}`
    proofs?: Proof[]
  },
  delegation: Delegation,
  { connection, expiration, nonce }: InvocationOptions
) {
  const receipt = await Revocation.revoke
    .invoke({
      issuer,
      audience: connection.id,
      with: resource,
      nb: { ucan: delegation.cid },
      // As proofs the delegation's blocks come along.
      proofs: [...proofs, delegation],
      ...(expiration === undefined ? {} : { expiration }),
      ...(nonce === undefined ? {} : { nonce }),
    })
    .execute(connection)
  return receipt.out
}
