import { LRUCache } from 'lru-cache'
import PQueue from 'p-queue'
import type { Logger } from 'pino'
import type { HostGate, HostRequest, HostVisit } from '../atproto/index.ts'
import { HostUnavailableError, type Time } from '../backup/index.ts'
import type {
  HostStore,
  HostTrouble,
  HostTroubleKind,
} from '../stores/index.ts'
import {
  circuitAt,
  CIRCUIT_POLICY,
  type Circuit,
  type CircuitPolicy,
} from './circuit.ts'
import type { HostBudget } from './host-budget.ts'

/** How this process treats hosts. Times in milliseconds. */
export interface HostPolicy extends CircuitPolicy {
  /** What the requests to one host are counted over; whole seconds. */
  period: number
  /** Requests to one host at the same time. */
  concurrency: number
  /** After so long at most it is seen what other processes learnt of a host. */
  refresh: number
  /** The longest that a run that has begun waits for one request. */
  patience: number
}

export const HOST_POLICY: HostPolicy = {
  ...CIRCUIT_POLICY,
  period: 15_000,
  concurrency: 16,
  refresh: 1_000,
  patience: 60_000,
}

/** Hosts that a process remembers. */
const MAX_HOSTS = 5_000

/** How often, and how long after, traces of hosts are removed, in milliseconds. */
const FORGET = { every: 60 * 60_000, after: 24 * 60 * 60_000 }

export interface HostsOptions {
  store: HostStore
  budget: HostBudget
  /** Accounts that may wait for requests at the same time; others go on later. */
  waiting: number
  time: Time
  logger: Logger
  policy: HostPolicy
}

/** A host as this process knows it. */
export interface HostSnapshot {
  host: string
  /** Requests that are left for now; nothing where there is no limit. */
  remaining: number | undefined
  /** `available`, or why it is left alone. */
  state: 'available' | HostTroubleKind
  /** Unix milliseconds until which it is left alone. */
  until?: number
}

/** Keeps what hosts of accounts can ask of those who visit them. */
export interface Hosts extends HostGate {
  /**
   * @returns hosts that are left alone or that nobody here may ask any more for
   *   now, with the Unix milliseconds from which on somebody may try; these may
   *   be past when nobody has
   */
  unavailable(): Promise<Map<string, number>>

  /**
   * @returns the Unix milliseconds from which on somebody may try a host that is
   *   not asked for now, as this process knows; nothing if it may be asked
   */
  unavailableUntil(host: string): Promise<number | undefined>

  /** @returns the hosts that this process has visited lately */
  snapshot(): HostSnapshot[]
}

interface Host {
  queue: PQueue
  trouble: HostTrouble | undefined
  /** Unix milliseconds at which the trouble was looked up. */
  looked: number
  looking?: Promise<void> | undefined
  /** The last account for which the host said that it failed. */
  faulted?: string | undefined
}

/**
 * Lets requests to hosts through: as many as all processes together may make,
 * not too many at the same time, and none to a host that fails or wants to be
 * left alone. Then those of a run that has not begun are refused at once. A run
 * that has begun waits while there are no requests left, as long as not too
 * many do: whatever a host is like, there is room for the accounts of others.
 */
