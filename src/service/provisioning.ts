import { Delegation, invoke, isDelegation, ok } from '@ucanto/core'
import type {
  Delegation as DelegationView,
  Invocation,
  Proof,
  Signer,
} from '@ucanto/interface'
import { LRUCache } from 'lru-cache'
import { CID } from 'multiformats/cid'
import type { Logger } from 'pino'
import type { Time } from '../backup/index.ts'
import { Clock, SPACE_INFO } from '../capabilities/index.ts'
import type { UploadServiceConnection } from '../storacha/index.ts'
import type { SpaceStore } from '../stores/index.ts'
import { RateLimitedError } from './errors.ts'
import { createFairQueue, QueueFullError } from './fair-queue.ts'
import { failure } from './invocation.ts'

/** What the service does for a Space without a storage provider. */
export type ProvisioningPolicy = 'require' | 'warn' | 'off'

/**
 * Milliseconds for which the upload service is not asked again after an answer
 * other than yes. So short that a user who provisions the Space hardly waits.
 */
export const REFUSAL_AGE = 15_000

/** Refusals that are remembered. */
const MAX_REFUSALS = 10_000

/**
 * Questions to the upload service: a caller can make up any number of Spaces
 * and agents, so that not even all callers together may cause more than
 * `concurrency` for each `gap` milliseconds.
 */
export const QUESTIONS = {
  concurrency: 8,
  /** Questions of one agent that may wait. */
  perKey: 4,
  /** Questions of all agents that may wait. */
  waiting: 1_000,
  gap: 100,
}

/** Seconds after which a caller may ask again whose question cannot wait. */
const BUSY_RETRY = 5

/** Abilities that allow asking about a Space. */
const COVER_INFO = [SPACE_INFO, 'space/*', '*']

export interface ProvisioningOptions {
  store: SpaceStore
  /** The service's agent, which asks the upload service. */
  agent: Signer
  connect: () => UploadServiceConnection
  policy: ProvisioningPolicy
  /** Milliseconds for which a yes of the upload service holds. */
  maxAge: number
  time: Time
  logger: Logger
}

/** Tells whether a Space has a storage provider. */
export interface Provisioning {
  /**
   * Refuses Spaces that are not provisioned. Every capability that makes the
   * service store, compute, hold or ask something for a Space checks it first.
   *
   * @param invocation - brings what allows the service to ask about the Space:
   *   a delegation to its agent among the proofs, or named by a fact
   * @throws {@link RateLimitedError} when too many questions wait already
   */
  check(
    space: `did:key:${string}`,
    invocation: Invocation
  ): Promise<
    | ReturnType<typeof ok<object>>
    | ReturnType<typeof failure<'SpaceNotProvisioned' | 'ServiceUnavailable'>>
  >
}

/** What the upload service says of a Space. */
type Verdict =
  | { provisioned: true }
  /** `undefined`: it does not say, because the caller may not ask. */
  | { provisioned: false | undefined; why: string }

/**
 * Serves Spaces that an upload service knows. A Space that was provisioned once
 * stays so while the upload service cannot be asked: its outage stops no user.
 *
 * Only a yes is stored, and a no that replaces one: Spaces and agents that a
 * caller makes up leave nothing in the database.
 */
