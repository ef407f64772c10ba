import { ok } from '@ucanto/core'
import type { Link } from '@ucanto/interface'
import { ok as answer, provide, provideAdvanced } from '@ucanto/server'
import { CID } from 'multiformats/cid'
import { Backup } from '../capabilities/index.ts'
import type { WatchedRun } from '../stores/index.ts'
import { encodeDelegations } from './authority.ts'
import type { ServiceContext } from './context.ts'
import { encodeGiven, findAuthority } from './delegation.ts'
import { failure } from './invocation.ts'

/** Runs that `backup/status` lists for a Space, if it is not told how many. */
const LISTED_RUNS = 20

/** Handlers of `backup/*`. */
export function createBackupService(context: ServiceContext) {
  const { stores, runner, time, agent, provisioning } = context
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
        const admitted = await provisioning.check(space, invocation)
        if (admitted.error) return admitted
        const authority = await findAuthority(agent, invocation, {
          space,
          delegation,
          validation,
        })
        if (authority.error) return authority
        const given = encodeGiven(authority.ok)
        if (given.error) return given

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
          include: include ?? [...Backup.DEFAULT_PARTS],
          authority: encodeDelegations([task, ...authority.ok]),
          scheduled: invocation.issuer.did() === agent.did(),
          created: time.now(),
        })
        runner.kick()
        const success = answer({ run: CID.parse(run.id) as Link })
        return run.id === task.cid.toString() ? success.fork(task) : success
      },
    }),

    status: provide(Backup.status, async ({ capability }) => {
      const space = capability.with
      const { run: link, account, limit = LISTED_RUNS } = capability.nb
      if (!link) {
        const runs = await stores.runs.list(space, {
          limit: Math.min(limit, Backup.MAX_RUNS),
          ...(account === undefined ? {} : { account }),
        })
        return ok({ runs: runs.map(statusOf) })
      }
      const run = await stores.runs.get(link.toString())
      if (
        run?.space !== space ||
        (account !== undefined && run.account !== account)
      ) {
        return failure(
          'RunNotFound',
          `there is no run ${link.toString()}${account === undefined ? '' : ` of ${account}`} in the Space ${space}`
        )
      }
      return ok({ runs: [statusOf(run)] })
    }),
  }
}

/** What agents are told of a run. */
export function statusOf(run: WatchedRun): Backup.RunStatus {
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
