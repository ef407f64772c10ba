import { error, ok } from '@ucanto/core'
import type { Delegation } from '@ucanto/interface'
import { Verifier } from '@ucanto/principal'
import { DIDResolutionError } from '@ucanto/validator'
import type { ServiceContext } from './context.ts'

/**
 * How proofs are validated: which `did:web`s have which keys.
 *
 * @param proofs - attestations that configured authorities may attest
 */
export function createValidation(
  {
    id,
    agent,
    authorities,
  }: Pick<ServiceContext, 'id' | 'agent' | 'authorities'>,
  proofs: Delegation[] = []
) {
  const keys = new Map<string, `did:key:${string}`>([
    [id.did(), agent.did() as `did:key:${string}`],
    ...authorities.map(({ did, key }) => [did, key] as const),
  ])
  return {
    principal: Verifier,
    proofs,
    resolveDIDKey: (did: string) => {
      const key = keys.get(did)
      return key
        ? ok([key])
        : error(new DIDResolutionError(did as `did:web:${string}`))
    },
    validateAuthorization: () => ok({}),
  }
}