export function createHosts({
  store,
  budget,
  waiting: maxWaiting,
  time,
  logger,
  policy,
}: HostsOptions): Hosts {
  const hosts = new LRUCache<string, Host>({ max: MAX_HOSTS })
  /** How many requests wait, by account. */
  const waiting = new Map<string, number>()
  let forgotten = time.now()

  const hostOf = (name: string): Host => {
    let host = hosts.get(name)
    if (!host) {
      host = {
        queue: new PQueue({ concurrency: policy.concurrency }),
        trouble: undefined,
        looked: -Infinity,
      }
      hosts.set(name, host)
    }
    return host
  }

  const unavailable = (host: string, kind: HostTroubleKind, until: number) => {
    const seconds = Math.max(1, Math.ceil((until - time.now()) / 1000))
    return new HostUnavailableError(
      `${host} ${REASONS[kind]}. Try again in ${seconds} seconds.`,
      { retryAfter: seconds }
    )
  }

  const change = async (
    name: string,
    decide: (
      circuit: Circuit,
      present: HostTrouble | undefined
    ) => HostTrouble | undefined
  ): Promise<HostTrouble | undefined> => {
    let before: HostTrouble | undefined
    const trouble = await store.change(name, (present) => {
      before = present
      return decide(circuitAt(time.now(), policy), present)
    })
    Object.assign(hostOf(name), { trouble, looked: time.now() })
    if (trouble && trouble.closures > (before?.closures ?? 0)) {
      logger.warn({ host: name, ...trouble }, 'a host is left alone')
    } else if (before && before.closures > 0 && !trouble) {
      logger.info({ host: name }, 'a host is back')
    }
    return trouble
  }

  const lookUp = async (name: string, host: Host): Promise<void> => {
    const { looked } = host
    const trouble = await store.get(name)
    // What this process has decided meanwhile is newer.
    if (host.looked === looked) {
      Object.assign(host, { trouble, looked: time.now() })
    }
  }

  /** @returns what was known of the host a short time ago at the latest */
  const recent = async (name: string): Promise<HostTrouble | undefined> => {
    const host = hostOf(name)
    if (time.now() - host.looked >= policy.refresh) {
      await (host.looking ??= lookUp(name, host).finally(() => {
        host.looking = undefined
      }))
    }
    return host.trouble
  }

  /** @throws {@link HostUnavailableError} when the host is left alone */
  const look = async (name: string): Promise<void> => {
    const trouble = await recent(name)
    const admission = circuitAt(time.now(), policy).admit(trouble)
    if (!admission.open) {
      throw unavailable(name, trouble?.kind ?? 'failing', admission.until)
    }
  }

  /**
   * Waits until there is a request left in the budget.
   *
   * @throws {@link HostUnavailableError}
   */
  const pay = async (
    { host, account, patient }: HostRequest,
    signal: AbortSignal | undefined
  ): Promise<void> => {
    const deadline = time.now() + policy.patience
    for (;;) {
      const wait = await budget.take(host)
      if (wait === 0) return
      const until = time.now() + wait
      const waits = waiting.get(account) ?? 0
      if (
        !patient ||
        until > deadline ||
        (waits === 0 && waiting.size >= maxWaiting)
      ) {
        const seconds = Math.max(1, Math.ceil(wait / 1000))
        throw new HostUnavailableError(
          `${host} was asked as often as it may be for now. Try again in ${seconds} seconds.`,
          { retryAfter: seconds }
        )
      }
      waiting.set(account, waits + 1)
      try {
        await time.sleep(wait, signal)
      } finally {
        const others = (waiting.get(account) ?? 1) - 1
        if (others > 0) waiting.set(account, others)
        else waiting.delete(account)
      }
      await look(host)
    }
  }

  /** Waits for one of the places at the host. */
  const takePlace = async (
    { host, patient }: HostRequest,
    signal: AbortSignal | undefined
  ): Promise<() => void> => {
    const taken = Promise.withResolvers<() => void>()
    hostOf(host)
      .queue.add(
        () =>
          new Promise<void>((release) => {
            taken.resolve(release)
          }),
        // What has not begun does not wait behind all that others have to do.
        { priority: patient ? 0 : 1, ...(signal ? { signal } : {}) }
      )
      .catch(taken.reject)
    return taken.promise
  }

  /** Makes the request the probe, if the host was left alone. */
  const admit = async (name: string): Promise<{ isProbe: boolean }> => {
    await look(name)
    if (!hostOf(name).trouble?.closures) return { isProbe: false }
    let refused: number | undefined
    let isProbe = false
    const trouble = await change(name, (circuit, present) => {
      const admission = circuit.admit(present)
      refused = admission.open ? undefined : admission.until
      isProbe = admission.open && admission.probe !== undefined
      return admission.open ? (admission.probe ?? present) : present
    })
    if (refused !== undefined) {
      throw unavailable(name, trouble?.kind ?? 'failing', refused)
    }
    return { isProbe }
  }

  const forgetOld = async () => {
    const now = time.now()
    if (now - forgotten < FORGET.every) return
    forgotten = now
    try {
      await store.forget(now - FORGET.after)
    } catch (error) {
      logger.warn({ err: error }, 'traces of hosts could not be removed')
    }
  }

  /** What cannot be looked up is as good as a no: nobody goes there blindly. */
  const named = (error: unknown, host: string): unknown => {
    if (error instanceof HostUnavailableError) return error
    return new HostUnavailableError(
      `Whether ${host} may be asked cannot be told just now. Try again in ${UNKNOWN} seconds.`,
      { cause: error, retryAfter: UNKNOWN }
    )
  }

  return {
    async enter(request, { signal } = {}) {
      const { host: name, account } = request
      try {
        await look(name)
        await pay(request, signal)
      } catch (error) {
        signal?.throwIfAborted()
        throw named(error, name)
      }
      const release = await takePlace(request, signal)
      let isProbe: boolean
      try {
        ;({ isProbe } = await admit(name))
        await forgetOld()
      } catch (error) {
        release()
        throw named(error, name)
      }
      return createVisit({ name, account, isProbe, release })
    },

    async unavailable() {
      const closed = await store.closed()
      return new Map([
        ...budget.spent(),
        ...[...closed].map(([host, { until }]) => [host, until] as const),
      ])
    },

    async unavailableUntil(name) {
      const admission = circuitAt(time.now(), policy).admit(await recent(name))
      return admission.open ? budget.spent().get(name) : admission.until
    },

    snapshot() {
      const now = time.now()
      return [...hosts.entries()].map(([host, { trouble }]) => ({
        host,
        remaining: budget.remaining(host),
        ...(trouble && trouble.closures > 0 && trouble.until > now
          ? { state: trouble.kind, until: trouble.until }
          : { state: 'available' }),
      }))
    },
  }

  function createVisit({
    name,
    account,
    isProbe,
    release,
  }: {
    name: string
    account: string
    isProbe: boolean
    release: () => void
  }): HostVisit {
    let isOver = false
    /** The first that is told counts. */
    const end = async (
      decide: (
        circuit: Circuit,
        present: HostTrouble | undefined
      ) => HostTrouble | undefined
    ): Promise<HostTrouble | undefined> => {
      if (isOver) return undefined
      isOver = true
      release()
      try {
        return await change(name, decide)
      } catch (error) {
        logger.warn(
          { err: error, host: name },
          'what became of a request to a host could not be kept'
        )
        return undefined
      }
    }
    const leave = () => {
      isOver = true
      release()
    }

    return {
      async answered() {
        const host = hostOf(name)
        host.faulted = undefined
        // Of most hosts nothing is kept, and most answers change nothing.
        if (!isProbe && !host.trouble?.failures) return leave()
        await end((circuit, present) => circuit.answered(present, isProbe))
      },

      async limited(retryAfter) {
        const trouble = await end((circuit, present) =>
          circuit.limited(present, isProbe, retryAfter)
        )
        const until = trouble?.until ?? time.now() + policy.pause
        return unavailable(name, 'limited', until)
      },

      async faulted() {
        const host = hostOf(name)
        const isSame = host.faulted === account
        host.faulted = account
        // One account that the host has trouble with is no trouble of others.
        if (isSame && !isProbe) return leave()
        await end((circuit, present) => circuit.failed(present, isProbe))
      },

      async failed(reason) {
        logger.debug({ host: name, account, reason }, 'a host failed')
        await end((circuit, present) => circuit.failed(present, isProbe))
      },

      async left() {
        if (!isProbe) return leave()
        await end((circuit, present) => circuit.left(present, isProbe))
      },
    }
  }
}

/** Seconds to wait when the database does not tell. */
const UNKNOWN = 30

const REASONS: Record<HostTroubleKind, string> = {
  failing: 'failed several times in a row and is left alone for a while',
  limited: 'wants fewer requests',
  probed: 'failed, and somebody is finding out whether it is back',
}
