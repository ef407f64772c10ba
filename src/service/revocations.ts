import { Delegation, error, ok } from '@ucanto/core'
import type {
  Authorization,
  Delegation as DelegationView,
  Failure,
  Result,
  Unit,
} from '@ucanto/interface'
import { provide } from '@ucanto/server'
import { Revoked } from '@ucanto/validator'
import { LRUCache } from 'lru-cache'
import PQueue from 'p-queue'
import type { Logger } from 'pino'
import type { Time } from '../backup/index.ts'
import { Revocation } from '../capabilities/index.ts'
import type { RevocationReader } from '../storacha/index.ts'
import type { RevocationStore } from '../stores/index.ts'
import type { ServiceContext } from './context.ts'
import { InvalidBodyError } from './errors.ts'
import { checkReadable, failure } from './invocation.ts'

/** Delegations of which is remembered that the upload service knows no revocation. */
const MAX_REMEMBERED = 100_000

/** Questions to the upload service at the same time: chains may be long. */
const CONCURRENT_QUESTIONS = 8

/** Milliseconds in which an upload service that failed is not asked again. */
const RECOVERY = 10_000

/** Whether a delegation holds while nobody can tell if it was revoked. */
export type RevocationPolicy = 'open' | 'closed'

export interface RevocationsOptions {
  store: RevocationStore
  /** Revocations at the upload service; they are left out if not given. */
  reader?: RevocationReader
  policy: RevocationPolicy
  /** Milliseconds for which an answer of the upload service holds. */
  maxAge: number
  time: Time
  logger: Logger
}

/** Tells whether what somebody acts upon was taken back. */
export interface Revocations {
  /** Refuses an authorization of which any delegation was revoked. */
  check(authorization: Authorization): Promise<Result<Unit, Failure>>
}

/**
 * Revocations that were told to this service, and those of the upload service.
 * What is revoked once stays revoked, whatever the upload service says later.
 */
export function createRevocations({
  store,
  reader,
  policy,
  maxAge,
  time,
  logger,
}: RevocationsOptions): Revocations {
  const asked = new LRUCache<string, number>({ max: MAX_REMEMBERED })
  const questions = new PQueue({ concurrency: CONCURRENT_QUESTIONS })
  let failedUntil = 0

  const isFresh = (delegation: string) => {
    const at = asked.get(delegation)
    return at !== undefined && time.now() - at < maxAge
  }

  /** @returns whether all are known to be as the upload service says */
  const askAll = async (delegations: string[]): Promise<boolean> => {
    const due = delegations.filter((delegation) => !isFresh(delegation))
    if (!reader || due.length === 0) return true
    if (time.now() < failedUntil) return false
    try {
      await Promise.all(
        due.map((delegation) =>
          questions.add(async () => {
            // One that failed answers for those that wait behind it.
            if (time.now() < failedUntil) throw new Error('it failed just now')
            const found = await reader.read(delegation)
            for (const { revoker, cause } of found) {
              const created = time.now()
              await store.add({ delegation, revoker, cause, created })
            }
            asked.set(delegation, time.now())
          })
        )
      )
      return true
    } catch (cause) {
      failedUntil = time.now() + RECOVERY
      logger.warn({ err: cause, policy }, 'revocations cannot be read')
      return false
    }
  }

  return {
    async check(authorization) {
      const participants = participantsOf(authorization)
      const proofs = [...participants.keys()].slice(1)
      const known = await askAll(proofs)
      for (const { delegation, revoker } of await store.find([
        ...participants.keys(),
      ])) {
        const entry = participants.get(delegation)
        if (entry?.dids.has(revoker)) {
          return error(new Revoked(entry.delegation))
        }
      }
      return known || policy === 'open' ? ok({}) : untold()
    },
  }
}

/** The failure of a proof of which nobody can tell whether it was revoked. */
export function untold() {
  return failure(
    'RevocationsUnavailable',
    'nobody can tell just now whether a proof was revoked; try again later'
  )
}

/** Whether a failure is {@link untold}, and no refusal of the proof. */
export function isUntold(failure: Failure | undefined): failure is Failure {
  return failure?.name === 'RevocationsUnavailable'
}

/**
 * The delegations of an authorization, and for each of them who may revoke it:
 * who issued it, who was given it, and all of those above.
 *
 * @returns by CID; the invocation itself comes first
 */
function participantsOf(
  authorization: Authorization
): Map<string, { delegation: DelegationView; dids: Set<string> }> {
  const found = new Map<
    string,
    { delegation: DelegationView; dids: Set<string> }
  >()
  const visit = ({ delegation, proofs }: Authorization): Set<string> => {
    const key = delegation.cid.toString()
    const entry = found.get(key) ?? { delegation, dids: new Set<string>() }
    found.set(key, entry)
    entry.dids.add(delegation.issuer.did())
    entry.dids.add(delegation.audience.did())
    for (const proof of proofs) {
      for (const did of visit(proof)) entry.dids.add(did)
    }
    return entry.dids
  }
  visit(authorization)
  return found
}

/** Handlers of `ucan/*`. */
export function createRevocationService({
  stores,
  time,
}: Pick<ServiceContext, 'stores' | 'time'>) {
  return {
    /** Keeps a revocation for ever, if who revokes has a part in the chain. */
    revoke: provide(Revocation.revoke, async ({ capability, invocation }) => {
      const { ucan } = capability.nb
      const delegation = Delegation.view(
        { root: ucan as never, blocks: invocation.blocks },
        null
      )
      if (!delegation) {
        return failure(
          'UCANNotFound',
          `the delegation ${ucan.toString()} is not attached; attach it with all of its proofs`
        )
      }
      try {
        checkReadable(delegation)
      } catch (cause) {
        if (!(cause instanceof InvalidBodyError)) throw cause
        return failure('UCANNotFound', cause.message)
      }
      if (!takesPart(delegation, capability.with)) {
        return failure(
          'UnauthorizedRevocation',
          `${capability.with} has no part in the delegation ${ucan.toString()}; only who issued it, was given it, or stands above it in its proofs revokes it`
        )
      }
      const archive = await invocation.archive()
      if (archive.error) throw archive.error
      const now = time.now()
      await stores.revocations.add({
        delegation: ucan.toString(),
        revoker: capability.with,
        cause: archive.ok,
        created: now,
      })
      return ok({ time: now })
    }),
  }
}

function takesPart(delegation: DelegationView, did: string): boolean {
  const names = (each: DelegationView) =>
    each.issuer.did() === did || each.audience.did() === did
  if (names(delegation)) return true
  for (const proof of delegation.iterate()) if (names(proof)) return true
  return false
}
