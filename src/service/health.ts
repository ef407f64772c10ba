import type { Logger } from 'pino'
import type { Time } from '../backup/index.ts'
import type { Stores } from '../stores/index.ts'

/** Milliseconds that the database has to answer. */
const TIMEOUT = 2_000

/** What a service must have so that work may be sent to it. */
export interface Readiness {
  status: 'ready' | 'not ready'
  /** What holds and what does not. */
  checks: Record<'migrations' | 'database' | 'accepting', boolean>
  /** What is not as it should be, for people. */
  reasons: string[]
}

/** Whether a process works, and whether work may be sent to it. */
export interface Health {
  /** The stores are open, and their tables up to date. */
  opened(stores: Pick<Stores, 'ping'>): void
  /** The service takes no more work. */
  drain(): void
  ready(): Promise<Readiness>
}

/** The health of a process that is starting. */
export function createHealth({
  time,
  logger,
}: {
  time: Time
  logger: Logger
}): Health {
  let stores: Pick<Stores, 'ping'> | undefined
  let accepting = true

  const answers = async (): Promise<boolean> => {
    if (!stores) return false
    const waited = new AbortController()
    try {
      await Promise.race([
        stores.ping(),
        time.sleep(TIMEOUT, waited.signal).then(() => {
          throw new Error(`no answer within ${TIMEOUT} ms`)
        }),
      ])
      return true
    } catch (error) {
      if (accepting) logger.error({ err: error }, 'the store does not answer')
      return false
    } finally {
      waited.abort()
    }
  }

  return {
    opened(opened) {
      stores = opened
    },
    drain() {
      accepting = false
    },
    async ready() {
      const migrations = stores !== undefined
      const database = await answers()
      const reasons = [
        ...(migrations ? [] : ['the tables are not up to date yet']),
        ...(migrations && !database ? ['the database does not answer'] : []),
        ...(accepting ? [] : ['the service is going down']),
      ]
      return {
        status: reasons.length === 0 ? 'ready' : 'not ready',
        checks: { migrations, database, accepting },
        reasons,
      }
    },
  }
}
