import { CompiledQuery, type Kysely } from 'kysely'
import {
  RateLimiterMemory,
  RateLimiterPostgres,
  type RateLimiterAbstract,
  type RateLimiterRes,
} from 'rate-limiter-flexible'
import type { Tables } from '../stores/index.ts'

/** Seconds that a rate so small is counted over that there is less than one in a period. */
const LONG_PERIOD = 60

/**
 * Requests that a process takes out of the budget at once, at most: so many
 * requests cost one statement of the database.
 */
const BATCH = 10

/** Processes that a budget is meant to be enough for. */
const SHARES = 10

export interface HostBudgetOptions {
  /** Requests a minute to one host; 0 for any number. */
  rate: number
  /** Seconds that they are counted over: short, so that nobody waits long. */
  period: number
  /** PostgreSQL that all processes share; left out, this one has it all. */
  database?: Kysely<Tables>
}

/** How many requests may be made to each host. */
export interface HostBudget {
  /**
   * Takes one request out of the budget of a host.
   *
   * @returns 0 if it may be made; else milliseconds until there are more
   */
  take(host: string): Promise<number>
  /** @returns requests that this process knows to be left now, if it knows */
  remaining(host: string): number | undefined
  /**
   * @returns hosts for which this process knows that there is nothing left, with
   *   the Unix milliseconds from which on there is
   */
  spent(): Map<string, number>
}

interface Share {
  /** Requests that this process has taken out and not made. */
  left: number
  /** Whether it wanted more than there were. */
  isSpent: boolean
  /** Requests that were left to all when it did. */
  remaining: number
  /** Unix milliseconds from which on there is a new budget. */
  until: number
  refill?: Promise<number>
}

/**
 * Limits the requests to each host, those of all processes together. In any
 * five minutes there are at most 21 periods of 15 seconds: a rate of 480 never
 * makes more than 2,520 of the 3,000 requests that hosts permit.
 */
export function createHostBudget({
  rate,
  period,
  database,
}: HostBudgetOptions): HostBudget {
  if (rate === 0) {
    return {
      take: () => Promise.resolve(0),
      remaining: () => undefined,
      spent: () => new Map(),
    }
  }
  const duration = rate < 60 ? LONG_PERIOD : period
  const points = Math.floor((rate * duration) / 60)
  const batch = Math.max(1, Math.min(BATCH, Math.floor(points / SHARES)))
  const limiter = createLimiter({ points, duration, database })
  const shares = new Map<string, Share>()

  /** @returns 0, or milliseconds until there are more */
  const refill = async (host: string, share: Share): Promise<number> => {
    try {
      const { remainingPoints, msBeforeNext } = await limiter.consume(
        host,
        batch
      )
      share.left = batch
      share.isSpent = false
      share.remaining = remainingPoints
      share.until = Date.now() + msBeforeNext
      return 0
    } catch (refused) {
      if (refused instanceof Error) throw refused
      const { consumedPoints, msBeforeNext } = refused as RateLimiterRes
      share.until = Date.now() + msBeforeNext
      share.remaining = 0
      // Who asks for more than there is left gets that: it is counted as taken.
      // Nothing is told of those that come later.
      const before = consumedPoints > 0 ? consumedPoints - batch : points
      share.left = Math.max(0, points - before)
      share.isSpent = share.left === 0
      return share.isSpent ? Math.max(1, msBeforeNext) : 0
    } finally {
      share.refill = undefined
    }
  }

  const forgetOld = () => {
    const now = Date.now()
    for (const [host, { until, refill }] of shares) {
      if (until <= now && !refill) shares.delete(host)
    }
  }

  return {
    async take(host) {
      if (shares.size >= MAX_SHARES) forgetOld()
      let share = shares.get(host)
      if (!share) {
        share = { left: 0, isSpent: false, remaining: 0, until: 0 }
        shares.set(host, share)
      }
      for (;;) {
        // What was taken out of an earlier budget was meant for that time.
        if (share.until <= Date.now()) share.left = 0
        if (share.left > 0) {
          share.left -= 1
          return 0
        }
        const wait = await (share.refill ??= refill(host, share))
        if (wait > 0) return wait
      }
    },

    remaining(host) {
      const share = shares.get(host)
      if (!share || share.until <= Date.now()) return points
      return share.left + share.remaining
    },

    spent() {
      const now = Date.now()
      return new Map(
        [...shares]
          .filter(([, { isSpent, until }]) => isSpent && until > now)
          .map(([host, { until }]) => [host, until])
      )
    },
  }
}

/** Hosts after which those are forgotten that were not asked lately. */
const MAX_SHARES = 1_000

function createLimiter({
  database,
  ...rate
}: {
  points: number
  duration: number
  database: Kysely<Tables> | undefined
}): RateLimiterAbstract {
  const options = { ...rate, keyPrefix: '' }
  if (!database) return new RateLimiterMemory(options)
  return new RateLimiterPostgres({
    ...options,
    // Until there are more, the database is not asked whether there are.
    inMemoryBlockOnConsumed: rate.points + 1,
    storeType: 'pool',
    storeClient: {
      async query({ text, values }: { text: string; values: unknown[] }) {
        const { rows } = await database.executeQuery(
          CompiledQuery.raw(text, values)
        )
        return { rows, rowCount: rows.length }
      },
    },
    tableName: 'host_budgets',
    tableCreated: true,
    clearExpiredByTimeout: false,
  })
}
