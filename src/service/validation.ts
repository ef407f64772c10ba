import { error, ok } from '@ucanto/core'
import type { Authorization, Delegation, Failure } from '@ucanto/interface'
import { DIDResolutionError } from '@ucanto/validator'
import { parseVerifier } from '../node/index.ts'
import type { ServiceContext } from './context.ts'
import { TooManySignaturesError } from './errors.ts'
import { isUntold } from './revocations.ts'

/** Signatures that are checked for one request. */
const MAX_SIGNATURES = 500

/**
 * How the proofs of one request are validated: which `did:web`s have which
 * keys, who attests for `did:mailto` accounts, and what was revoked.
 *
 * @param proofs - what allows the configured authorities to attest
 * @returns how one invocation of the request is validated; `onUntold` is called
 *   when a proof does not hold because nobody can tell whether it was revoked,
 *   which Ucanto makes an `Unauthorized` of like any other
 */
export function createValidation(
  {
    id,
    agent,
    authorities,
    revocations,
    rates,
  }: Pick<
    ServiceContext,
    'id' | 'agent' | 'authorities' | 'revocations' | 'rates'
  >,
  proofs: Delegation[]
) {
  const keys = new Map<string, `did:key:${string}`>([
    [id.did(), agent.did() as `did:key:${string}`],
    ...authorities.map(({ did, key }) => [did, key] as const),
  ])
  let signatures = 0
  return ({ onUntold }: { onUntold: (failure: Failure) => void }) => ({
    principal: {
      // Called once for each signature.
      parse(did: `did:${string}:${string}`) {
        if (++signatures > MAX_SIGNATURES) {
          throw new TooManySignaturesError(
            `the proofs take more than ${MAX_SIGNATURES} signatures to check; leave out those that are not needed`
          )
        }
        return parseVerifier(did)
      },
    },
    proofs,
    resolveDIDKey: (did: string) => {
      const key = keys.get(did)
      return key
        ? ok([key])
        : error(new DIDResolutionError(did as `did:web:${string}`))
    },
    async validateAuthorization(authorization: Authorization) {
      await rates.count(authorization)
      const verdict = await revocations.check(authorization)
      if (isUntold(verdict.error)) onUntold(verdict.error)
      return verdict
    },
  })
}
