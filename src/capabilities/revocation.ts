/**
 * Taking delegations back. The capability is the same on the wire as that of
 * Storacha.
 *
 * @packageDocumentation
 */
import type { Failure, Link, ServiceMethod } from '@ucanto/interface'
import { capability, fail, Schema } from '@ucanto/validator'
import { and, equalLink, equalWith } from './common.ts'
import type { TryLater } from './common.ts'

/** Delegations that lead up to the one that revokes. */
const MAX_PROOFS = 32

/**
 * Revokes a delegation. `with` is who revokes it: somebody who issued it, was
 * given it, or stands above it in its chain of proofs.
 */
export const revoke = capability({
  can: 'ucan/revoke',
  with: Schema.did(),
  nb: Schema.struct({
    /** CID of the delegation. Its blocks and those of its proofs are attached. */
    ucan: Schema.link({ version: 1 }),
    /** CIDs of delegations that lead up to the one of who revokes. */
    proof: Schema.link({ version: 1 })
      .array()
      .refine({
        read: (proofs: Link[]) =>
          proofs.length <= MAX_PROOFS
            ? { ok: proofs }
            : fail(`a revocation names at most ${MAX_PROOFS} proofs`),
      })
      .optional(),
  }),
  derives: (claimed, delegated) =>
    and(
      equalWith(claimed, delegated),
      equalLink(claimed.nb.ucan, delegated.nb.ucan, 'ucan')
    ),
})

export interface RevokeSuccess {
  /** Unix milliseconds from which on the delegation is revoked here. */
  time: number
}

/** The delegation was not attached, or cannot be read. */
export interface UCANNotFound extends Failure {
  name: 'UCANNotFound'
}

/** Who revokes has no part in the delegation or its chain of proofs. */
export interface UnauthorizedRevocation extends Failure {
  name: 'UnauthorizedRevocation'
}

export type RevokeFailure = UCANNotFound | UnauthorizedRevocation | TryLater

export interface RevocationService {
  revoke: ServiceMethod<Revoke, RevokeSuccess, RevokeFailure>
}

export type Revoke = ReturnType<typeof revoke.create>
