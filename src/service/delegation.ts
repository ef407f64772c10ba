import { Delegation, invoke, isDelegation, ok } from '@ucanto/core'
import type {
  Ability,
  Authorization,
  Delegation as DelegationView,
  Failure,
  Invocation,
  InvocationContext,
  Link,
  Signer,
} from '@ucanto/interface'
import {
  access,
  capability as defineCapability,
  Schema,
} from '@ucanto/validator'
import { Backup, BACKUP_ABILITIES } from '../capabilities/index.ts'
import { SpaceDID } from '../capabilities/common.ts'
import { encodeDelegations, expirationOf } from './authority.ts'
import { InvalidBodyError } from './errors.ts'
import {
  attachedBlocks,
  checkReadable,
  failure,
  messageOf,
} from './invocation.ts'
import { isUntold, untold } from './revocations.ts'

const ANYTHING = Schema.dictionary({ value: Schema.unknown() })

/** Abilities that `backup/run` follows from. */
const COVER_RUN = ['backup/run', 'backup/*', '*']

/** Characters of the validator's explanation that are told. */
const MAX_REASON_LENGTH = 1000

/** Bytes of what an agent gives, with all its proofs, that are kept. */
const MAX_DELEGATION_SIZE = 256 * 1024

/** The last time that there is a date for, in Unix milliseconds. */
const MAX_TIME = 8.64e15

/** The delegation that an invocation names, whose blocks are attached to it. */
export function attachedDelegation(invocation: Invocation, link: Link) {
  const delegation = Delegation.view(
    { root: link as Link<never>, blocks: attachedBlocks(invocation) },
    null
  )
  if (!delegation) {
    return failure(
      'InsufficientDelegation',
      `the delegation ${link.toString()} is not attached; attach its blocks to the invocation`
    )
  }
  try {
    checkReadable(delegation)
  } catch (error) {
    if (!(error instanceof InvalidBodyError)) throw error
    return failure('InsufficientDelegation', error.message)
  }
  return ok(delegation)
}

/**
 * Refuses what is too large to be kept until it is redeemed.
 *
 * @param given - delegations of an agent
 * @returns CAR of them with all their proofs
 */
export function encodeGiven(given: DelegationView[]) {
  const bytes = encodeDelegations(given)
  return bytes.length <= MAX_DELEGATION_SIZE
    ? ok(bytes)
    : failure(
        'InsufficientDelegation',
        `the delegation has ${bytes.length} bytes with its proofs, and at most ${MAX_DELEGATION_SIZE} are kept; leave out proofs that it does not need`
      )
}

/**
 * Finds what allows the service's agent to do in the Space what a run needs:
 * the delegation that an invocation names, or else its proofs.
 *
 * @param delegation - whose blocks are attached to the invocation
 * @param validation - how the invocation itself was validated
 */
export async function findAuthority(
  agent: Signer,
  invocation: Invocation,
  {
    space,
    delegation,
    validation,
  }: {
    space: `did:key:${string}`
    delegation: Link | undefined
    validation: InvocationContext
  }
) {
  const attached = delegation && attachedDelegation(invocation, delegation)
  if (attached?.error) return attached
  const delegations = attached
    ? [attached.ok]
    : invocation.proofs.filter((proof) => isDelegation(proof))
  const proofs = delegations.filter(
    ({ audience }) => audience.did() === agent.did()
  )
  if (proofs.length === 0) {
    return failure(
      'InsufficientDelegation',
      `nothing is delegated to the service's agent ${agent.did()}; delegate ${BACKUP_ABILITIES.join(', ')} to it`
    )
  }
  const trials = { agent, space, proofs, validation }
  const { lacking, reason, pending } = await findLacking(trials)
  if (lacking.length > 0) return insufficient(space, lacking, reason)
  return pending ?? ok(proofs)
}

/** What a schedule asks of the delegation that its runs are made by. */
export interface ScheduledRuns {
  agent: Signer
  space: `did:key:${string}`
  account: `did:${string}:${string}`
  include?: Backup.Part[] | undefined
  /** Unix milliseconds at which the delegation is looked at. */
  now: number
  /** Unix milliseconds of the first run; unknown while it is paused. */
  first?: number | undefined
}

/**
 * Refuses a delegation by which the service's agent could not make the runs of
 * a schedule by itself: it is tried as they are going to use it.
 *
 * @param validation - how the invocation itself was validated
 */
