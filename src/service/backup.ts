import { Delegation, invoke, isDelegation, ok } from '@ucanto/core'
import type {
  Delegation as DelegationView,
  Invocation,
  InvocationContext,
  Link,
  Signer,
} from '@ucanto/interface'
import { ok as answer, provide, provideAdvanced } from '@ucanto/server'
import {
  access,
  capability as defineCapability,
  Schema,
} from '@ucanto/validator'
import { CID } from 'multiformats/cid'
import { Backup, BACKUP_ABILITIES } from '../capabilities/index.ts'
import { SpaceDID } from '../capabilities/common.ts'
import type { Run } from '../stores/index.ts'
import { encodeDelegations } from './authority.ts'
import type { ServiceContext } from './context.ts'
import { InvalidBodyError } from './errors.ts'
import { attachedBlocks, checkReadable, failure, messageOf } from './invocation.ts'

/** Runs that `backup/status` lists for a Space. */
const LISTED_RUNS = 20

const ANYTHING = Schema.dictionary({ value: Schema.unknown() })

/** Handlers of `backup/*`. */
export function createBackupService(context: ServiceContext) {
  const { stores, runner, time, agent } = context
  return {
    /**
     * Queues a run. Asked twice with the same invocation, or while a run of
     * the same account into the same Space goes on, answers the run there is.
     */
    run: provideAdvanced({
      capability: Backup.run,
      handler: async ({ capability, invocation, context: validation }) => {
        const space = capability.with
        const { account, include, delegation } = capability.nb
        const given = delegation
          ? delegationIn(invocation, delegation)
          : ok(invocation.proofs.filter((proof) => isDelegation(proof)))
        if (given.error) return given
        const authority = await findAuthority(
          agent,
          space,
          given.ok,
          validation
        )
        if (authority.error) return authority

        const task = await Backup.perform.delegate({
          issuer: agent,
          audience: agent,
          with: agent.did(),
          nb: { space, account, cause: invocation.cid },
          expiration: Infinity,
        })
        const { run } = await stores.runs.create({
          id: task.cid.toString(),
          space,
          account,
          agent: invocation.issuer.did(),
          include: include ?? [...Backup.PARTS],
          authority: encodeDelegations([task, ...authority.ok]),
          created: time.now(),
        })
        runner.kick()
        const success = answer({ run: CID.parse(run.id) as Link })
        return run.id === task.cid.toString() ? success.fork(task) : success
      },
    }),

    status: provide(Backup.status, async ({ capability }) => {
      const space = capability.with
      const { run: link } = capability.nb
      if (!link) {
        const runs = await stores.runs.list(space, { limit: LISTED_RUNS })
        return ok({ runs: runs.map(statusOf) })
      }
      const run = await stores.runs.get(link.toString())
      if (run?.space !== space) {
        return failure(
          'RunNotFound',
          `there is no run ${link.toString()} in the Space ${space}`
        )
      }
      return ok({ runs: [statusOf(run)] })
    }),
  }
}

function delegationIn(invocation: Invocation, link: Link) {
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
  return ok([delegation])
}

/**
 * Finds what allows the service's agent to do in the Space what a run needs.
 *
 * @param validation - how the invocation itself was validated
 */
async function findAuthority(
  agent: Signer,
  space: `did:key:${string}`,
  delegations: DelegationView[],
  validation: InvocationContext
) {
  const proofs = delegations.filter(
    ({ audience }) => audience.did() === agent.did()
  )
  if (proofs.length === 0) {
    return failure(
      'InsufficientDelegation',
      `nothing is delegated to the service's agent ${agent.did()}; delegate ${BACKUP_ABILITIES.join(', ')} to it`
    )
  }
  const lacking: string[] = []
  let reason = ''
  for (const can of BACKUP_ABILITIES) {
    const trial = await invoke({
      issuer: agent,
      audience: agent,
      capability: { can, with: space },
      proofs,
    }).delegate()
    const allowed = await access(trial, {
      ...validation,
      authority: validation.id,
      // A delegation for one event or one blob does not do.
      capability: defineCapability({ can, with: SpaceDID, nb: ANYTHING }),
    })
    if (allowed.error) {
      lacking.push(can)
      reason ||= messageOf(allowed.error)
    }
  }
  return lacking.length === 0
    ? ok(proofs)
    : failure(
        'InsufficientDelegation',
        `the delegation does not allow ${lacking.join(', ')} in ${space}; delegate again with them (${reason.slice(0, 1000)})`
      )
}

function statusOf(run: Run): Backup.RunStatus {
  return {
    run: CID.parse(run.id),
    account: run.account,
    state: run.state,
    created: run.created,
    ...(run.started === undefined ? {} : { started: run.started }),
    ...(run.finished === undefined ? {} : { finished: run.finished }),
    attempts: run.attempts,
    ...(run.progress === undefined
      ? {}
      : { progress: run.progress as Backup.RunProgress }),
    ...(run.outcome === undefined
      ? {}
      : { outcome: run.outcome as Backup.RunOutcome }),
    ...(run.error ? { error: run.error } : {}),
  }
}
