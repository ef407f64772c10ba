import type { Delegation, Signer } from '@ucanto/interface'
import { connect } from '@ucanto/client'
import { CAR } from '@ucanto/transport'
import { ed25519 } from '@ucanto/principal'
import { pino } from 'pino'
import type { Time } from '../../src/backup/interface.ts'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import {
  Backup,
  Revocation,
  type Connection,
  type InvocationConfig,
} from '../../src/client/index.ts'
import { withNativeSigning } from '../../src/node/index.ts'
import {
  createEmbeddedEngine,
  createScheduler,
  RHYTHM_LIMITS,
  SCHEDULER_POLICY,
  type SchedulerPolicy,
} from '../../src/scheduler/index.ts'
import { decodeDelegations } from '../../src/service/authority.ts'
import { createProvisioning } from '../../src/service/provisioning.ts'
import { createRates } from '../../src/service/rates.ts'
import { createRevocations } from '../../src/service/revocations.ts'
import { createServer } from '../../src/service/server.ts'
import { createWatchers } from '../../src/service/watchers.ts'
import {
  openStores,
  type RunError,
  type Stores,
} from '../../src/stores/index.ts'
import { allow } from '../service/harness.ts'
import { FakeTime } from './fake-time.ts'

export const SECOND = 1000
export const MINUTE = 60 * SECOND
export const HOUR = 60 * MINUTE
export const DAY = 24 * HOUR

export type AccountDID = `did:plc:${string}`

/** Days of fake time are long: what looks again and again does so seldom. */
export const POLICY: SchedulerPolicy = {
  ...SCHEDULER_POLICY,
  sweep: 10 * MINUTE,
  poll: 15 * SECOND,
}
const ENGINE_POLICY = {
  lease: 15 * MINUTE,
  heartbeat: 5 * MINUTE,
  poll: 8 * MINUTE,
}
const RUN_LEASE = 15 * MINUTE

/** The longest from when a schedule is due until its run begins. */
export const DELAY = POLICY.sweep

/** The longest that a job waits beyond the time that it was put off to. */
export const JOB_DELAY = 1.25 * ENGINE_POLICY.poll

/** How a backup goes that is begun now. */
export interface Course {
  /** Milliseconds. */
  takes: number
  error?: RunError
}

/** A backup that was made, or is being made. Times in Unix milliseconds. */
export interface MadeRun {
  account: string
  began: number
  ended?: number
  /** When the process was killed that made it. */
  killed?: number
  error?: RunError
}

/**
 * The scheduler with everything that it works with: stores on SQLite, the
 * embedded engine, and the handlers of the service, all of them real, in fake
 * time. The backups themselves are played: 720 of them for an account would
 * take hours of a real host, and what they do is not what is tested here.
 */
export class World implements AsyncDisposable {
  readonly time: FakeTime
  readonly runs: MadeRun[] = []
  /** Decides how backups go; they take 20 seconds and succeed at first. */
  backUp: (account: string) => Course = () => ({ takes: 20 * SECOND })
  /** Host of each account. */
  hostOf: (account: string) => string = () => 'pds.example'
  readonly agent: Signer
  readonly space: ed25519.EdSigner
  readonly stores: Stores
  readonly #connection: () => Connection
  /** Tells those who back up that there is something to do. */
  #kick = () => {}
  #killService = () => {}
  #invocations = 0

  readonly #policy: SchedulerPolicy

  private constructor(
    time: FakeTime,
    stores: Stores,
    actors: { agent: Signer; space: ed25519.EdSigner },
    policy: SchedulerPolicy,
    connection: (kick: () => void) => Connection
  ) {
    this.time = time
    this.agent = actors.agent
    this.space = actors.space
    this.stores = stores
    this.#policy = policy
    const made = connection(() => this.#kick())
    this.#connection = () => made
  }

  /**
   * @param start - Unix milliseconds at which the service starts
   * @param policy - changes of the policy
   */
  static async create(
    start: number,
    policy: Partial<SchedulerPolicy> = {}
  ): Promise<World> {
    const time = new FakeTime(start)
    const [agent, space] = await Promise.all([actor(1), actor(2)])
    const stores = await openStores({ path: ':memory:' })
    const logger = pino({ level: process.env.LOG_LEVEL ?? 'silent' })
    const id = agent.withDID('did:web:backups.test')
    let kick = () => {}
    const server = await createServer({
      id,
      agent,
      stores,
      time,
      logger,
      authorities: [],
      rhythmLimits: RHYTHM_LIMITS,
      schedulesPerSpace: 1_000,
      revocations: createRevocations({
        store: stores.revocations,
        policy: 'open',
        maxAge: DAY,
        time,
        logger,
      }),
      rates: createRates({ agent: agent.did(), spaceRate: 0, issuerRate: 0 }),
      watchers: createWatchers(),
      provisioning: createProvisioning({
        store: stores.spaces,
        agent,
        connect: () => {
          throw new Error('nobody is asked')
        },
        policy: 'off',
        maxAge: DAY,
        time,
        logger,
      }),
      runner: { kick: () => kick() },
      identities: {
        async resolve() {
          throw new Error('nobody is looked up')
        },
      },
      grants: undefined,
      publisher: { publish: async () => false },
      sharer: {
        share: async () => ({ ok: { backups: 0, closed: 0, unreadable: 0 } }),
      },
    })
    const changed = { ...POLICY, ...policy }
    return new World(time, stores, { agent, space }, changed, (kickWorld) => {
      kick = kickWorld
      return connect({
        id,
        codec: CAR.outbound,
        channel: {
          request: (request: never) =>
            time.during(() => server.request(request)),
        } as never,
      })
    })
  }

  /** Starts the service, or starts it again. */
  start(): void {
    const { time, kill } = this.time.process()
    const logger = pino({ level: process.env.LOG_LEVEL ?? 'silent' })
    const engine = createEmbeddedEngine({
      database: this.stores.database,
      time,
      logger,
      policy: ENGINE_POLICY,
    })
    const scheduler = createScheduler({
      stores: this.stores,
      engine,
      agent: this.agent,
      connection: this.#connection,
      decodeDelegations,
      findHost: async (account) => this.hostOf(account),
      hosts: {
        unavailable: async () => new Map<string, number>(),
        unavailableUntil: async () => undefined,
      },
      time,
      logger,
      policy: this.#policy,
    })
    scheduler.sweep()
    scheduler.work({ concurrency: 1_000 })
    this.#startRunner(time)
    this.#killService = kill
  }

  /** Kills the service while it waits for something. */
  async kill(): Promise<void> {
    await this.time.quiet()
    this.#killService()
    for (const run of this.runs) {
      if (run.ended === undefined) run.killed ??= this.time.now()
    }
    this.#kick = () => {}
  }

  /** Takes the runs that the handlers have queued, and plays the backups. */
  #startRunner(time: Time): void {
    const { runs } = this.stores
    const take = async () => {
      for (;;) {
        const owner = crypto.randomUUID()
        const now = time.now()
        const run = await runs.claim({ owner, now, lease: RUN_LEASE })
        if (!run) return
        const made: MadeRun = { account: run.account, began: now }
        this.runs.push(made)
        const { takes, error } = this.backUp(run.account)
        void (async () => {
          for (let left = takes; left > 0; left -= 5 * MINUTE) {
            await time.sleep(Math.min(left, 5 * MINUTE))
            await runs.heartbeat(run.id, owner, {
              leaseExpiration: time.now() + RUN_LEASE,
              progress: null,
              now: time.now(),
            })
          }
          made.ended = time.now()
          if (error) made.error = error
          await runs.finish(run.id, owner, {
            ...(error
              ? { state: 'failed', error }
              : { state: 'done', outcome: { kind: 'incremental' } }),
            now: time.now(),
          })
        })()
      }
    }
    this.#kick = () => void take()
    void (async () => {
      for (;;) {
        await take()
        await time.sleep(5 * MINUTE)
      }
    })()
  }

