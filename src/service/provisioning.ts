import { Delegation, invoke, isDelegation, ok } from '@ucanto/core'
import type {
  Delegation as DelegationView,
  Invocation,
  Proof,
  Signer,
} from '@ucanto/interface'
import { CID } from 'multiformats/cid'
import type { Logger } from 'pino'
import type { Time } from '../backup/index.ts'
import { SPACE_INFO } from '../capabilities/index.ts'
import type { UploadServiceConnection } from '../storacha/index.ts'
import type { SpaceStore } from '../stores/index.ts'
import { failure } from './invocation.ts'

/** What comes of a Space that nobody provides storage for. */
export type ProvisioningPolicy = 'require' | 'warn' | 'off'

export interface ProvisioningOptions {
  store: SpaceStore
  /** The service's agent, which asks the upload service. */
  agent: Signer
  connect: () => UploadServiceConnection
  policy: ProvisioningPolicy
  /** Milliseconds for which an answer of the upload service holds. */
  maxAge: number
  time: Time
  logger: Logger
}

/** Tells whether somebody provides storage for a Space. */
export interface Provisioning {
  /**
   * Refuses Spaces that are not provisioned.
   *
   * @param invocation - brings what allows the service to ask about the Space:
   *   a delegation to its agent among the proofs, or named by a fact
   */
  check(
    space: `did:key:${string}`,
    invocation: Invocation
  ): Promise<
    | ReturnType<typeof ok<object>>
    | ReturnType<typeof failure<'SpaceNotProvisioned' | 'ServiceUnavailable'>>
  >
}

/**
 * Keeps clocks for Spaces that an upload service knows. A Space that was
 * provisioned once stays so while the upload service cannot be asked: its
 * being down stops nobody.
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
  const ask = async (space: `did:key:${string}`, proofs: DelegationView[]) => {
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

  const refuse = (space: string, why: string) => {
    if (policy === 'warn') {
      logger.warn({ space, why }, 'the Space is not provisioned')
      return ok({})
    }
    return failure(
      'SpaceNotProvisioned',
      `the clock is kept for Spaces that have a storage provider, and ${why}`
    )
  }

  return {
    async check(space, invocation) {
      if (policy === 'off') return ok({})
      const known = await store.get(space)
      const isFresh = known !== undefined && time.now() - known.checked < maxAge
      if (known?.provisioned && isFresh) return ok({})
      // The service advances a clock when the upload service took the backup.
      if (invocation.issuer.did() === agent.did()) {
        await store.put(space, { provisioned: true, checked: time.now() })
        return ok({})
      }
      const proofs = authorityIn(invocation, agent.did())
      if (proofs.length === 0) {
        return known?.provisioned
          ? ok({})
          : refuse(
              space,
              `this service does not know ${space}: attach a delegation of ${SPACE_INFO} to ${agent.did()}, and name it in a fact "${SPACE_INFO}"`
            )
      }
      let answer: Awaited<ReturnType<typeof ask>>
      try {
        answer = await ask(space, proofs)
      } catch (cause) {
        logger.warn({ err: cause, space }, 'the upload service cannot be asked')
        if (known?.provisioned || policy === 'warn') return ok({})
        return failure(
          'ServiceUnavailable',
          `the upload service cannot be asked about ${space} just now; try again later`
        )
      }
      if (answer.provisioned === undefined) {
        return known?.provisioned
          ? ok({})
          : refuse(
              space,
              `the upload service does not tell about ${space} (${answer.why}): delegate ${SPACE_INFO} to ${agent.did()}`
            )
      }
      await store.put(space, {
        provisioned: answer.provisioned,
        checked: time.now(),
      })
      return answer.provisioned
        ? ok({})
        : refuse(
            space,
            `the upload service has none for ${space} (${answer.why}): provision the Space there first`
          )
    },
  }
}

/** Delegations to the service's agent that came with the invocation. */
function authorityIn(invocation: Invocation, agent: string): DelegationView[] {
  const found = invocation.proofs.filter((proof: Proof) => isDelegation(proof))
  for (const fact of invocation.facts) {
    const link = CID.asCID((fact as Record<string, unknown>)[SPACE_INFO])
    const delegation =
      link &&
      Delegation.view({ root: link as never, blocks: invocation.blocks }, null)
    if (delegation) found.push(delegation)
  }
  return found.filter(({ audience }) => audience.did() === agent)
}