export async function checkScheduled(
  delegation: DelegationView,
  { agent, space, account, include, now, first }: ScheduledRuns,
  validation: InvocationContext
) {
  const cid = delegation.cid.toString()
  const audience = delegation.audience.did()
  if (audience !== agent.did()) {
    return failure(
      'DelegationAudienceMismatch',
      `the delegation ${cid} is for ${audience}; delegate to the service's agent ${agent.did()}`
    )
  }
  const resources = delegation.capabilities.map((each) => String(each.with))
  if (!resources.some((each) => each === space || each === 'ucan:*')) {
    return failure(
      'DelegationSpaceMismatch',
      `the delegation ${cid} is for ${resources[0]}; delegate what is in the Space ${space}`
    )
  }
  const expiration = expirationOf(delegation) * 1000
  if (expiration <= now) {
    return failure(
      'DelegationExpired',
      `the delegation ${cid}, or a proof of it, has expired on ${describeTime(expiration)}; delegate again`
    )
  }

  const trials = { agent, space, proofs: [delegation], validation }
  const run = { account, ...(include ? { include } : {}) }
  const { lacking, reason, revoked, pending } = await findLacking(trials, run)
  if (revoked) {
    return failure(
      'DelegationRevoked',
      `the delegation ${cid}, or a proof of it, was revoked; delegate again (${messageOf(revoked)})`
    )
  }
  if (lacking.includes('backup/run')) {
    const other = otherAccountIn(delegation, account)
    if (other !== undefined) {
      return failure(
        'DelegationAccountMismatch',
        `the delegation ${cid} allows backup/run for ${other}, not for ${account}; delegate it for this account`
      )
    }
  }
  if (lacking.length > 0) return insufficient(space, lacking, reason)
  if (pending) return pending
  if (first !== undefined && expiration <= first) {
    return failure(
      'DelegationEndsTooSoon',
      `the delegation ${cid}, or a proof of it, ends on ${describeTime(expiration)}, before the first run on ${describeTime(first)}; delegate for longer`
    )
  }
  return ok({
    // Beyond all dates there is no end.
    expiration: expiration > MAX_TIME ? undefined : expiration,
  })
}

/**
 * Tries what a run needs in the Space.
 *
 * @param run - also try `backup/run` with this
 * @returns what is not allowed, and whether there is more of which nobody can
 *   tell just now
 */
async function findLacking(
  {
    agent,
    space,
    proofs,
    validation,
  }: {
    agent: Signer
    space: `did:key:${string}`
    proofs: DelegationView[]
    validation: InvocationContext
  },
  run?: Record<string, unknown>
) {
  const lacking: Ability[] = []
  let reason = ''
  let revoked: Failure | undefined
  let pending: ReturnType<typeof untold> | undefined
  const attempt = async (
    can: Ability,
    nb: Record<string, unknown> | undefined,
    capability: unknown
  ) => {
    const trial = await invoke({
      issuer: agent,
      audience: agent,
      capability: { can, with: space, ...(nb ? { nb } : {}) },
      proofs,
    }).delegate()
    let told = true
    const allowed = await access(
      trial as never,
      {
        ...validation,
        authority: validation.id,
        capability,
        async validateAuthorization(authorization: Authorization) {
          const verdict = await validation.validateAuthorization(authorization)
          if (verdict.error?.name === 'Revoked') revoked = verdict.error
          if (isUntold(verdict.error)) told = false
          return verdict
        },
      } as never
    )
    if (!allowed.error) return
    if (!told) {
      pending = untold()
      return
    }
    lacking.push(can)
    reason ||= messageOf(allowed.error)
  }
  if (run) await attempt('backup/run', run, Backup.run)
  for (const can of BACKUP_ABILITIES) {
    // A delegation for one event or one blob does not do.
    const capability = defineCapability({ can, with: SpaceDID, nb: ANYTHING })
    await attempt(can, undefined, capability)
  }
  return { lacking, reason, revoked, pending }
}

function insufficient(space: string, lacking: string[], reason: string) {
  return failure(
    'InsufficientDelegation',
    `the delegation does not allow ${lacking.join(', ')} in ${space}; delegate again with them (${reason.slice(0, MAX_REASON_LENGTH)})`
  )
}

/** An account that a delegation or a proof of it limits runs to. */
function otherAccountIn(
  delegation: DelegationView,
  account: string
): string | undefined {
  for (const { capabilities } of [delegation, ...delegation.iterate()]) {
    for (const { can, nb } of capabilities) {
      if (!COVER_RUN.includes(can)) continue
      const { account: named } = Object(nb) as { account?: unknown }
      if (typeof named === 'string' && named !== account) return named
    }
  }
  return undefined
}

/** @param time - Unix milliseconds, within what there are dates for */
function describeTime(time: number): string {
  return new Date(time).toISOString()
}
