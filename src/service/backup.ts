import {
  Delegation,
  Invocation as Invocations,
  isDelegation,
  ok,
} from '@ucanto/core'
import type {
  Delegation as DelegationView,
  Invocation,
  Link,
} from '@ucanto/interface'
import { ok as answer, provide, provideAdvanced } from '@ucanto/server'
import { access, capability as defineCapability } from '@ucanto/validator'
import { CID } from 'multiformats/cid'
import { Backup, BACKUP_ABILITIES } from '../capabilities/index.ts'
import { SpaceDID } from '../capabilities/common.ts'
import type { Run } from '../stores/index.ts'
import { encodeDelegations } from './authority.ts'
import type { ServiceContext } from './context.ts'
import { attachedBlocks, failure } from './invocation.ts'
import { createValidation } from './validation.ts'

/** Runs that `backup/status` lists for a Space. */
const LISTED_RUNS = 20

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
      handler: async ({ capability, invocation }) => {
        const space = capability.with
        const { account, include, delegation } = capability.nb
        const given = delegation
          ? delegationIn(invocation, delegation)
          : ok(invocation.proofs.filter((proof) => isDelegation(proof)))
        if (given.error) return given
        const sufficient = await checkAuthority(context, space, given.ok)
        if (sufficient.error) return sufficient

        const task = await Backup.perform.delegate({
          issuer: agent,
          audience: agent,
          with: agent.did(),
          nb: { space, account, cause: invocation.cid },
          expiration: Infinity,
        })
        const { run, created } = await stores.runs.create({
          id: task.cid.toString(),
          space,
          account,
          agent: invocation.issuer.did(),
          include: include ?? [...Backup.PARTS],
          authority: encodeDelegations([task, ...given.ok]),
          created: time.now(),
        })
        runner.kick()
        const success = answer({ run: CID.parse(run.id) as Link })
        return created || run.id === task.cid.toString()
          ? success.fork(task)
          : success
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
          `there is no run ${link} in the Space ${space}`
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
  return delegation
    ? ok([delegation])
    : failure(
        'InsufficientDelegation',
        `the delegation ${link} is not attached; attach its blocks to the invocation`
      )
}

/** Whether the service's agent may do in the Space what a run needs. */
async function checkAuthority(
  context: ServiceContext,
  space: `did:key:${string}`,
  delegations: DelegationView[]
) {
  const { agent } = context
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
    const trial = await Invocations.invoke({
      issuer: agent,
      audience: agent,
      capability: { can, with: space, nb: {} },
      proofs,
    }).delegate()
    const allowed = await access(trial as never, {
      ...createValidation(context),
      authority: agent,
      capability: defineCapability({ can, with: SpaceDID }),
    })
    if (allowed.error) {
      lacking.push(can)
      reason ||= allowed.error.message
    }
  }
  return lacking.length === 0
    ? ok({})
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
