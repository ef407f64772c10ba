import type { HostTrouble } from '../stores/index.ts'

/** When a host is left alone, and for how long. Times in milliseconds. */
export interface CircuitPolicy {
  /** Requests that fail one after another until the host is left alone. */
  failures: number
  /** How long it is left alone at first; each time in a row twice as long. */
  closure: number
  /** How long it is left alone at most for its failures. */
  maxClosure: number
  /** How long a host is left alone that says nothing but "too many". */
  pause: number
  /** The longest that a host may ask to be left alone. */
  maxPause: number
  /** After so long without an answer to one request, another is tried. */
  probe: number
}

export const CIRCUIT_POLICY: CircuitPolicy = {
  failures: 5,
  closure: 30_000,
  maxClosure: 30 * 60_000,
  pause: 60_000,
  maxPause: 60 * 60_000,
  probe: 30_000,
}

/** What becomes of a host, decided at a point in time. */
export interface Circuit {
  /** Whether somebody may ask the host, as the probe that decides or as one of many. */
  admit(trouble: HostTrouble | undefined): Admission
  /** One answered. */
  answered(
    trouble: HostTrouble | undefined,
    isProbe: boolean
  ): HostTrouble | undefined
  /** One failed. */
  failed(trouble: HostTrouble | undefined, isProbe: boolean): HostTrouble
  /**
   * The host wants fewer requests.
   *
   * @param retryAfter - seconds until the next is welcome, if it says so
   */
  limited(
    trouble: HostTrouble | undefined,
    isProbe: boolean,
    retryAfter: number | undefined
  ): HostTrouble
  /** One was given up before anything was known. */
  left(
    trouble: HostTrouble | undefined,
    isProbe: boolean
  ): HostTrouble | undefined
}

export type Admission =
  | { open: true; probe?: HostTrouble }
  /** Unix milliseconds until which nobody is admitted. */
  | { open: false; until: number }

/**
 * Decides what becomes of a host after each request. While it is left alone,
 * what comes of requests that were under way changes little: only the probe,
 * the one request after it, tells whether the host is back.
 *
 * @param now - Unix milliseconds
 * @param random - at least 0, below 1
 */
export function circuitAt(
  now: number,
  policy: CircuitPolicy,
  random: () => number = Math.random
): Circuit {
  const isClosed = (trouble: HostTrouble | undefined): trouble is HostTrouble =>
    !!trouble && trouble.closures > 0
  /** Not all of those that were away together come back together. */
  const jittered = (wait: number) => Math.round((wait * (1 + random())) / 2)
  const longer = (base: number, closures: number, max: number) =>
    Math.min(max, base * 2 ** closures)

  return {
    admit(trouble) {
      if (!isClosed(trouble)) return { open: true }
      if (trouble.until > now) return { open: false, until: trouble.until }
      return {
        open: true,
        probe: { ...trouble, kind: 'probed', until: now + policy.probe },
      }
    },

    answered(trouble, isProbe) {
      return isClosed(trouble) && !isProbe ? trouble : undefined
    },

    failed(trouble, isProbe) {
      const { closures, failures } = trouble ?? { closures: 0, failures: 0 }
      const more = { closures, failures: failures + 1 }
      if (isClosed(trouble) && !isProbe) return trouble
      if (!isClosed(trouble) && more.failures < policy.failures) {
        return { ...more, kind: 'failing', until: now }
      }
      const wait = longer(policy.closure, closures, policy.maxClosure)
      return {
        ...more,
        closures: closures + 1,
        kind: 'failing',
        until: now + jittered(wait),
      }
    },

    limited(trouble, isProbe, retryAfter) {
      const { closures, failures } = trouble ?? { closures: 0, failures: 0 }
      const isNews = isProbe || !isClosed(trouble)
      const wait =
        retryAfter === undefined
          ? // Those that were under way hear the same once more.
            longer(policy.pause, isNews ? closures : 0, policy.maxPause)
          : Math.min(Math.max(1, retryAfter) * 1000, policy.maxPause)
      return {
        failures,
        closures: closures + (isNews ? 1 : 0),
        kind: 'limited',
        until: Math.max(now + wait, isNews ? 0 : trouble.until),
      }
    },

    left(trouble, isProbe) {
      return isProbe && trouble ? { ...trouble, until: now } : trouble
    },
  }
}