  /** What the service's agent may do in the Space. */
  allow(options: { expiration?: number } = {}): Promise<Delegation> {
    const abilities = ['backup/run', ...BACKUP_ABILITIES]
    return allow(this.space, this.agent, abilities, options)
  }

  get #config(): InvocationConfig {
    return { issuer: this.space, with: this.space.did() }
  }

  get #options() {
    this.#invocations += 1
    return {
      connection: this.#connection(),
      nonce: `${this.#invocations}`,
    }
  }

  async schedule(
    account: AccountDID,
    rhythm: { every: number } | { cron: string; timezone: string },
    delegation?: Delegation
  ) {
    const { ok, error } = await Backup.schedule(
      this.#config,
      { account, ...rhythm, delegation: delegation ?? (await this.allow()) },
      this.#options
    )
    if (error) throw new Error(`${error.name}: ${error.message}`)
    return ok.schedule
  }

  /** Has a backup made now, by somebody who is no schedule. */
  async runNow(account: AccountDID, include?: 'blobs'[]) {
    const { error } = await Backup.run(
      this.#config,
      {
        account,
        ...(include ? { include } : {}),
        delegation: await this.allow(),
      },
      this.#options
    )
    if (error) throw new Error(`${error.name}: ${error.message}`)
  }

  async unschedule(account: AccountDID) {
    const { error } = await Backup.unschedule(
      this.#config,
      { account },
      this.#options
    )
    if (error) throw new Error(`${error.name}: ${error.message}`)
  }

  /** @param end - Unix milliseconds at which the pause ends by itself */
  async pause(account: AccountDID, end?: number) {
    const until = end === undefined ? undefined : Math.floor(end / SECOND)
    const { ok, error } = await Backup.pause(
      this.#config,
      { account, until },
      this.#options
    )
    if (error) throw new Error(`${error.name}: ${error.message}`)
    return ok.schedule
  }

  async resume(account: AccountDID) {
    const { ok, error } = await Backup.resume(
      this.#config,
      { account },
      this.#options
    )
    if (error) throw new Error(`${error.name}: ${error.message}`)
    return ok.schedule
  }

  async revoke(delegation: Delegation) {
    const { error } = await Revocation.revoke(
      this.#config,
      delegation,
      this.#options
    )
    if (error) throw new Error(`${error.name}: ${error.message}`)
  }

  /** The schedule as it is told. */
  async present(account: AccountDID) {
    const { ok, error } = await Backup.schedules(this.#config, this.#options)
    if (error) throw new Error(`${error.name}: ${error.message}`)
    const found = ok.schedules.find((each) => each.account === account)
    if (!found) throw new Error(`there is no schedule of ${account}`)
    return found
  }

  /** Runs of one account, in the order in which they began. */
  runsOf(account: AccountDID): MadeRun[] {
    return this.runs.filter((run) => run.account === account)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill()
    await this.stores[Symbol.asyncDispose]()
    this.time[Symbol.dispose]()
  }
}

/** Always the same ones: where schedules are spread to follows from the Space. */
async function actor(seed: number): Promise<ed25519.EdSigner> {
  return withNativeSigning(await ed25519.derive(new Uint8Array(32).fill(seed)))
}

export function accountOf(name: string): AccountDID {
  const text = name.toLowerCase().replaceAll(/[^a-z2-7]/g, 'x')
  return `did:plc:${text.padEnd(24, 'a').slice(0, 24)}`
}