export function createProvisioning({
  store,
  agent,
  connect,
  policy,
  maxAge,
  time,
  logger,
}: ProvisioningOptions): Provisioning {
  const questions = createFairQueue({ ...QUESTIONS, time })
  /** Questions under way, by Space and agent. */
  const pending = new Map<string, Promise<Verdict>>()
  /**
   * Answers other than yes, with the Unix milliseconds until which they hold:
   * a no by its Space, and by Space and agent that the agent may not ask.
   */
  const refusals = new LRUCache<string, { until: number; verdict: Verdict }>({
    max: MAX_REFUSALS,
  })

  const invokeInfo = async (
    space: `did:key:${string}`,
    proofs: DelegationView[]
  ): Promise<Verdict> => {
    const { connection, audience } = connect()
    const receipt = await invoke({
      issuer: agent,
      audience,
      capability: { can: SPACE_INFO, with: space },
      proofs,
      // An answer is cached by its invocation.
      nonce: crypto.randomUUID(),
    }).execute(connection)
    const { ok: known, error } = receipt.out as {
      ok?: { providers?: unknown }
      error?: { name?: unknown; message?: unknown }
    }
    if (known) {
      return Array.isArray(known.providers) && known.providers.length > 0
        ? { provisioned: true }
        : { provisioned: false, why: 'it has no provider' }
    }
    const why = [error?.name, error?.message]
      .map((text) =>
        typeof text === 'string' ? text.slice(0, 300) : 'unnamed'
      )
      .join(': ')
    return error?.name === 'SpaceUnknown'
      ? { provisioned: false, why }
      : { provisioned: undefined, why }
  }

  /** Asks the upload service, unless it has answered just now. */
  const ask = async (
    space: `did:key:${string}`,
    issuer: string,
    proofs: DelegationView[]
  ): Promise<Verdict> => {
    const key = `${space} ${issuer}`
    const refused = [refusals.get(space), refusals.get(key)].find(
      (each) => each && each.until > time.now()
    )
    if (refused) return refused.verdict
    const present = pending.get(key)
    if (present) return present
    const question = questions.run(issuer, () => invokeInfo(space, proofs))
    pending.set(key, question)
    try {
      const verdict = await question
      if (!verdict.provisioned) {
        const until = time.now() + REFUSAL_AGE
        refusals.set(verdict.provisioned === false ? space : key, {
          until,
          verdict,
        })
      }
      return verdict
    } catch (error) {
      if (!(error instanceof QueueFullError)) throw error
      throw new RateLimitedError(
        `too many Spaces wait for an answer of the upload service; try again in ${BUSY_RETRY} seconds`,
        BUSY_RETRY
      )
    } finally {
      pending.delete(key)
    }
  }

  const refuse = (space: string, why: string) => {
    if (policy === 'warn') {
      logger.warn({ space, why }, 'the Space is not provisioned')
      return ok({})
    }
    return failure(
      'SpaceNotProvisioned',
      `this service works for Spaces that have a storage provider, and ${why}`
    )
  }

  return {
    async check(space, invocation) {
      if (policy === 'off') return ok({})
      const known = await store.get(space)
      const isFresh = known !== undefined && time.now() - known.checked < maxAge
      if (known?.provisioned && isFresh) return ok({})
      const issuer = invocation.issuer.did()
      const isOwn = issuer === agent.did()
      // The service advances a clock when the upload service took the backup.
      // No other invocation of its own says anything about the Space.
      if (isOwn && invocation.capabilities[0].can === Clock.advance.can) {
        await store.put(space, { provisioned: true, checked: time.now() })
        return ok({})
      }
      // The Space of a scheduled run was checked when it was scheduled. An old
      // no may have become a yes: then the run itself finds out.
      const passes = known?.provisioned || (isOwn && !isFresh)
      const proofs = authorityIn(invocation, agent.did())
      if (proofs.length === 0) {
        if (passes) return ok({})
        return refuse(
          space,
          isOwn
            ? `the upload service has none any more for ${space}: provision the Space there again`
            : `this service does not know ${space}: attach a delegation of ${SPACE_INFO} to ${agent.did()}, and name it in a fact "${SPACE_INFO}"`
        )
      }
      let verdict: Verdict
      try {
        verdict = await ask(space, issuer, proofs)
      } catch (cause) {
        if (passes) return ok({})
        if (cause instanceof RateLimitedError) throw cause
        logger.warn({ err: cause, space }, 'the upload service cannot be asked')
        if (policy === 'warn') return ok({})
        return failure(
          'ServiceUnavailable',
          `the upload service cannot be asked about ${space} just now; try again later`
        )
      }
      if (verdict.provisioned === undefined) {
        return passes
          ? ok({})
          : refuse(
              space,
              `the upload service does not tell about ${space} (${verdict.why}): delegate ${SPACE_INFO} to ${agent.did()}`
            )
      }
      const { provisioned } = verdict
      if (provisioned || known) {
        await store.put(space, { provisioned, checked: time.now() })
      }
      return provisioned
        ? ok({})
        : refuse(
            space,
            `the upload service has none for ${space} (${verdict.why}): provision the Space there first, and try again in ${REFUSAL_AGE / 1000} seconds`
          )
    },
  }
}

/** Delegations of the ability to ask, to the service's agent. */
function authorityIn(invocation: Invocation, agent: string): DelegationView[] {
  const found = invocation.proofs.filter((proof: Proof) => isDelegation(proof))
  for (const fact of invocation.facts) {
    const link = CID.asCID((fact as Record<string, unknown>)[SPACE_INFO])
    const delegation =
      link &&
      Delegation.view({ root: link as never, blocks: invocation.blocks }, null)
    if (delegation) found.push(delegation)
  }
  return found.filter(
    ({ audience, capabilities }) =>
      audience.did() === agent &&
      capabilities.some(({ can }) => COVER_INFO.includes(can))
  )
}
