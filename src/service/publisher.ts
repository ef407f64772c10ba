import type { Delegation } from '@ucanto/interface'
import type { Logger } from 'pino'
import { orAbort } from '../atproto/or-abort.ts'
import {
  recordAuthorization,
  type BackupLimits,
  type Time,
} from '../backup/index.ts'
import type { Authorization, DID } from '../space/index.ts'
import { decodeDelegations } from './authority.ts'
import type { GrantKeeper } from './grants.ts'
import { openReader, openSpace, type SpacesContext } from './space.ts'

/** When authorizations get into their Spaces. Times in milliseconds. */
export interface PublisherPolicy {
  /** How long an authorization waits for a backup to go along with. */
  patience: number
  /** How often a host is told again what it has not confirmed. */
  returns: number
  /** How often to look for such that have waited for so long. */
  interval: number
  /** How long writing one may take. */
  timeout: number
  /** Authorizations that are looked at in one go. */
  batch: number
  /** How many of them are written at the same time. */
  concurrency: number
}

/** Numbers of an authorization, before it is left to the next look. */
const MAX_ROUNDS = 3

export const PUBLISHER_POLICY: PublisherPolicy = {
  patience: 15 * 60_000,
  returns: 60 * 60_000,
  interval: 60_000,
  timeout: 20_000,
  batch: 100,
  concurrency: 4,
}

export interface PublisherContext extends SpacesContext {
  grants: Pick<
    GrantKeeper,
    'pending' | 'pendingOlderThan' | 'attempted' | 'published' | 'giveBack'
  >
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
  let looking: Promise<unknown> | undefined

  const publish = async (space: DID, account: DID): Promise<boolean> => {
    // Where the Space has another one by a greater number, the pending one is
    // sealed anew.
    try {
      for (let round = 0; round < MAX_ROUNDS; round++) {
        const pending = await grants.pending(space, account)
        if (!pending) return true
        if (!(await write(space, account, pending))) break
      }
    } catch (error) {
      // Of one, which must not be in the way of others.
      logger.error(
        { err: error, space, account },
        'an authorization cannot get into its Space'
      )
    }
    await grants.attempted(space, account)
    return false
  }

  /** @returns whether the Space has it, or the one that it is to follow */
  const write = async (
    space: DID,
    account: DID,
    {
      agent,
      authorization,
      delegation,
    }: NonNullable<Awaited<ReturnType<typeof grants.pending>>>
  ): Promise<boolean> => {
    // It was found in the Space; the next backup takes it along.
    if (delegation.length === 0) return false
    const log = logger.child({ space, account, seq: authorization.seq })
    const signal = AbortSignal.any([
      stopping.signal,
      AbortSignal.timeout(policy.timeout),
    ])
    let found: Authorization | undefined
    try {
      const opened = openSpace(context, {
        space: space as `did:key:${string}`,
        proofs: proofsIn(delegation),
        signal,
      })
      found = await recordAuthorization(
        {
          ...context,
          ...opened,
          reader,
          onWarning: (message, error) => log.warn({ err: error }, message),
        },
        { account, agent, authorization },
        { signal }
      )
    } catch (error) {
      if (stopping.signal.aborted) return false
      log.warn({ err: error }, 'an authorization waits for its Space')
      return false
    }
    if (await grants.published(space, account, found)) {
      log.info('an authorization is in its Space')
    }
    return true
  }

  const publishDue = async () => {
    const before = time.now() - policy.patience
    const due = await grants.pendingOlderThan(before, { limit: policy.batch })
    const next = due.values()
    // Each takes the next one: none waits for one that takes its time.
    const work = async () => {
      for (const { space, account } of next) {
        if (stopping.signal.aborted) return
        await publish(space, account)
      }
    }
    await Promise.all(Array.from({ length: policy.concurrency }, work))
  }
  const giveBackDue = async () => {
    const { signal } = stopping
    const before = time.now() - policy.returns
    const options = { limit: policy.batch, signal }
    // What a host has not confirmed is kept, and told again.
    await orAbort(grants.giveBack(before, options), signal)
  }
  const repeat = async (work: () => Promise<void>, failure: string) => {
    while (!stopping.signal.aborted) {
      await work().catch((error: unknown) => {
        if (!stopping.signal.aborted) logger.error({ err: error }, failure)
      })
      await time.sleep(policy.interval, stopping.signal).catch(() => {})
    }
  }
  // Spaces and hosts that do not answer hold up each other in no way.
  const look = () =>
    Promise.all([
      repeat(publishDue, 'looking for authorizations failed'),
      repeat(giveBackDue, 'giving authorizations back failed'),
    ])

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
