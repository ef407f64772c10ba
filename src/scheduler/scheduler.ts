import { createHash } from 'node:crypto'
import type { Delegation, Signer } from '@ucanto/interface'
import type { Logger } from 'pino'
import type { Time } from '../backup/interface.ts'
import { Backup as Protocol, isAccountDID } from '../capabilities/index.ts'
import { Backup, type Connection } from '../client/index.ts'
import { StoreUnavailableError } from '../stores/index.ts'
import type {
  LastRun,
  Run,
  RunError,
  Schedule,
  ScheduleClaim,
  ScheduleDeferral,
  ScheduleSettlement,
  Stores,
} from '../stores/index.ts'
import type { Job, JobEngine, NewJob } from './engine/index.ts'
import { JobLostError, RetryLaterError } from './errors.ts'
import { nextTime } from './next-time.ts'

const KIND = 'backup'

/** Who claimed schedules before each claim had an owner of its own. */
const FORMER_OWNER = 'scheduler'

/** Runs of others that a job waits for, at most, before its own. */
const MAX_JOINED = 3

/**
 * How old a count of what waits may be, in milliseconds. It takes longer than
 * to find out that nothing is due.
 */
const COUNT_AGE = 60_000

/** Failures that pass: the run is made again before its next regular time. */
const PASSING = new Set([
  'ClockError',
  'GatewayError',
  'HostError',
  'HostUnavailableError',
  'IdentityUnavailableError',
  'IncompleteRepoError',
  'InternalError',
  'ServiceUnavailable',
  'SpaceUnavailableError',
  'RateLimited',
  'RevocationsUnavailable',
])

/** Failures for which somebody has to do something: the schedule stops. */
const ENDING = new Set([
  'InsufficientDelegation',
  'SpaceUnauthorizedError',
  'Unauthorized',
])

/** Why a schedule stops that no run can be made of. */
const INVALID_ACCOUNT: RunError = {
  name: 'InvalidAccount',
  message:
    'the account is not a did:plc or did:web; end this schedule, and schedule the right account',
}

/** The account is not there for now: its schedule waits, and looks again. */
const ABSENT = 'AccountUnavailableError'

/** How schedules become runs. Times in milliseconds. */
export interface SchedulerPolicy {
  /** How often to look for schedules that are due. */
  sweep: number
  /** Schedules that are claimed at once. */
  batch: number
  /** A claim that no job has kept for so long is released. */
  lease: number
  /** How often a job keeps the claim while its run goes on. */
  keep: number
  /** How often a job looks whether its run has ended; sooner at first. */
  poll: number
  /** Runs of one host at the same time. */
  perHost: number
  /** Runs of one host that may wait for their turn. */
  outstandingPerHost: number
  /** How often a run is tried, at most, before its next regular time. */
  attempts: number
  /** Wait after the first attempt; it doubles with each. */
  backoff: number
  /** How long the schedule of an account waits that is deactivated, at least. */
  absence: number
  /** How long a run waits that the service or the host could not take. */
  busy: number
  /**
   * Share, 0 to 1, of the schedules of a host that is not asked for now, that
   * look all the same whether their account has moved.
   */
  moved: number
}

export const SCHEDULER_POLICY: SchedulerPolicy = {
  sweep: 5_000,
  batch: 2_000,
  lease: 10 * 60_000,
  keep: 60_000,
  poll: 1_000,
  perHost: 8,
  outstandingPerHost: 10_000,
  attempts: 4,
  backoff: 60_000,
  absence: 6 * 60 * 60_000,
  busy: 30_000,
  moved: 0.1,
}

export interface SchedulerContext {
  stores: Pick<Stores, 'schedules' | 'runs'>
  engine: JobEngine
  /** The service's agent, to whom the delegations are given. */
  agent: Signer
  /** To our own handlers: there is no way around validation. */
  connection: () => Connection
  /** Reads a CAR of delegations. */
  decodeDelegations: (bytes: Uint8Array) => Delegation[]
  /** @returns the host that an account is on, or nothing if nobody can tell */
  findHost: (
    account: string,
    signal: AbortSignal
  ) => Promise<string | undefined>
  /** Hosts that are not asked for now. */
  hosts: {
    /** @returns Unix milliseconds from which on somebody may try, by host */
    unavailable: () => Promise<Map<string, number>>
    /** @returns the same for one host, nothing if it may be asked */
    unavailableUntil: (host: string) => Promise<number | undefined>
  }
  time: Time
  logger: Logger
  policy: SchedulerPolicy
}

