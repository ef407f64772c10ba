import type { Delegation } from '@ucanto/interface'
import type { Logger } from 'pino'
import { recordChange, type BackupLimits, type Time } from '../backup/index.ts'
import { setAuthorization, type DID } from '../space/index.ts'
import { decodeDelegations } from './authority.ts'
import type { GrantKeeper } from './grants.ts'
import { openReader, openSpace, type SpacesContext } from './space.ts'

/** When authorizations get into their Spaces. Times in milliseconds. */
export interface PublisherPolicy {
  /** How long an authorization waits for a backup to go along with. */
  patience: number
  /** How often to look for such that have waited for so long. */
  interval: number
  /** How long writing one may take. */
  timeout: number
  /** Authorizations that are looked at at once. */
  batch: number
}

export const PUBLISHER_POLICY: PublisherPolicy = {
  patience: 15 * 60_000,
  interval: 60_000,
  timeout: 20_000,
  batch: 100,
}

export interface PublisherContext extends SpacesContext {
  grants: Pick<GrantKeeper, 'pending' | 'pendingOlderThan' | 'published'>
  limits: BackupLimits
  time: Time
  logger: Logger
  policy: PublisherPolicy
}

/**
 * Writes the service's authorizations into the Spaces that they are for, where
 * no backup has taken them along in time. Until the clock has one, the service
 * keeps it.
 */
export interface Publisher {
  /** Looks from now on. */
  start(): void
  /**
   * Writes the authorization for one account, if it is not in the Space yet.
   *
   * @returns whether the Space has it now
   */
  publish(space: DID, account: DID): Promise<boolean>
  /** Ends what is under way; it is done again later, here or elsewhere. */
  stop(): Promise<void>
}

export function createPublisher(context: PublisherContext): Publisher {
  const { grants, time, logger, policy } = context
  const reader = openReader(context)
  const stopping = new AbortController()
  let looking: Promise<void> | undefined

  const publish = async (space: DID, account: DID): Promise<boolean> => {
    const pending = await grants.pending(space, account)
    if (!pending) return true
    const { agent, authorization, delegation } = pending
    // It was found in the Space; the next backup takes it along.
    if (delegation.length === 0) return false
    const log = logger.child({ space, account, seq: authorization.seq })
    const signal = AbortSignal.any([
      stopping.signal,
      AbortSignal.timeout(policy.timeout),
    ])
    try {
      const opened = openSpace(context, {
        space: space as `did:key:${string}`,
        proofs: proofsIn(delegation),
        signal,
      })
      await recordChange(
        {
          ...context,
          ...opened,
          reader,
          onWarning: (message, error) => log.warn({ err: error }, message),
        },
        (fetcher, state) =>
          setAuthorization(fetcher, state, { account, agent, authorization }),
        { signal }
      )
    } catch (error) {
      if (stopping.signal.aborted) return false
      log.warn({ err: error }, 'an authorization waits for its Space')
      return false
    }
    await grants.published(space, account, authorization.seq)
    log.info('an authorization is in its Space')
    return true
  }

  const publishDue = async () => {
    const due = await grants.pendingOlderThan(time.now() - policy.patience, {
      limit: policy.batch,
    })
    for (const { space, account } of due) {
      if (stopping.signal.aborted) return
      await publish(space, account)
    }
  }
  const look = async () => {
    while (!stopping.signal.aborted) {
      await publishDue().catch((error: unknown) => {
        logger.error({ err: error }, 'looking for authorizations failed')
      })
      await time.sleep(policy.interval, stopping.signal).catch(() => {})
    }
  }

  return {
    start() {
      looking ??= look()
    },
    publish,
    async stop() {
      stopping.abort()
      await looking
    },
  }
}

/** What the user gave, without the task that it came with. */
export function proofsIn(delegation: Uint8Array): Delegation[] {
  return decodeDelegations(delegation).slice(1)
}
