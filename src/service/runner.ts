import { Message, Receipt } from '@ucanto/core'
import type { Delegation, Invocation, Result, Signer } from '@ucanto/interface'
import { CAR } from '@ucanto/transport'
import type { Logger } from 'pino'
import {
  BackupError,
  GatewayError,
  HostUnavailableError,
  runBackup,
  type AuthorizationJournal,
  type DID,
  type Outcome,
  type Part,
  type Progress,
  type Time,
} from '../backup/index.ts'
import { head as readHead } from '../client/clock.ts'
import type { Connection } from '../client/connection.ts'
import {
  DecodeError,
  MissingBlockError,
  UnreadableStateError,
} from '../space/index.ts'
import {
  StoreUnavailableError,
  type Run,
  type RunError,
  type Stores,
} from '../stores/index.ts'
import { decodeDelegations } from './authority.ts'
import type { PipelineContext } from './context.ts'
import type { GrantKeeper } from './grants.ts'
import { createJournal } from './journal.ts'
import { createPrivateContext } from './private.ts'
import { abortable, openReader, openSpace } from './space.ts'
import { reportOf, type RunReport } from './run-report.ts'

/** Errors that a run ends with as they are; others are for the log alone. */
const TOLD = [BackupError, DecodeError, MissingBlockError, UnreadableStateError]

/** How runs are shared out among processes. Times in milliseconds. */
export interface RunnerPolicy {
  /** Another process takes a run over that was not heard of for so long. */
  lease: number
  /** How often a run is kept at least. */
  heartbeat: number
  /** How often progress is written while it changes. */
  progress: number
  /** How often a process looks for runs that others left behind. */
  poll: number
  /** A run that was begun so often without coming to an end is given up. */
  attempts: number
  /** How long a run that is to stop may take, before it is left behind. */
  grace: number
  /** How often a run looks whether it still may do what it does. */
  check: number
}

export const RUNNER_POLICY: RunnerPolicy = {
  // As long as the lease of a job: whoever takes the job of a process that is
  // gone over waits for its run, and keeps others waiting.
  lease: 15_000,
  heartbeat: 4_000,
  progress: 500,
  poll: 5_000,
  attempts: 20,
  grace: 5_000,
  check: 10_000,
}

export interface RunnerContext extends PipelineContext {
  id: Signer
  agent: Signer
  stores: Stores
  grants?: Pick<GrantKeeper, 'open' | 'pending' | 'published'> | undefined
  time: Time
  logger: Logger
  /** Connection to our own handlers: there is no way around validation. */
  connection: () => Connection
  /** Runs at the same time in this process. */
  concurrency: number
  policy: RunnerPolicy
  /** Told of each run that this process has ended. */
  onEnded?: (report: RunReport) => void
}

/** Works off queued runs. */
export interface Runner {
  /** Number of runs that this process works on. */
  readonly active: number
  /** Tells that there may be something to do. */
  kick(): void
  /**
   * Takes no more runs and lets those under way finish; parks what is not
   * done in time, so that it is resumed later, here or elsewhere.
   *
   * @param timeout - milliseconds
   */
  drain(timeout: number): Promise<void>
}

/** The service is going down; the run goes on later. */
class ParkedError extends Error {
  override readonly name = 'ParkedError'
}

/** The host of the run has enough of them here; the run waits for its turn. */
class DeferredError extends Error {
  override readonly name = 'DeferredError'
  readonly host: string

  constructor(host: string) {
    super(`${host} has its share of the places`)
    this.host = host
  }
}

/** A run that goes on in this process. */
interface Execution {
  stop: AbortController
  /** Where its account is, if that is known. */
  host: string | undefined
}

/** Somebody else works on the run now. */
class LeaseLostError extends Error {
  override readonly name = 'LeaseLostError'
}

/** What the run acts upon has expired, or was taken back. */
class AuthorityLostError extends Error {
  override readonly name = 'AuthorityLostError'
}