/** Turns schedules into runs. */
export interface Scheduler {
  /** Looks for schedules that are due from now on. */
  sweep(): void
  /** Works off their jobs, at most so many at the same time. */
  work(options: { concurrency: number }): void
  /** Takes nothing new, and lets what is under way finish, for so many ms. */
  drain(timeout: number): Promise<void>
}

/**
 * Turns schedules that are due into jobs, and jobs into runs. A run is made as
 * anybody would have it made: the service's agent invokes `backup/run` with the
 * stored delegation as its proof.
 */
export function createScheduler(context: SchedulerContext): Scheduler {
  const { stores, engine, time, logger, policy } = context
  const stopping = new AbortController()
  /** Runs that go on in this process, by host. */
  const active = new Map<string, number>()
  /** The most of them that one host has. */
  let room = 1
  let sweeping: Promise<void> | undefined
  /** Ends the wait for the next look. */
  let waking = new AbortController()

  /** Not all that waited for the same comes at the same time. */
  const spread = (at: number) => Math.round(at + Math.random() * policy.busy)

  /**
   * Claims what is due, and queues its jobs, both or none. No two claims have
   * the same owner, who is in the job: a job that comes when its schedule was
   * settled, released or made anew finds out that it is void.
   */
  const claimDue = async (limit: number): Promise<number> => {
    const owner = crypto.randomUUID()
    const outstanding = await engine.outstanding({ maxAge: COUNT_AGE })
    const away = await context.hosts.unavailable()
    /** @returns Unix milliseconds at which to look again, or nothing if it is due */
    const later = (host = UNKNOWN_HOST): number | undefined => {
      const soon = spread(time.now() + policy.busy)
      if ((outstanding.get(host) ?? 0) >= policy.outstandingPerHost) return soon
      const until = away.get(host)
      if (until === undefined) return undefined
      if (until > time.now()) {
        return Math.random() < policy.moved ? undefined : spread(until)
      }
      // One goes to see whether the host is back; the others wait for it.
      away.set(host, soon)
      return undefined
    }
    let looked: Schedule[] = []
    const claim = () =>
      stores.schedules.claimDue(
        { now: time.now(), limit, owner, lease: policy.lease },
        async (due, transaction) => {
          looked = due
          const ready: Schedule[] = []
          const deferred: ScheduleDeferral[] = []
          for (const schedule of due) {
            const { space, account, host } = schedule
            const next = later(host)
            if (next === undefined) ready.push(schedule)
            else deferred.push({ space, account, next })
          }
          await engine.enqueue(
            ready.map((schedule) => jobOf(schedule, owner, policy)),
            { transaction }
          )
          return deferred
        }
      )
    const claimed = await claim().catch((cause: unknown) => {
      // The database answers, and cannot take what it was given.
      if (cause instanceof StoreUnavailableError || looked.length === 0) {
        throw cause
      }
      return cause as Error
    })
    if (claimed instanceof Error) {
      await isolate(looked, claimed)
      return limit
    }
    if (claimed.length > 0) engine.kick()
    return claimed.length
  }

  /** Frees claims that no job has; a job may wait for longer than a lease. */
  const reconcile = async () => {
    const now = time.now()
    const expired = await stores.schedules.expired({ now, limit: policy.batch })
    const live = await engine.live(expired.map(keyOf))
    let released = 0
    for (const claim of expired) {
      const { space, account, owner } = claim
      if (live.has(keyOf(claim))) {
        const lease = now + policy.lease
        await stores.schedules.renewLease(space, account, owner, lease)
      } else if (await stores.schedules.release(space, account, owner, now)) {
        released++
      }
    }
    if (released > 0) {
      logger.warn(
        { schedules: released },
        'claims of schedules were left behind; they are due again'
      )
    }
  }

  /**
   * Finds the schedule that breaks a batch, by halves, and settles it: the
   * others of its batch go on. A schedule that is wrong in itself is stopped.
   * Any other may have failed with the queue, and is put off for a while.
   */
  const isolate = async (batch: Schedule[], cause: Error): Promise<void> => {
    const [first] = batch
    if (first && batch.length === 1) {
      const { space, account } = first
      logger.error({ err: cause, space, account }, 'a schedule makes no job')
      const isWrong = !isAccountDID(account)
      await stores.schedules.decide(
        space,
        account,
        (present) =>
          present && {
            ...present,
            delegation: undefined,
            ...(isWrong
              ? { state: 'stopped', reason: INVALID_ACCOUNT, next: undefined }
              : { next: spread(time.now() + policy.busy) }),
          },
        time.now()
      )
      return
    }
    let limit = Math.ceil(batch.length / 2)
    for (let left = batch.length; left > 0 && !stopping.signal.aborted;) {
      const claimed = await claimDue(limit)
      left -= limit
      limit = Math.min(limit, Math.max(1, left))
      if (claimed < limit) return
    }
  }

  const sweepOnce = async () => {
    await reconcile()
    while (!stopping.signal.aborted) {
      if ((await claimDue(policy.batch)) < policy.batch) return
    }
  }

  const sweepForever = async () => {
    while (!stopping.signal.aborted) {
      await sweepOnce().catch((error: unknown) => {
        logger.error({ err: error }, 'looking for due schedules failed')
      })
      const signal = AbortSignal.any([stopping.signal, waking.signal])
      await time.sleep(policy.sweep, signal).catch(() => {})
      waking = new AbortController()
    }
  }

  /**
   * Counts a run of a host: one whose runs take long leaves room here for those
   * of others.
   *
   * @returns nothing when the host has enough
   */
  const takePlace = (host = UNKNOWN_HOST): Disposable | undefined => {
    const others = active.get(host) ?? 0
    if (others >= room) return undefined
    active.set(host, others + 1)
    return {
      [Symbol.dispose]() {
        const left = (active.get(host) ?? 1) - 1
        if (left > 0) active.set(host, left)
        else active.delete(host)
      },
    }
  }

  /**
   * Where an account is. It may have left a host that is away, which may never
   * come back.
   */
  const presentHost = async (
    { account, host: last }: Schedule,
    signal: AbortSignal
  ): Promise<{ host?: string | undefined; away?: number | undefined }> => {
    const awayOf = (host: string) => context.hosts.unavailableUntil(host)
    if (last !== undefined && (await awayOf(last)) === undefined) {
      return { host: last }
    }
    const host = (await context.findHost(account, signal)) ?? last
    return host === undefined ? {} : { host, away: await awayOf(host) }
  }

  /** Does what a schedule is for, and says when it is due again. */
  const perform = async (
    { data, attempt }: Pick<Job, 'data' | 'attempt'>,
    signal: AbortSignal
  ): Promise<void> => {
    const claim = claimIn(data)
    const { space, account, owner } = claim
    const log = logger.child({ space, account, attempt })
    const now = time.now()
    const schedule = await stores.schedules.begin(space, account, owner, {
      leaseExpiration: now + policy.lease,
      now,
    })
    if (!schedule) {
      log.info('the schedule is gone, or its claim is')
      return
    }
    const settle = async (settlement: Omit<ScheduleSettlement, 'now'>) => {
      const now = time.now()
      const isOurs = await stores.schedules.settle(space, account, owner, {
        ...settlement,
        now,
      })
      if (!isOurs) log.info('the claim was gone when it was to end')
    }
    const regular = () => ({
      state: 'active' as const,
      next: nextTime(schedule, time.now()),
    })
    // Somebody has paused it, or it has stopped, since it was due.
    if (schedule.state !== 'active') {
      await settle({ state: schedule.state, reason: schedule.reason })
      return
    }

    const present = await presentHost(schedule, signal)
    if (present.away !== undefined) {
      log.debug({ host: present.host }, 'the host is not asked for now')
      const { host, away } = present
      await settle({ state: 'active', next: spread(away), host })
      return
    }
    if (present.host !== schedule.host) {
      // Known now, it has slots of its own.
      await settle({ state: 'active', next: time.now(), host: present.host })
      waking.abort()
      return
    }
    using place = takePlace(present.host)
    if (!place) {
      // Older than those of other hosts, it would be taken again and again.
      throw new RetryLaterError(
        'the host has enough runs here',
        { at: spread(time.now()) },
        { isLast: true }
      )
    }

    const made = await runFor(schedule, claim, now, signal)
    if (made.refusal) {
      const error = made.refusal
      if (ENDING.has(error.name)) {
        log.warn({ failure: error }, 'the schedule stops')
        await settle({ state: 'stopped', reason: error })
        return
      }
      throw new RetryLaterError(`${error.name}: ${error.message}`, {
        after:
          'retryAfter' in error && typeof error.retryAfter === 'number'
            ? error.retryAfter * 1000
            : policy.busy,
      })
    }
    const { run } = made
    if (!run) {
      log.info('the claim is gone; the run goes on without it')
      return
    }
    const lastRun = lastRunOf(run, time.now())
    const host = mayHaveMoved(schedule, lastRun)
      ? await context.findHost(account, signal)
      : schedule.host
    const { error } = lastRun
    if (error && ENDING.has(error.name)) {
      log.warn({ failure: error, run: run.id }, 'the schedule stops')
      await settle({ state: 'stopped', reason: error, lastRun, host })
      return
    }
    if (error?.name === ABSENT) {
      log.info({ failure: error, run: run.id }, 'the schedule waits')
      const next = nextTime(schedule, time.now() + policy.absence)
      await settle({ state: 'paused', reason: error, next, lastRun, host })
      return
    }
    // A host that is left alone is waited for, and takes no attempts.
    if (error && PASSING.has(error.name)) {
      const back =
        error.retryAfter === undefined
          ? host && (await context.hosts.unavailableUntil(host))
          : time.now() + error.retryAfter * 1000
      if (back) {
        log.info({ failure: error, run: run.id }, 'the run waits for the host')
        await settle({ state: 'active', next: spread(back), lastRun, host })
        return
      }
    }
    const next = nextTime(schedule, time.now())
    const wait = policy.backoff * 2 ** (attempt - 1) * (1 + Math.random())
    if (
      error &&
      PASSING.has(error.name) &&
      attempt < policy.attempts &&
      time.now() + wait < next
    ) {
      log.info({ failure: error, run: run.id }, 'the run is made again later')
      throw new AttemptFailedError(error, wait)
    }
    await settle({ ...regular(), lastRun, host })
    // The run itself has its line already.
    log.debug(
      { run: run.id, outcome: lastRun.outcome, next },
      error ? 'scheduled run failed' : 'scheduled run done'
    )
  }

  /**
   * Has a run made, and waits for its end.
   *
   * @param now - Unix milliseconds at which the job was begun this time
   * @returns no run when the claim is gone meanwhile
   */
  const runFor = async (
    schedule: Schedule,
    claim: ScheduleClaim,
    now: number,
    signal: AbortSignal
  ) => {
    const { space, account, begun = now } = schedule
    const isOurs = (run: Run) => run.agent === context.agent.did()
    if (begun < now) {
      // Whoever has begun may have been killed just before it was settled.
      const [last] = await stores.runs.list(space, { account, limit: 1 })
      if (last?.state === 'done' && isOurs(last) && last.created >= begun) {
        return { run: last }
      }
    }
    for (let joined = 0; ; joined++) {
      const started = await redeem(context, schedule)
      if (!started.ok) return { refusal: started.error }
      const run = await ended(started.ok.run.toString(), claim, signal)
      // One that somebody else had made has rights and parts of its own.
      if (!run || isOurs(run) || joined === MAX_JOINED) return { run }
      if (run.state === 'done' && covers(run, schedule)) return { run }
    }
  }

  /**
   * Waits for a run, and keeps the claim on its schedule meanwhile.
   *
   * @returns nothing when the claim is gone
   */
  const ended = async (
    id: string,
    { space, account, owner }: ScheduleClaim,
    signal: AbortSignal
  ): Promise<Run | undefined> => {
    // It was kept when the job was begun.
    let kept = time.now()
    // Most runs find nothing new, and are over soon.
    let wait = policy.poll / 16
    for (;;) {
      const now = time.now()
      if (now - kept >= policy.keep) {
        const lease = now + policy.lease
        if (
          !(await stores.schedules.renewLease(space, account, owner, lease))
        ) {
          return undefined
        }
        kept = now
      }
      const run = await stores.runs.get(id)
      if (!run) throw new JobLostError(`the run ${id} is not there any more`)
      if (run.state === 'done' || run.state === 'failed') return run
      await time.sleep(wait, signal)
      wait = Math.min(policy.poll, wait * 2)
    }
  }

  return {
    sweep() {
      sweeping ??= sweepForever()
    },

    work({ concurrency }) {
      room = Math.max(1, concurrency - 1)
      engine.work(
        { [KIND]: (job, { signal }) => perform(job, signal) },
        {
          concurrency,
          retryPolicy: (error, attempt) =>
            error instanceof AttemptFailedError
              ? { retry: error.wait }
              : attempt < policy.attempts
                ? { retry: policy.backoff * attempt * (1 + Math.random()) }
                : { dead: true },
          async onDead({ data }, error) {
            const { space, account, owner } = claimIn(data)
            logger.error({ err: error, space, account }, 'a job was given up')
            const schedule = await stores.schedules.get(space, account)
            if (!schedule) return
            const now = time.now()
            await stores.schedules.settle(space, account, owner, {
              state: 'active',
              next: nextTime(schedule, now),
              now,
            })
          },
        }
      )
    },

    async drain(timeout) {
      stopping.abort()
      await sweeping
      await engine.drain(timeout)
    },
  }
}

