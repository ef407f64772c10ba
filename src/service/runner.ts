import { Receipt } from '@ucanto/core'
import { Message } from '@ucanto/core'
import type { Delegation, Invocation, Signer } from '@ucanto/interface'
import { CAR } from '@ucanto/transport'
import type { Logger } from 'pino'
import {
  BackupError,
  runBackup,
  type Outcome,
  type Part,
  type Progress,
  type Time,
} from '../backup/index.ts'
import { decodeJournalEntry, encodeJournalEntry } from '../backup/journal.ts'
import type { Journal } from '../backup/interface.ts'
import { createClock } from '../client/clock.ts'
import type { Connection } from '../client/connection.ts'
import {
  connectUploadService,
  createSpaceReader,
  createSpaceWriter,
} from '../storacha/index.ts'
import type { Run, Stores } from '../stores/index.ts'
import { decodeDelegations } from './authority.ts'
import type { PipelineContext } from './context.ts'

/** How runs are shared out among processes. Milliseconds. */
export const RUNNER_POLICY = {
  /** Another process takes a run over that was not heard of for so long. */
  lease: 30_000,
  heartbeat: 5_000,
  /** How often progress is written while it changes. */
  progress: 500,
  /** How often a process looks for runs that others left behind. */
  poll: 5_000,
}

export interface RunnerContext extends PipelineContext {
  id: Signer
  agent: Signer
  stores: Stores
  time: Time
  logger: Logger
  /** Connection to our own handlers: there is no way around validation. */
  connection: () => Connection
  /** Runs at the same time in this process. */
  concurrency: number
  policy?: typeof RUNNER_POLICY
}

/** Works off queued runs. */
export interface Runner {
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

/** Somebody else works on the run now. */
class LeaseLostError extends Error {
  override readonly name = 'LeaseLostError'
}

/** Starts to work off runs, also those that an earlier process left. */
export function startRunner(context: RunnerContext): Runner {
  const { stores, time, logger, concurrency } = context
  const policy = context.policy ?? RUNNER_POLICY
  const active = new Map<
    string,
    { stop: AbortController; done: Promise<void> }
  >()
  const stopping = new AbortController()
  // The space metadata that runs read is shared by all of them.
  const reader = createSpaceReader({
    gateways: context.gateways,
    fetch: context.foreignFetch,
    createSha256: context.createSha256,
  })
  let claiming: Promise<void> | undefined
  let again = false

  const claimAll = async () => {
    do {
      again = false
      while (active.size < concurrency && !stopping.signal.aborted) {
        const owner = crypto.randomUUID()
        const run = await stores.runs.claim({
          owner,
          now: time.now(),
          lease: policy.lease,
        })
        if (!run) break
        const stop = new AbortController()
        const done = execute(run, owner, stop).finally(() => {
          active.delete(run.id)
          kick()
        })
        active.set(run.id, { stop, done })
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
    stop: AbortController
  ): Promise<void> {
    const log = logger.child({
      run: run.id,
      space: run.space,
      account: run.account,
      attempt: run.attempts,
    })
    let progress: Progress | undefined
    let reported = ''
    const keep = async () => {
      for (let beats = 1; !stop.signal.aborted; beats++) {
        await time.sleep(policy.progress, stop.signal)
        const now = JSON.stringify(progress)
        const due = beats % Math.ceil(policy.heartbeat / policy.progress) === 0
        if (now === reported && !due) continue
        reported = now
        const kept = await stores.runs.heartbeat(run.id, owner, {
          leaseExpiration: time.now() + policy.lease,
          progress: progress ?? null,
          now: time.now(),
        })
        if (!kept) stop.abort(new LeaseLostError('the lease was lost'))
      }
    }
    const keeping = keep().catch((error: unknown) => {
      if (!stop.signal.aborted) stop.abort(error)
    })
    try {
      const [task, ...proofs] = decodeDelegations(run.authority)
      if (!task) throw new TypeError('a run without its task')
      const result = await perform(run, proofs, stop.signal, log, (now) => {
        progress = { ...now }
      })
      if (result.error) {
        log.warn({ failure: result.error }, 'run failed')
      } else {
        log.info({ outcome: result.ok }, 'run done')
      }
      const receipt = await Receipt.issue({
        issuer: context.id,
        ran: task as Invocation,
        result: result.error ? { error: result.error } : { ok: result.ok },
      })
      const message = await Message.build({ receipts: [receipt] as never })
      const { body } = CAR.request.encode(message as never)
      await stores.runs.finish(run.id, owner, {
        state: result.error ? 'failed' : 'done',
        ...(result.error ? { error: result.error } : { outcome: result.ok }),
        receipt: body,
        now: time.now(),
      })
    } catch (error) {
      if (error instanceof LeaseLostError) {
        log.warn('another process has taken the run over')
        return
      }
      if (error instanceof ParkedError) {
        log.info('run parked')
      } else {
        log.error({ err: error }, 'the run could not be ended')
      }
      await stores.runs.release(run.id, owner).catch((cause: unknown) => {
        log.error({ err: cause }, 'the run could not be parked')
      })
    } finally {
      stop.abort()
      await keeping
    }
  }

  async function perform(
    run: Run,
    proofs: Delegation[],
    signal: AbortSignal,
    log: Logger,
    onProgress: (progress: Readonly<Progress>) => void
  ): Promise<
    | { ok: Outcome; error?: undefined }
    | { ok?: undefined; error: { name: string; message: string } }
  > {
    const space = run.space as `did:key:${string}`
    const authority = { issuer: context.agent, space, proofs }
    const service = connectUploadService(context.uploadService, {
      fetch: context.fetch,
      signal,
    })
    try {
      const outcome = await runBackup(
        {
          ...context,
          writer: createSpaceWriter(service, authority, {
            sha256: context.createSha256,
          }),
          reader,
          clock: createClock(
            { issuer: context.agent, with: space, proofs },
            { connection: context.connection() }
          ),
          journal: (account) => journalIn(stores, space, account),
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
      signal.throwIfAborted()
      if (error instanceof BackupError) {
        return { error: { name: error.name, message: error.message } }
      }
      log.error({ err: error }, 'run failed unexpectedly')
      return {
        error: {
          name: error instanceof Error ? error.name : 'Error',
          message: error instanceof Error ? error.message : String(error),
        },
      }
    }
  }

  return {
    kick,
    async drain(timeout) {
      stopping.abort()
      await polling
      await claiming
      const finished = Promise.all([...active.values()].map(({ done }) => done))
      const waited = new AbortController()
      await Promise.race([
        finished,
        time.sleep(timeout, waited.signal).catch(() => {}),
      ])
      waited.abort()
      for (const { stop } of active.values()) {
        stop.abort(new ParkedError('the service is going down'))
      }
      await finished
    },
  }
}

/** The journal of runs of one account into one Space. */
function journalIn(stores: Stores, space: string, account: string): Journal {
  return {
    async load() {
      const entries = await stores.journal.load(space, account)
      return entries.map(decodeJournalEntry)
    },
    async append(entry) {
      const key = entry.shard
        ? entry.shard.digest.join()
        : entry.blobs.map(([cid]) => cid).join()
      await stores.journal.append(
        space,
        account,
        key,
        encodeJournalEntry(entry)
      )
    },
    clear: () => stores.journal.clear(space, account),
  }
}