/** Starts to work off runs, also those that an earlier process left. */
export function startRunner(context: RunnerContext): Runner {
  const { stores, grants, time, logger, concurrency, policy } = context
  const active = new Map<Execution, Promise<void>>()
  const stopping = new AbortController()
  // The space metadata that runs read is shared by all of them.
  const reader = openReader(context)
  let claiming: Promise<void> | undefined
  let again = false

  /**
   * Whether a host may have one more run here: as long as it has fewer than
   * there are places left. So one host has half of the places at most, another
   * one half of the rest, and hosts that never answer leave room for the next.
   */
  const hasRoom = (host: string, among = [...active.keys()]): boolean =>
    among.filter((each) => each.host === host).length <
    concurrency - among.length
  const fullHosts = (): string[] => {
    const hosts = [...active.keys()].flatMap(({ host }) => host ?? [])
    return [...new Set(hosts)].filter((host) => !hasRoom(host))
  }

  /**
   * Takes note of the host that a run is going to ask.
   *
   * @throws {@link DeferredError}
   */
  const locate = async (
    { id }: Run,
    owner: string,
    execution: Execution,
    host: string,
    log: Logger
  ): Promise<void> => {
    if (execution.host === host) return
    // Its own place is the one that it may take or leave.
    const others = [...active.keys()].filter((each) => each !== execution)
    if (!hasRoom(host, others)) {
      const error = new DeferredError(host)
      execution.stop.abort(error)
      throw error
    }
    execution.host = host
    await stores.runs.locate(id, owner, host).catch((error: unknown) => {
      log.warn({ err: error }, 'the host of a run could not be noted')
    })
  }

  const claimAll = async () => {
    do {
      again = false
      while (active.size < concurrency && !stopping.signal.aborted) {
        const owner = crypto.randomUUID()
        const run = await stores.runs.claim({
          owner,
          now: time.now(),
          lease: policy.lease,
          without: fullHosts(),
        })
        if (!run) break
        const execution: Execution = {
          stop: new AbortController(),
          host: run.host,
        }
        const done = execute(run, owner, execution)
        active.set(execution, done)
        void done.finally(() => {
          active.delete(execution)
          kick()
        })
      }
    } while (again)
  }
  const kick = () => {
    if (stopping.signal.aborted) return
    again = true
    claiming ??= claimAll()
      .catch((error: unknown) => {
        logger.error({ err: error }, 'claiming a run failed')
      })
      .finally(() => {
        claiming = undefined
        // Asked for after the last look.
        if (again) kick()
      })
  }
  const poll = async () => {
    while (!stopping.signal.aborted) {
      kick()
      await time.sleep(policy.poll, stopping.signal).catch(() => {})
    }
  }
  const polling = poll()

  async function execute(
    run: Run,
    owner: string,
    execution: Execution
  ): Promise<void> {
    const { stop } = execution
    const log = logger.child({
      run: run.id,
      space: run.space,
      account: run.account,
      attempt: run.attempts,
    })
    let progress: Progress | undefined
    const keeping = keep(run, owner, stop, log, () => progress)
    let checking: Promise<void> | undefined
    try {
      const [task, ...proofs] = decodeDelegations(run.authority)
      if (!task) throw new TypeError('a run without its task')
      checking = checkAuthority(run, proofs, stop, log)
      const result =
        run.attempts > policy.attempts
          ? givenUp(policy.attempts)
          : await perform(run, proofs, stop.signal, log, {
              onProgress: (now) => (progress = { ...now }),
              onHost: (host) => locate(run, owner, execution, host, log),
            })
      const receipt = await Receipt.issue({
        issuer: context.id,
        ran: task as Invocation,
        result,
      })
      const message = await Message.build({ receipts: [receipt] as never })
      const finished = time.now()
      const kept = await stores.runs.finish(run.id, owner, {
        progress,
        ...(result.error
          ? { state: 'failed', error: result.error }
          : {
              state: 'done',
              outcome: result.ok,
              eventful: result.ok.event !== undefined,
            }),
        receipt: CAR.request.encode(message).body,
        now: finished,
      })
      if (!kept) throw new LeaseLostError('another process has it')
      const report = reportOf(
        { ...run, finished },
        result,
        progress ?? (run.progress as Progress | undefined)
      )
      log.info(report, 'run ended')
      context.onEnded?.(report)
    } catch (error) {
      if (error instanceof ParkedError) {
        log.info('run parked')
        await stores.runs.release(run.id, owner).catch((cause: unknown) => {
          log.error({ err: cause }, 'the run could not be given back')
        })
      } else if (error instanceof DeferredError) {
        const { host } = error
        log.debug({ host }, 'the run waits for its turn')
        await stores.runs.defer(run.id, owner, host).catch((cause: unknown) => {
          log.error({ err: cause }, 'the run could not be given back')
        })
      } else if (error instanceof LeaseLostError) {
        log.warn({ err: error }, 'the run was lost')
      } else {
        // Nobody takes it before its lease is over: no haste.
        log.error({ err: error }, 'the run could not be ended')
      }
    } finally {
      stop.abort()
      await keeping
      await checking
    }
  }

  /**
   * Stops a run when its delegation has ended or was taken back. Our own
   * handlers are asked, as they would be by anybody.
   */
  async function checkAuthority(
    run: Run,
    proofs: Delegation[],
    stop: AbortController,
    log: Logger
  ): Promise<void> {
    for (;;) {
      await time.sleep(policy.check, stop.signal).catch(() => {})
      if (stop.signal.aborted) return
      try {
        const { error } = await readHead(
          {
            issuer: context.agent,
            with: run.space as `did:key:${string}`,
            proofs,
          },
          { connection: context.connection(), nonce: crypto.randomUUID() }
        )
        if (error?.name === 'Unauthorized') {
          stop.abort(new AuthorityLostError(error.message))
        } else if (error) {
          log.warn(
            { failure: error },
            'the delegation of a run cannot be checked'
          )
        }
      } catch (error) {
        log.warn({ err: error }, 'the delegation of a run cannot be checked')
      }
    }
  }

  /** Tells the store, while a run goes on, that it does and how far it is. */
  async function keep(
    run: Run,
    owner: string,
    stop: AbortController,
    log: Logger,
    progressNow: () => Progress | undefined
  ): Promise<void> {
    let leaseExpiration = time.now() + policy.lease
    let beat = time.now()
    let written = ''
    for (;;) {
      await time.sleep(policy.progress, stop.signal).catch(() => {})
      if (stop.signal.aborted) return
      const progress = progressNow()
      const text = JSON.stringify(progress ?? null)
      const now = time.now()
      if (text === written && now - beat < policy.heartbeat) continue
      try {
        const kept = await stores.runs.heartbeat(run.id, owner, {
          leaseExpiration: now + policy.lease,
          progress,
          now,
        })
        if (!kept) stop.abort(new LeaseLostError('another process has it'))
        leaseExpiration = now + policy.lease
        beat = now
        written = text
      } catch (error) {
        log.warn({ err: error }, 'the run could not be kept; trying again')
        if (time.now() >= leaseExpiration) {
          stop.abort(new LeaseLostError('it could not be kept in time'))
        }
      }
    }
  }

  async function perform(
    run: Run,
    proofs: Delegation[],
    signal: AbortSignal,
    log: Logger,
    {
      onProgress,
      onHost,
    }: {
      onProgress: (progress: Readonly<Progress>) => void
      /** Called before the host is asked for anything. */
      onHost: (host: string) => Promise<void>
    }
  ): Promise<Result<Outcome, RunError>> {
    const space = run.space as `did:key:${string}`
    try {
      const outcome = await runBackup(
        {
          ...context,
          ...openSpace(context, { space, proofs, signal }),
          identities: {
            async resolve(account, options) {
              const identity = await context.identities.resolve(
                account,
                options
              )
              await onHost(identity.pds.host)
              return identity
            },
          },
          reader: abortable(reader, signal),
          journal: (account) => createJournal(stores.journal, space, account),
          ...(grants
            ? {
                authorizations: journalOf(grants, space),
                private: createPrivateContext({
                  agent: context.agent,
                  keeper: grants,
                  space,
                  gate: context.gate,
                  delegation: run.authority,
                }),
              }
            : {}),
          onWarning: (message, error) => log.warn({ err: error }, message),
        },
        {
          account: run.account,
          parts: run.include as Part[],
          signal,
          onProgress,
        }
      )
      return { ok: outcome }
    } catch (error) {
      const reason: unknown = signal.reason
      if (reason instanceof AuthorityLostError) {
        return { error: { name: 'Unauthorized', message: reason.message } }
      }
      signal.throwIfAborted()
      // What could not be kept can be told nowhere.
      if (error instanceof StoreUnavailableError) throw error
      if (TOLD.some((kind) => error instanceof kind)) {
        const { name, message } = error as Error
        return {
          error: {
            name,
            message,
            ...((error instanceof HostUnavailableError ||
              error instanceof GatewayError) &&
            error.retryAfter !== undefined
              ? { retryAfter: error.retryAfter }
              : {}),
          },
        }
      }
      log.error({ err: error }, 'run failed unexpectedly')
      return {
        error: {
          name: 'InternalError',
          message:
            'the service failed, and its log has the reason; what was uploaded is kept for the next run',
        },
      }
    }
  }

  return {
    get active() {
      return active.size
    },
    kick,
    async drain(timeout) {
      stopping.abort()
      await polling
      await claiming
      const finished = Promise.all(active.values())
      await settled(finished, timeout)
      for (const { stop } of active.keys()) {
        stop.abort(new ParkedError('the service is going down'))
      }
      await settled(finished, policy.grace)
    },
  }

  /** Waits for a promise, but not for ever. */
  async function settled(
    promise: Promise<unknown>,
    timeout: number
  ): Promise<void> {
    const waited = new AbortController()
    await Promise.race([
      promise,
      time.sleep(timeout, waited.signal).catch(() => {}),
    ])
    waited.abort()
  }
}

/** Grants that are not in the Space yet go along with backups. */
function journalOf(
  grants: Pick<GrantKeeper, 'pending' | 'published'>,
  space: DID
): AuthorizationJournal {
  return {
    async pending(account) {
      const pending = await grants.pending(space, account)
      if (!pending) return undefined
      const { agent, authorization } = pending
      return { agent, authorization }
    },
    async recorded(account, found) {
      await grants.published(space, account, found)
    },
  }
}

function givenUp(attempts: number) {
  return {
    error: {
      name: 'TooManyAttempts',
      message: `the run was begun ${attempts} times and never came to its end; tell who runs the service, whose log may have the reason`,
    },
  }
}