/** A run failed, and it is worth to make it again before the regular time. */
class AttemptFailedError extends Error {
  override readonly name = 'AttemptFailedError'
  /** Milliseconds until then. */
  readonly wait: number

  constructor({ name, message }: RunError, wait: number) {
    super(`${name}: ${message}`)
    this.wait = wait
  }
}

/** Asks our own handlers for a run, with the stored delegation as the proof. */
async function redeem(
  { stores, agent, connection, decodeDelegations }: SchedulerContext,
  { space, account, include }: Schedule
) {
  const stored = await stores.schedules.delegation(space, account)
  const proofs = stored ? decodeDelegations(stored.bytes) : []
  return Backup.run(
    { issuer: agent, with: space as `did:key:${string}`, proofs },
    {
      account: account as `did:plc:${string}`,
      ...(include ? { include: include as ['blobs'] } : {}),
    },
    { connection: connection(), nonce: crypto.randomUUID() }
  )
}

function jobOf(
  { space, account, host }: Schedule,
  owner: string,
  { perHost }: SchedulerPolicy
): NewJob {
  // It only finds out where the account is: nobody waits for that.
  const slots = host === undefined ? 2 ** 32 : perHost
  const digest = createHash('sha256').update(account).digest()
  return {
    kind: KIND,
    key: keyOf({ space, account, owner }),
    // Of an account there is one slot, whatever the Space: it is never backed
    // up twice at once.
    slot: `${host ?? UNKNOWN_HOST}/${digest.readUInt32BE(0) % slots}`,
    priority: 0,
    data: { space, account, owner },
  }
}

