import type { Delegation, Result, Signer } from '@ucanto/interface'
import type { Logger } from 'pino'
import { BlockOverlay } from '../backup/block-overlay.ts'
import {
  AgentNotAuthorizedError,
  BackupError,
  recordChange,
  shareParts,
  SpaceUnauthorizedError,
  type BackupLimits,
  type Time,
} from '../backup/index.ts'
import type { Authorization } from '../capabilities/index.ts'
import {
  AccountNotFoundError,
  DecodeError,
  deriveIdentity,
  mergeHeads,
  MissingBlockError,
  UnreadableStateError,
  type DID,
} from '../space/index.ts'
import { RateLimitedError } from './errors.ts'
import { failure } from './invocation.ts'
import {
  abortable,
  openReader,
  openSpace,
  type SpacesContext,
} from './space.ts'

/** What one call may take. Times in milliseconds. */
export interface SharerPolicy {
  /** Backups that one call shares at most. */
  limit: number
  /** How long one call looks for what it can share. */
  patience: number
  /** How long writing it may take. */
  timeout: number
  /** Spaces that are shared in at the same time. */
  concurrency: number
  /** When whoever has to wait may ask again. */
  retryAfter: number
}

/** Clients wait for an answer for a minute. */
export const SHARER_POLICY: SharerPolicy = {
  limit: 500,
  patience: 15_000,
  timeout: 20_000,
  concurrency: 4,
  retryAfter: 5_000,
}

export interface SharerContext extends SpacesContext {
  agent: Signer
  limits: BackupLimits
  time: Time
  logger: Logger
  policy: SharerPolicy
}

/** What is shared, and by what power it is put into the Space. */
export interface SharerRequest {
  space: `did:key:${string}`
  account: DID
  /** The agent that gets the keys. */
  agent: DID
  before?: string | undefined
  proofs: Delegation[]
}

/**
 * Shares private parts that the service can open with other agents of their
 * accounts, while they wait for it.
 */
export interface Sharer {
  /**
   * @returns what was shared, or a failure by its name
   * @throws {@link RateLimitedError} when others are shared with just now
   */
  share(
    request: SharerRequest
  ): Promise<Result<Authorization.ShareSuccess, Authorization.ShareFailure>>
  /** Ends what is under way; whoever has asked may ask again. */
  stop(): Promise<void>
}

export function createSharer(context: SharerContext): Sharer {
  const { agent, createSha256, time, logger, policy } = context
  const spaceReader = openReader(context)
  const stopping = new AbortController()
  const active = new Map<string, Promise<unknown>>()

  const share = async ({ proofs, ...request }: SharerRequest) => {
    const { space, account, agent: audience } = request
    const log = logger.child({ space, account, agent: audience })
    const onWarning = (message: string, error: unknown) =>
      log.warn({ err: error }, message)
    const enough = AbortSignal.timeout(policy.patience)
    const reading = AbortSignal.any([stopping.signal, enough])
    const reader = abortable(spaceReader, reading)
    const { clock } = openSpace(context, { space, proofs, signal: reading })
    const blocks = new BlockOverlay(reader)
    const { state, additions } = await mergeHeads(
      blocks,
      await clock.head({ signal: reading })
    )
    blocks.put(additions)
    const shared = await shareParts(
      {
        blocks,
        state,
        reader,
        identity: (account) => deriveIdentity(agent, { space, account }),
        record: (change) => {
          const signal = AbortSignal.any([
            stopping.signal,
            AbortSignal.timeout(policy.timeout),
          ])
          return recordChange(
            {
              ...context,
              ...openSpace(context, { space, proofs, signal }),
              reader: abortable(spaceReader, signal),
              onWarning,
            },
            change,
            { signal }
          )
        },
        createSha256,
        time,
        onWarning,
      },
      { ...request, limit: policy.limit, enough, signal: stopping.signal }
    )
    log.info(shared, 'private parts were shared with an agent')
    return { ok: shared }
  }

  return {
    async share(request) {
      const { space } = request
      if (active.has(space) || active.size >= policy.concurrency) {
        const seconds = Math.ceil(policy.retryAfter / 1000)
        throw new RateLimitedError(
          `the service shares for somebody else just now; try again in ${seconds} seconds`,
          seconds
        )
      }
      const sharing = share(request)
      active.set(
        space,
        sharing.catch(() => {})
      )
      try {
        return await sharing
      } catch (error) {
        return stopping.signal.aborted
          ? failure(
              'ServiceUnavailable',
              'the service is going down; ask again when it is back'
            )
          : failureOf(error)
      } finally {
        active.delete(space)
      }
    },
    async stop() {
      stopping.abort()
      await Promise.all(active.values())
    },
  }
}

/** What everything that can go wrong with a Space is told as. */
function failureOf(error: unknown) {
  if (error instanceof AccountNotFoundError) {
    return failure('AccountNotFound', error.message)
  }
  if (error instanceof AgentNotAuthorizedError) {
    return failure('AgentNotAuthorized', error.message)
  }
  if (error instanceof SpaceUnauthorizedError) {
    return failure('InsufficientDelegation', error.message)
  }
  if (
    error instanceof BackupError ||
    error instanceof MissingBlockError ||
    error instanceof DecodeError ||
    error instanceof UnreadableStateError
  ) {
    return failure('SpaceUnavailable', error.message)
  }
  if (error instanceof DOMException && error.name === 'TimeoutError') {
    return failure(
      'SpaceUnavailable',
      'the Space answers too slowly to share anything of it; try again later'
    )
  }
  throw error
}
