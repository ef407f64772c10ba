import type { Authorization } from '@ucanto/interface'
import { RateLimiterMemory, type RateLimiterRes } from 'rate-limiter-flexible'
import { RateLimitedError } from './errors.ts'

/** Seconds that a rate is counted over. */
const PERIOD = 60

export interface RatesOptions {
  /** Invocations a minute in one Space; 0 for any number. */
  spaceRate: number
  /** Invocations a minute by one issuer; 0 for any number. */
  issuerRate: number
  /** DID of the service's agent, which is not limited. */
  agent: string
}

/** How often one may invoke. */
export interface Rates {
  /**
   * Counts an invocation whose proofs are valid: nobody uses up the rate of
   * others.
   *
   * @throws {@link RateLimitedError}
   */
  count(authorization: Authorization): Promise<void>
}

/** Limits the rates in this process. */
export function createRates({
  spaceRate,
  issuerRate,
  agent,
}: RatesOptions): Rates {
  const limiters = [
    { rate: issuerRate, who: 'this agent', keyOf: issuerOf },
    { rate: spaceRate, who: 'this Space', keyOf: resourceOf },
  ]
    .filter(({ rate }) => rate > 0)
    .map(({ rate, ...limiter }) => ({
      ...limiter,
      rate,
      limiter: new RateLimiterMemory({ points: rate, duration: PERIOD }),
    }))
  return {
    async count(authorization) {
      if (issuerOf(authorization) === agent) return
      for (const { limiter, rate, who, keyOf } of limiters) {
        try {
          await limiter.consume(keyOf(authorization))
        } catch (refused) {
          if (refused instanceof Error) throw refused
          const { msBeforeNext } = refused as RateLimiterRes
          const retryAfter = Math.max(1, Math.ceil(msBeforeNext / 1000))
          throw new RateLimitedError(
            `more than ${rate} invocations a minute for ${who}; try again in ${retryAfter} seconds`,
            retryAfter
          )
        }
      }
    },
  }
}

function issuerOf({ delegation }: Authorization): string {
  return delegation.issuer.did()
}

function resourceOf({ delegation }: Authorization): string {
  return delegation.capabilities[0].with
}