/** There is one job for a claim, and one claim on a schedule. */
function keyOf({ space, account, owner }: ScheduleClaim): string {
  return owner === FORMER_OWNER
    ? `${space} ${account}`
    : `${owner} ${space} ${account}`
}

function claimIn(data: Job['data']): ScheduleClaim {
  const { owner = FORMER_OWNER, ...rest } = data as Record<string, string>
  return { ...rest, owner } as ScheduleClaim
}

/** Whether a run has all the parts that a schedule is for. */
function covers(run: Run, { include }: Schedule): boolean {
  return (include ?? Protocol.DEFAULT_PARTS).every((part) =>
    run.include.includes(part)
  )
}

/** What accounts that were never backed up count for. */
const UNKNOWN_HOST = '-'

/** Of so many runs that succeed, one looks whether the account has moved. */
const HOST_LOOKUPS = 1 / 24

/**
 * The run has asked the directory where the account is. To ask once more each
 * time would double what the directory has to bear.
 */
function mayHaveMoved({ host }: Schedule, { error }: LastRun): boolean {
  return host === undefined || !!error || Math.random() < HOST_LOOKUPS
}

function lastRunOf(run: Run, now: number): LastRun {
  const { kind } = (run.outcome ?? {}) as { kind?: LastRun['outcome'] }
  return {
    run: run.id,
    finished: run.finished ?? now,
    outcome: run.state === 'failed' ? 'failed' : (kind ?? 'failed'),
    ...(run.error ? { error: run.error } : {}),
  }
}
