import { createHash } from 'node:crypto'
import type { Signer } from '@ucanto/interface'
import { equals } from 'multiformats/bytes'
import type { Logger } from 'pino'
import {
  DEFAULT_PARTS,
  GrantEndedError,
  GRANTABLE_PARTS,
  HostRefusedError,
  partsIn,
  SCOPE_VERSION,
  type OAuth,
} from '../atproto/oauth/index.ts'
import { HostError, type Time } from '../backup/index.ts'
import type { Authorization as Protocol } from '../capabilities/index.ts'
import {
  deriveIdentity,
  recipientOf,
  ReplayedAuthorizationError,
  UnsealError,
  type AgentAuthorization,
  type Authorization,
  type DID,
} from '../space/index.ts'
import type {
  GrantRequest,
  GrantReturn,
  GrantStore,
  GrantUpdate,
  StoredGrant,
} from '../stores/index.ts'
import { openAnswer } from './answer.ts'
import {
  CourierUnavailableError,
  type CarriedAnswer,
  type Courier,
} from './courier.ts'
import {
  createGrantContents,
  type GrantSubject,
  type OpenedGrant,
  type SealedGrant,
} from './grant-content.ts'
import {
  asRequestError,
  GrantRequestError,
  ReauthorizeError,
  SpaceUnreadableError,
  type KnownRequest,
} from './grant-errors.ts'

/** How grants are kept. Times in milliseconds. */
export interface GrantPolicy {
  /** How long a user may take to sign in and consent. */
  request: number
  /** Requests of one Space that nobody has concluded. */
  requestsPerSpace: number
  /** How long before its end a session is refreshed. */
  margin: number
  /** A refresh that was not heard of for so long may be made by another. */
  lease: number
  /**
   * How long to wait for a refresh that another makes: longer than the lease,
   * so that one that nobody makes any more is made.
   */
  wait: number
  /** How often to look whether it is done. */
  poll: number
  /** How long to try to keep what a user has consented to. */
  keep: number
  /** How often to try. */
  retry: number
  /**
   * How long whoever has an answer that could not be kept goes first, before
   * its refresh is made by another. Longer than it takes to try again.
   */
  precedence: number
}

export const GRANT_POLICY: GrantPolicy = {
  request: 15 * 60_000,
  requestsPerSpace: 100,
  margin: 120_000,
  lease: 120_000,
  wait: 150_000,
  poll: 100,
  keep: 10 * 60_000,
  retry: 500,
  precedence: 5_000,
}

/** What the service asks a user for. */
export interface NewGrantRequest {
  space: DID
  account: DID
  /** Of the account, if it has one. */
  handle?: string | undefined
  /** Parts of backups that it is for; all but conversations, if left out. */
  include?: readonly string[]
  /** CAR of the task that is concluded, and of what the service may do. */
  delegation: Uint8Array
  /** DID of the agent that asks. */
  requester: string
  /** Where the user may go when it is done. */
  returnTo?: string
}

/** A request that nobody has concluded, for its user to look at. */
export interface OpenRequest extends KnownRequest {
  /** Parts of backups that were asked for. */
  parts: string[]
  /** DID of the agent that has asked. */
  requester: string
  /** Of the account, if it has one. */
  handle?: string | undefined
}

/** What came of a request. */
export interface ConcludedRequest extends KnownRequest {
  again?: undefined
  parts: string[]
  /** What was asked for as well, and is not granted. */
  missing: string[]
  /** Unix seconds until which there has to be another grant. */
  expiration: number
}

/** A host that has granted nothing of what was asked for by its name. */
export interface RepeatedRequest {
  /** Where the user goes on, to be asked once more in the words of old hosts. */
  again: URL
}

/** A way into an account, refreshed as it needs to be. */
export interface GrantSession {
  account: DID
  /** Private parts that may be read. */
  parts: string[]
  /**
   * Asks the host of the account.
   *
   * @param pathname - and query
   * @throws {@link ReauthorizeError} {@link HostError}
   */
  fetch(pathname: string, init?: RequestInit): Promise<Response>
}

/**
 * The grants of one agent: the service, or an agent that makes backups itself.
 *
 * A session is good for one refresh: who loses the answer to it has lost the
 * grant. So there is one refresher at a time, whatever processes there are:
 * whoever has the lease. What the host answers is durable, sealed, before
 * anything else is done with it. Where it cannot be, it is tried again and
 * again, and nobody else refreshes meanwhile.
 *
 * From the commit of the host, which trades a token once and answers once, to
 * ours, the new session is in memory only. So a {@link Courier} carries the
 * request: the keeper may be killed at any moment, and the next refresher goes
 * on with the answer that the courier has kept.
 *
 * What is left is a machine or a container that ends as a whole in that time, a
 * host whose answer does not arrive, and a refresher that is held up, alive, for
 * longer than its lease. The next refresh finds that out, the grant ends, and the
 * user has to authorize again.
 */
export interface GrantKeeper {
  /**
   * Begins the way into an account.
   *
   * @returns where the user goes, and until when, in Unix seconds
   * @throws {@link GrantRequestError} {@link HostError}
   */
  request(request: NewGrantRequest): Promise<{ url: URL; expiration: number }>

  /**
   * Looks at the request that a user came back from. Nothing is traded yet.
   *
   * @param params - what the host of the account sent along
   * @throws {@link GrantRequestError}
   */
  find(params: URLSearchParams): Promise<OpenRequest>

  /**
   * Takes what a user came back with.
   *
   * @param params - what the host of the account sent along
   * @param options.refused - the user does not want it after all
   * @throws {@link GrantRequestError}
   */
  conclude(
    params: URLSearchParams,
    options?: { refused?: boolean }
  ): Promise<ConcludedRequest | RepeatedRequest>

  /**
   * @param options.delegation - CAR with a task and what allows to write the
   *   grant into the Space, for one that is only known from there
   * @returns the way in, or nothing if there is no grant
   * @throws {@link ReauthorizeError} {@link HostError}
   *   {@link SpaceUnreadableError}
   */
  open(
    space: DID,
    account: DID,
    options?: { delegation?: Uint8Array }
  ): Promise<GrantSession | undefined>

  /** @returns the grant, unless the clock has it */
  pending(
    space: DID,
    account: DID
  ): Promise<(AgentAuthorization & { delegation: Uint8Array }) | undefined>

  /**
   * @param time - Unix milliseconds
   * @returns grants that wait since then for the clock to have them
   */
  pendingOlderThan(
    time: number,
    options: { limit: number }
  ): Promise<{ space: DID; account: DID }[]>

  /** Notes that it was tried in vain to have the clock have it. */
  attempted(space: DID, account: DID): Promise<void>

  /**
   * Notes what the clock has now. Where that is another than the one that was
   * pending, the later one is kept, and sealed anew if it has to be.
   *
   * @returns whether the clock has the latest, so that nothing is pending
   */
  published(
    space: DID,
    account: DID,
    found: Authorization | undefined
  ): Promise<boolean>

  /** @returns grants of the Space, in the order of their accounts */
  list(space: DID): Promise<Protocol.Grant[]>

  /**
   * Gives a grant back to the host, and seals nothing in its place. Where the
   * host does not confirm, the session is kept until it has.
   *
   * @returns whether there was one, and whether the host has confirmed
   * @throws {@link SpaceUnreadableError}
   */
  revoke(space: DID, account: DID): Promise<Protocol.RevokeSuccess>

  /**
   * Tells hosts again what is given back, and what they have not confirmed.
   *
   * @param time - Unix milliseconds since which they were not told
   * @param options.signal - no more are told when it is aborted
   */
  giveBack(
    time: number,
    options: { limit: number; signal?: AbortSignal }
  ): Promise<void>

  /** Waits for all that must not be cut off: refreshes, and what users do. */
  settle(): Promise<void>
}

export interface GrantKeeperContext {
  /** Seals what is granted to it. */
  agent: Signer
  grants: GrantStore
  oauth: OAuth
  /** Carries refreshes; without one they are sent from this process. */
  courier?: Courier | undefined
  /**
   * Reads the agent's own authorization in the Space. Throws where that cannot
   * be told, as nothing means that there is none.
   */
  readAuthorization: (
    space: DID,
    account: DID
  ) => Promise<Authorization | undefined>
  time: Time
  logger: Logger
  policy?: GrantPolicy
}

interface LoadOptions {
  delegation?: Uint8Array
  known?: Held
}

/** A grant that is in use. */
interface Held extends SealedGrant {
  seq: number
}

/** What has to be kept. */
interface Keeping {
  update: GrantUpdate
  giveBack?: GrantReturn | undefined
  /** `seq` of the only state in whose place it is kept. */
  after?: number | undefined
  /** Called when it is kept, or need not be any more. */
  onKept?: () => void
}

/** What is replaced by another. */
interface Replaced {
  /** Nothing if there was none. */
  seq: number | undefined
  giveBack: GrantReturn | undefined
}

/** Less than any `seq`. */
const NO_GRANT = 0

/** Hosts that are told at the same time what is given back. */
const HOSTS_AT_ONCE = 4

/** Why a grant has ended that is not where it was; it may come back. */
const LOST = 'GrantLostError'

/** Why a grant has ended whose agent was let go by another one. */
const LET_GO = 'another agent of the Space has let this one go'

export function createGrantKeeper(context: GrantKeeperContext): GrantKeeper {
  const { agent, grants, oauth, time, logger, policy = GRANT_POLICY } = context
  const contents = createGrantContents(agent)
  /** What could not be kept yet, by Space and account. */
  const unkept = new Map<string, Keeping>()
  /** What must not be cut off. */
  const busy = new Set<Promise<unknown>>()

  const uncut = async <T>(work: () => Promise<T>): Promise<T> => {
    const working = work()
    busy.add(working)
    try {
      return await working
    } finally {
      busy.delete(working)
    }
  }

  const untilOf = ({
    created,
    refreshed,
  }: Pick<SealedGrant, 'created' | 'refreshed'>): number => {
    const { total, idle } = oauth.lifetimes
    return Math.floor(Math.min(created / 1000 + total, refreshed / 1000 + idle))
  }

  /**
   * Seals a grant, or nothing in its place.
   *
   * @param details.recipient - the agent's, where it is at hand
   */
  const updateOf = async (
    subject: GrantSubject,
    {
      seq,
      grant,
      delegation,
      recipient: known,
    }: {
      seq: number
      grant: SealedGrant | undefined
      delegation: Uint8Array
      recipient?: string | undefined
    }
  ): Promise<GrantUpdate> => {
    const recipient =
      grant &&
      (known ?? (await recipientOf(await deriveIdentity(agent, subject))))
    const expiration = grant ? untilOf(grant) : 0
    const now = time.now()
    const sealed = await contents.sealGrant(
      {
        ...subject,
        seq,
        expiration,
        ...(recipient === undefined ? {} : { recipient }),
      },
      grant,
      now
    )
    return {
      ...subject,
      seq,
      sealed,
      expiration,
      recipient,
      scope: grant?.scope ?? '',
      scopeVersion: grant?.scopeVersion ?? SCOPE_VERSION,
      asked: grant?.asked ?? [],
      parts: grant ? partsIn(grant.scope) : [],
      state: grant ? 'active' : 'revoked',
      delegation,
      created: grant?.created ?? now,
      refreshed: grant?.refreshed ?? now,
    }
  }

  /**
   * Makes it durable; what the database cannot take now is not given up.
   *
   * @param timeout - how long to try, in milliseconds; for as long as the
   *   process lives, if left out
   */
  const keep = async (
    keeping: Keeping,
    { timeout = Infinity }: { timeout?: number } = {}
  ): Promise<boolean> => {
    const { update, giveBack, after, onKept } = keeping
    const key = keyOf(update)
    const deadline = time.now() + timeout
    for (let failures = 0; ; failures++) {
      try {
        const isNewest = await grants.put(update, time.now(), {
          giveBack,
          after,
        })
        if (unkept.get(key) === keeping) unkept.delete(key)
        onKept?.()
        if (isNewest || failures === 0) return isNewest
        // What seemed to fail may have taken effect.
        return isSame(await grants.get(update.space, update.account), update)
      } catch (error) {
        if (time.now() >= deadline) {
          if (unkept.get(key) === keeping) unkept.delete(key)
          throw error
        }
        unkept.set(key, keeping)
        logger.error(
          { err: error, space: update.space, account: update.account },
          'a grant could not be kept; trying again'
        )
        await time.sleep(policy.retry)
      }
    }
  }

  const endedError = (account: DID, why: string, options?: ErrorOptions) =>
    new ReauthorizeError(
      `${account} has to be authorized again: ${why}`,
      options
    )

  /** @returns what to throw */
  const end = async (
    stored: StoredGrant,
    reason: { name: string; message: string },
    options?: ErrorOptions
  ): Promise<ReauthorizeError> => {
    const { space, account } = subjectOf(stored)
    const { seq } = stored
    if (stored.state === 'active') {
      logger.warn({ space, account, seq, reason }, 'a grant has ended')
    }
    await grants.end(space, account, { seq, reason, now: time.now() })
    return endedError(account, reason.message, options)
  }

  /** @throws {@link ReauthorizeError} */
  const endIfPast = async (stored: StoredGrant): Promise<void> => {
    const { expiration } = stored
    if (time.now() < expiration * 1000) return
    throw await end(stored, {
      name: 'GrantEndedError',
      message: `the grant was good until ${new Date(expiration * 1000).toISOString()}`,
    })
  }

  /** @throws {@link SpaceUnreadableError} */
  const readOwn = async ({
    space,
    account,
  }: GrantSubject): Promise<Authorization | undefined> => {
    try {
      return await context.readAuthorization(space, account)
    } catch (cause) {
      throw new SpaceUnreadableError(
        `the authorization for ${account} is in the Space, which cannot be read for now; try again later`,
        { cause }
      )
    }
  }

  /** What the Space has, where nothing depends on its answer. */
  const readQuietly = async (
    subject: GrantSubject
  ): Promise<Authorization | undefined> => {
    try {
      return await readOwn(subject)
    } catch (error) {
      logger.warn({ err: error, ...subject }, 'the Space was not asked')
      return undefined
    }
  }

  /**
   * The grant there is, from what is kept here or else from the Space.
   *
   * @param known - what it was before: the Space is not asked for that again
   * @throws {@link ReauthorizeError} {@link SpaceUnreadableError}
   */
  const load = async (
    space: DID,
    account: DID,
    { delegation = new Uint8Array(), known }: LoadOptions = {}
  ): Promise<{ held: Held; stored: StoredGrant } | undefined> => {
    const subject = { space, account }
    const left = unkept.get(keyOf(subject))
    if (left) {
      const { update, ...options } = left
      await grants.put(update, time.now(), options)
    }
    let stored = await grants.get(space, account)
    if (stored?.state === 'revoked') return undefined
    if (stored?.state === 'ended' && stored.reason?.name !== LOST) {
      throw endedError(account, stored.reason?.message ?? 'the grant has ended')
    }
    if (stored && !stored.sealed && stored.seq === known?.seq) {
      await endIfPast(stored)
      return { held: known, stored }
    }
    const opened = stored?.sealed
      ? await openKept(stored, stored.sealed)
      : await findInSpace(subject, stored)
    if (!opened?.grant) return undefined
    const { grant, seq } = opened
    if (!stored || stored.seq < seq) {
      // We have lost what we knew; the Space has not.
      await adopt(subject, opened, stored?.delegation ?? delegation)
    } else if (stored.state === 'ended') {
      await grants.resume(space, account, { seq, now: time.now() })
    }
    stored = await grants.get(space, account)
    if (!stored) throw new TypeError('a grant that was put and is not there')
    // Somebody has refreshed it meanwhile.
    if (stored.seq !== seq) return load(space, account, { delegation })
    await endIfPast(stored)
    return { held: { ...grant, seq }, stored }
  }

  /** @throws {@link ReauthorizeError} when the key of the agent is another */
  const openKept = async (
    stored: StoredGrant,
    sealed: Uint8Array
  ): Promise<OpenedGrant & { seq: number }> => {
    const { seq } = stored
    try {
      const subject = subjectOf(stored)
      return {
        ...(await contents.openGrant(subject, { ...stored, sealed })),
        seq,
      }
    } catch (cause) {
      if (!(cause instanceof UnsealError)) throw cause
      const message = 'its authorization was sealed by another key than ours'
      throw await end(stored, { name: LOST, message }, { cause })
    }
  }

  /**
   * The grant as the Space has it.
   *
   * @param stored - what there was, whose session is there and nowhere else
   * @throws {@link ReauthorizeError} {@link SpaceUnreadableError}
   */
  const findInSpace = async (
    subject: GrantSubject,
    stored: StoredGrant | undefined
  ): Promise<(OpenedGrant & { seq: number }) | undefined> => {
    const authorization = await readOwn(subject)
    if (!authorization && !stored) return undefined
    let why = 'its authorization is not in the Space any more'
    let options: ErrorOptions | undefined
    if (authorization) {
      const { seq } = authorization
      const newestSeq = stored?.seq ?? 0
      try {
        const opened = await contents.openGrant(
          { ...subject, newestSeq },
          authorization
        )
        return { ...opened, seq }
      } catch (cause) {
        if (cause instanceof ReplayedAuthorizationError) {
          why = 'the Space has only an authorization from before, of no use now'
        } else if (cause instanceof UnsealError) {
          why = isLetGo(authorization)
            ? LET_GO
            : 'what the Space has in the place of its authorization is not ours'
        } else throw cause
        options = { cause }
      }
    }
    if (!stored) throw endedError(subject.account, why, options)
    throw await end(stored, { name: LOST, message: why }, options)
  }

  /** Takes over what the Space has. */
  const adopt = async (
    subject: GrantSubject,
    { seq, grant }: OpenedGrant & { seq: number },
    delegation: Uint8Array
  ): Promise<void> => {
    const update = await updateOf(subject, { seq, grant, delegation })
    await grants.put(update, time.now())
    await grants.published(subject.space, subject.account, seq)
  }

  /**
   * Of the grant that is pending and of what the Space has, none of which is
   * the one that the other is followed by, keeps the later one. Numbers do not
   * tell: who has lost what it knew may have begun to count again.
   */
  const reconcile = async (
    stored: StoredGrant,
    found: Authorization
  ): Promise<void> => {
    const { sealed, delegation, recipient } = stored
    if (!sealed || found.seq < stored.seq) return
    // What comes of a refresh is later than both.
    if (stored.answer) return
    const subject = subjectOf(stored)
    if (found.seq === stored.seq && equals(found.sealed, sealed)) {
      await grants.published(subject.space, subject.account, stored.seq)
      return
    }
    const log = logger.child({ ...subject, seq: stored.seq, found: found.seq })
    const ours = await contents.openGrant(subject, { ...stored, sealed })
    if (isLetGo(found)) {
      // Somebody wants us to go: what we have not written yet must not undo it.
      log.warn('another agent of the Space has let this one go')
      const held = ours.grant && { ...ours.grant, seq: stored.seq }
      const giveBack = held && (await returnOf(subject, held))
      if (giveBack) await grants.addReturn(giveBack)
      await end(stored, { name: LOST, message: LET_GO })
      await grants.published(subject.space, subject.account, stored.seq)
      if (giveBack) await tellHost(giveBack)
      return
    }
    let theirs: OpenedGrant | undefined
    try {
      theirs = await contents.openGrant(subject, found)
    } catch (error) {
      log.warn({ err: error }, 'what the Space has is not ours')
    }
    if (theirs && theirs.time > ours.time && found.seq > stored.seq) {
      log.warn('the Space has a later grant, which is taken over')
      await adopt(subject, { ...theirs, seq: found.seq }, delegation)
      return
    }
    log.warn('the Space has an earlier grant by a greater number')
    const { grant } = theirs && theirs.time > ours.time ? theirs : ours
    const details = { seq: found.seq + 1, grant, delegation, recipient }
    const update = await updateOf(subject, details)
    await keep({ update, after: stored.seq }, { timeout: policy.keep })
  }

  const isFresh = ({ until }: Held) => until - policy.margin > time.now()

  /**
   * A session that can be used.
   *
   * @param stale - `seq` of a session that the host did not take
   */
  const current = async (
    space: DID,
    account: DID,
    { stale, ...options }: LoadOptions & { stale?: number } = {}
  ): Promise<Held | undefined> => {
    const owner = crypto.randomUUID()
    const began = time.now()
    let renewed: number | undefined
    for (;;) {
      const found = await load(space, account, options)
      if (!found) return undefined
      const { held } = found
      // Some hosts give sessions that end sooner than the margin.
      const isNew = renewed !== undefined && held.seq > renewed
      if (held.seq !== stale && (isNew || isFresh(held))) return held
      renewed ??= held.seq
      const { lease } = policy
      const now = time.now()
      if (!(await grants.lease(space, account, { owner, now, lease }))) {
        if (now >= began + policy.wait) {
          throw new HostError(
            `somebody else refreshes the grant for ${account} and does not come to an end. Try again later.`
          )
        }
        await time.sleep(policy.poll * (0.5 + Math.random()))
        continue
      }
      try {
        // What was loaded before the lease may have been refreshed meanwhile.
        const latest = await load(space, account, options)
        if (!latest) return undefined
        if (latest.held.seq !== held.seq) continue
        if (await isKeptNow(latest.stored)) continue
        if (await isOutdone(latest.stored)) continue
        await uncut(() => refresh({ space, account }, latest, owner))
      } finally {
        // Others would use up what the host has traded already.
        if (!unkept.has(keyOf({ space, account }))) {
          await grants.release(space, account, owner)
        }
      }
    }
  }

  /**
   * Lets whoever was to make the last refresh go first: it may have an answer
   * that it could not keep until now.
   *
   * @returns whether there is a newer grant now, or such an answer
   */
  const isKeptNow = async (stored: StoredGrant): Promise<boolean> => {
    const { space, account, seq, refreshing, answer } = stored
    // Who has left an answer behind does not come back for it.
    if (refreshing === undefined || answer) return false
    await time.sleep(policy.precedence)
    const latest = await grants.get(space, account)
    return latest?.seq !== seq || latest.answer !== undefined
  }

  /**
   * A database that was put back may hold a grant that was refreshed since:
   * the Space knows, where it can be asked.
   *
   * @returns whether there is a newer grant now, or none any more
   */
  const isOutdone = async (stored: StoredGrant): Promise<boolean> => {
    if (!stored.sealed || stored.answer) return false
    const { seq } = stored
    const subject = subjectOf(stored)
    const found = await readQuietly(subject)
    if (!found || found.seq <= seq) return false
    await reconcile(stored, found)
    const latest = await grants.get(subject.space, subject.account)
    return latest?.seq !== seq || latest.state !== 'active'
  }

  const refresh = async (
    subject: { space: DID; account: DID },
    { held, stored }: { held: Held; stored: StoredGrant },
    owner: string
  ): Promise<void> => {
    const { space, account } = subject
    const log = logger.child({ space, account, seq: held.seq })
    const given = await answerOf(stored)
    if (given) {
      log.warn('a refresh whose refresher has gone is gone on with')
    } else if (stored.refreshing !== undefined) {
      log.warn(
        { begun: stored.refreshing },
        'nobody has seen the end of a refresh; it is tried again'
      )
    }
    const carried: CarriedAnswer[] = []
    const release = () => {
      for (const answer of carried) answer.release()
    }
    try {
      await oauth.refresh(held.session, {
        before: async () => {
          const now = time.now()
          const { lease } = policy
          const options = { owner, now, lease }
          if (!(await grants.refreshing(space, account, options))) {
            throw new HostError(
              `the grant for ${account} was taken over by somebody else. Try again.`
            )
          }
        },
        send: async (request, direct) => {
          if (given) return given
          const answer = await carry(request, held.seq, stored)
          if (!answer) return direct(request)
          carried.push(answer)
          return answer.response
        },
        save: async ({ session, scope }) => {
          const grant: SealedGrant = {
            ...held,
            session,
            scope,
            refreshed: time.now(),
            until: time.now() + oauth.lifetimeOf(session),
          }
          // Until it is kept, nothing is done that can be done before.
          const { delegation, recipient } = stored
          let seq = held.seq + 1
          for (;;) {
            const details = { seq, grant, delegation, recipient }
            const update = await updateOf(subject, details)
            if (await keep({ update, onKept: release })) return
            const latest = await grants.get(space, account)
            if (
              latest?.state === 'revoked' ||
              latest?.created !== held.created
            ) {
              // It was given back, or granted anew, meanwhile.
              await returnSession(subject, { ...grant, seq })
              return
            }
            // Of the same consent: to give one back would end the other.
            if (latest.refreshed >= grant.refreshed) return
            // An earlier session by a greater number, as the Space had it.
            seq = latest.seq + 1
          }
        },
      })
      log.info('a grant was refreshed')
    } catch (error) {
      if (error instanceof HostRefusedError) {
        // Of the host or of us, and it may pass: the grant is as good as before.
        throw new HostError(error.message, { cause: error })
      }
      if (!(error instanceof GrantEndedError)) throw error
      const { name, message } = error
      throw await end(stored, { name, message }, { cause: error })
    } finally {
      // What could not be kept yet stays with whoever outlives us.
      if (!unkept.has(keyOf(subject))) release()
    }
  }

  /** What the host has answered to a refresh whose refresher was killed. */
  const answerOf = async (
    stored: StoredGrant
  ): Promise<Response | undefined> => {
    if (!stored.answer) return undefined
    const subject = subjectOf(stored)
    try {
      const identity = await deriveIdentity(agent, subject)
      return await openAnswer(identity, stored.answer)
    } catch (error) {
      logger.error(
        { err: error, ...subject },
        'what the host has answered to a refresh cannot be read'
      )
      return undefined
    }
  }

  /** @returns nothing if nobody can carry it, and it was not sent */
  const carry = async (
    request: Request,
    seq: number,
    { space, account, recipient }: StoredGrant
  ): Promise<CarriedAnswer | undefined> => {
    const { courier } = context
    if (!courier || recipient === undefined) return undefined
    try {
      const grant = { space, account, seq, recipient }
      // A request that was read cannot be sent once more.
      return await courier.send(request.clone(), grant)
    } catch (error) {
      if (!(error instanceof CourierUnavailableError)) throw error
      logger.warn(
        { err: error, space, account },
        'a refresh is sent by this process: if that is killed before there is an answer, its grant is lost'
      )
      return undefined
    }
  }

  /**
   * The greatest `seq` that anybody knows of. Where the Space cannot be asked,
   * that of ours: what it has is found when ours is to be put there.
   */
  const newestSeq = async (subject: GrantSubject): Promise<number> => {
    const { space, account } = subject
    const found = await readQuietly(subject)
    const stored = await grants.get(space, account)
    return Math.max(stored?.seq ?? 0, found?.seq ?? 0)
  }

  /**
   * Puts a grant, or nothing, in the place of whatever there is, and gives that
   * back.
   */
  const replace = async (
    subject: GrantSubject,
    {
      newest,
      before,
      grant,
      delegation,
    }: {
      /** The greatest `seq` that is known. */
      newest: number
      /** What there was when it was looked at. */
      before: Replaced
      grant: SealedGrant | undefined
      delegation: Uint8Array
    }
  ): Promise<GrantUpdate> => {
    let present = before
    let seq = newest + 1
    for (;;) {
      const update = await updateOf(subject, { seq, grant, delegation })
      const { giveBack, seq: after = NO_GRANT } = present
      const keeping = { update, giveBack, after }
      if (await keep(keeping, { timeout: policy.keep })) return update
      // Refreshed meanwhile, or granted by another request.
      present = await lookAt(subject)
      seq = Math.max(seq, present.seq ?? 0) + 1
    }
  }

  /** What is to be replaced, and so to be given back. */
  const lookAt = async (subject: GrantSubject): Promise<Replaced> => {
    const { space, account } = subject
    const held = await loadIfGood(subject)
    const stored = await grants.get(space, account)
    if (held && stored?.seq !== held.seq) return lookAt(subject)
    return {
      seq: stored?.seq,
      giveBack: held && (await returnOf(subject, held)),
    }
  }

  /** Seals a session, for giving it back. */
  const returnOf = async (
    subject: GrantSubject,
    held: Pick<Held, 'seq' | 'session' | 'created' | 'refreshed'>
  ): Promise<GrantReturn> => {
    const details = { ...subject, seq: held.seq, expiration: untilOf(held) }
    const sealed = await contents.sealReturn(details, held.session)
    return { id: crypto.randomUUID(), ...details, sealed }
  }

  /** Gives a session back of which nothing else is kept. */
  const returnSession = async (
    subject: GrantSubject,
    held: Pick<Held, 'seq' | 'session' | 'created' | 'refreshed'>
  ): Promise<void> => {
    const giveBack = await returnOf(subject, held)
    await grants.addReturn(giveBack)
    await tellHost(giveBack)
  }

  /** @returns whether the host has confirmed */
  const tellHost = async (giveBack: GrantReturn): Promise<boolean> => {
    const subject = subjectOf(giveBack)
    try {
      const session = await contents.openReturn(
        { ...giveBack, ...subject },
        giveBack.sealed
      )
      await oauth.revoke(session)
    } catch (error) {
      logger.warn(
        { err: error, ...subject },
        'the host has not confirmed that a grant is given back; it is told again'
      )
      await grants.attemptedReturn(giveBack.id, time.now())
      return false
    }
    await grants.removeReturn(giveBack.id)
    logger.info(subject, 'a grant was given back')
    return true
  }

  /** @returns whether the host has confirmed all */
  const tellHostOfAll = async ({
    space,
    account,
  }: GrantSubject): Promise<boolean> => {
    let isConfirmed = true
    for (const giveBack of await grants.returnsOf(space, account)) {
      if (!(await tellHost(giveBack))) isConfirmed = false
    }
    return isConfirmed
  }

  /** A grant that may have ended, for giving it back. */
  const loadIfGood = async ({
    space,
    account,
  }: GrantSubject): Promise<Held | undefined> => {
    try {
      return (await load(space, account))?.held
    } catch (error) {
      if (!(error instanceof ReauthorizeError)) throw error
      return undefined
    }
  }

  /** Asks the host for parts, and keeps what is needed when its user is back. */
  const begin = async (
    request: GrantSubject & {
      parts: string[]
      isGranular: boolean
      requester: string
      handle?: string | undefined
      delegation: Uint8Array
      /** Unix seconds. */
      expiration: number
      returnTo?: string | undefined
    }
  ): Promise<URL> => {
    const { space, account, parts, requester, handle } = request
    const { expiration, returnTo } = request
    const begun = await oauth.authorize(account, {
      parts,
      isGranular: request.isGranular,
    })
    const sealed = await contents.sealRequest(
      { space, account, expiration },
      {
        version: 1,
        state: begun.state,
        parts,
        isGranular: begun.isGranular,
        requester,
        ...(handle === undefined ? {} : { handle }),
        ...(returnTo === undefined ? {} : { returnTo }),
      }
    )
    await grants.addRequest(
      {
        state: digestOf(begun.key),
        ...{ space, account, sealed, delegation: request.delegation },
        expires: expiration * 1000,
      },
      time.now()
    )
    return begun.url
  }

  const openRequest = async (request: GrantRequest | undefined) => {
    if (!request) {
      throw new GrantRequestError(
        'AuthorizationExpired',
        'This request is not known, was concluded before, or has expired. Start again where you came from.'
      )
    }
    const { delegation, expires } = request
    const subject = subjectOf(request)
    const expiration = expires / 1000
    const { returnTo, ...opened } = await contents.openRequest(
      { ...subject, expiration },
      request.sealed
    )
    const known: KnownRequest = {
      ...subject,
      delegation,
      returnTo: returnTo === undefined ? undefined : new URL(returnTo),
    }
    if (time.now() >= expires) {
      throw new GrantRequestError(
        'AuthorizationExpired',
        'You took longer than this request is good for. Start again where you came from.',
        { request: known }
      )
    }
    return { ...opened, known, expiration }
  }

  const concludeRequest = async (
    params: URLSearchParams,
    {
      state,
      parts: asked,
      isGranular,
      requester,
      handle,
      known,
      expiration,
    }: Awaited<ReturnType<typeof openRequest>>
  ): Promise<ConcludedRequest | RepeatedRequest> => {
    const { space, account, delegation, returnTo } = known
    const subject = { space, account }
    // From the answer of the host on, nothing is waited for but the database.
    const newest = await newestSeq(subject)
    const before = await lookAt(subject).catch(async (error: unknown) => {
      logger.warn({ err: error, ...subject }, 'the grant before is unknown')
      const { seq } = (await grants.get(space, account)) ?? {}
      return { seq, giveBack: undefined }
    })
    const granted = await oauth.callback(params, state)
    const now = time.now()
    const { session, scope } = granted
    const returned = { seq: newest, session, created: now, refreshed: now }
    if (granted.account !== account) {
      await returnSession(subject, returned)
      throw new GrantRequestError(
        'WrongAccount',
        `You signed in to ${granted.account}, and were asked for ${account}. Nothing was kept. Start again, and sign in to the other account.`,
        { request: known }
      )
    }
    const parts = partsIn(scope)
    const missing = asked.filter((part) => !parts.includes(part))
    if (isGranular && asked.length > 0 && missing.length === asked.length) {
      // The host has left out without a word what it does not know by name.
      await returnSession(subject, returned)
      const again = await begin({
        ...subject,
        parts: asked,
        isGranular: false,
        requester,
        handle,
        delegation,
        expiration,
        returnTo: returnTo?.href,
      })
      return { again }
    }
    let until: number
    try {
      const { expiration } = await replace(subject, {
        newest,
        grant: {
          version: 1,
          session,
          scope,
          scopeVersion: SCOPE_VERSION,
          asked,
          created: now,
          refreshed: now,
          until: now + oauth.lifetimeOf(session),
        },
        delegation,
        before,
      })
      until = expiration
    } catch (error) {
      // Its user is told that nothing was kept, and so it is.
      await returnSession(subject, returned)
      throw error
    }
    await tellHostOfAll(subject).catch((error: unknown) => {
      logger.warn({ err: error, ...subject }, 'a grant is given back later')
    })
    return { ...known, parts, missing, expiration: until }
  }

  return {
    async request({ space, account, include, ...request }) {
      const now = time.now()
      const open = await grants.countRequests(space, now)
      if (open >= policy.requestsPerSpace) {
        throw new GrantRequestError(
          'TooManyRequests',
          `the Space has ${open} requests that nobody has concluded; conclude one, or wait until they expire`
        )
      }
      const parts = (include ?? DEFAULT_PARTS).filter((part) =>
        GRANTABLE_PARTS.includes(part)
      )
      // The user is told of whole seconds.
      const expiration = Math.floor((now + policy.request) / 1000)
      try {
        const url = await begin({
          ...{ ...request, space, account, parts, expiration },
          isGranular: true,
        })
        return { url, expiration }
      } catch (error) {
        if (!(error instanceof HostRefusedError)) throw error
        const { message } = error
        throw new GrantRequestError('HostRefused', message, { cause: error })
      }
    },

    async find(params) {
      const key = params.get('state')
      const { known, parts, requester, handle } = await openRequest(
        key === null ? undefined : await grants.getRequest(digestOf(key))
      )
      return { ...known, parts, requester, handle }
    },

    conclude: (params, { refused = false } = {}) =>
      uncut(async () => {
        const key = params.get('state')
        const request = await openRequest(
          key === null ? undefined : await grants.takeRequest(digestOf(key))
        )
        const { known } = request
        if (refused) {
          throw new GrantRequestError(
            'AuthorizationRefused',
            'You said no, and nothing was kept. What is public is backed up all the same.',
            { request: known }
          )
        }
        try {
          return await concludeRequest(params, request)
        } catch (error) {
          const failure = asRequestError(error, known)
          if (failure.name === 'InternalError') {
            const { space, account } = known
            logger.error(
              { err: error, space, account },
              'a request could not be concluded'
            )
          }
          throw failure
        }
      }),

    async open(space, account, { delegation } = {}) {
      const options = delegation ? { delegation } : {}
      const first = await current(space, account, options)
      if (!first) return undefined
      let known = first
      return {
        account,
        parts: partsIn(first.scope),
        async fetch(pathname, init) {
          const ask = async (stale?: number) => {
            const held = await current(space, account, {
              ...options,
              known,
              ...(stale === undefined ? {} : { stale }),
            })
            if (!held) throw endedError(account, 'the grant was given back')
            known = held
            const response = await oauth.fetch(held.session, pathname, init)
            return { held, response }
          }
          const { held, response } = await ask()
          if (!isStale(response)) return response
          await response.body?.cancel()
          return (await ask(held.seq)).response
        },
      }
    },

    async pending(space, account) {
      const stored = await grants.get(space, account)
      if (!stored?.sealed) return undefined
      const { sealed, seq, expiration, recipient, delegation } = stored
      try {
        // Under our name in the Space is what we can open, and nothing else.
        await openKept(stored, sealed)
      } catch (error) {
        if (!(error instanceof ReauthorizeError)) throw error
        logger.warn(
          { err: error, space, account },
          'an authorization is not ours'
        )
        return undefined
      }
      return {
        agent: agent.did(),
        authorization: {
          sealed,
          seq,
          expiration,
          ...(recipient === undefined ? {} : { recipient }),
        },
        delegation,
      }
    },

    pendingOlderThan: async (before, { limit }) =>
      (await grants.pending({ before, limit })).map(subjectOf),

    attempted: (space, account) => grants.attempted(space, account, time.now()),

    async published(space, account, found) {
      const stored = await grants.get(space, account)
      if (!stored?.sealed) return true
      // What comes of a refresh is not known yet.
      if (!found || stored.refreshing !== undefined) return false
      await reconcile(stored, found)
      return !(await grants.get(space, account))?.sealed
    },

    async list(space) {
      const kept = await grants.list(space)
      return kept.flatMap(({ state: last, ...grant }) => {
        if (last === 'revoked') return []
        const { account, asked, parts, scope, scopeVersion } = grant
        const { created, refreshed, expiration } = grant
        // Nobody may have looked since then.
        const isPast = time.now() >= expiration * 1000
        const state = isPast ? 'ended' : last
        return [
          {
            account,
            agent: agent.did(),
            state,
            ...(grant.reason ? { reason: grant.reason } : {}),
            parts,
            missing: asked.filter((part) => !parts.includes(part)),
            scope,
            scopeVersion,
            created,
            refreshed,
            expiration,
          },
        ]
      })
    },

    revoke: (space, account) =>
      uncut(async () => {
        const subject = { space, account }
        const stored = await grants.get(space, account)
        let revoked = false
        let isLost = false
        if (stored?.state !== 'revoked') {
          const before = await lookAt(subject)
          const newest = await newestSeq(subject)
          if (newest > 0) {
            const latest = await grants.get(space, account)
            isLost = latest?.reason?.name === LOST
            await replace(subject, {
              newest,
              before,
              grant: undefined,
              delegation: latest?.delegation ?? new Uint8Array(),
            })
            revoked = true
          }
        }
        const isConfirmed = await tellHostOfAll(subject)
        return { revoked, confirmed: isConfirmed && !isLost }
      }),

    async giveBack(before, { limit, signal }) {
      const now = time.now()
      const next = (await grants.returns({ before, now, limit })).values()
      // Each takes the next one: hosts that do not answer hold up no others.
      const work = async () => {
        for (const each of next) {
          if (signal?.aborted) return
          await tellHost(each)
        }
      }
      await Promise.all(Array.from({ length: HOSTS_AT_ONCE }, work))
    },

    async settle() {
      while (busy.size > 0) await Promise.allSettled(busy)
    },
  }
}

/** Whether another agent has put nothing in the place of ours, see `letGo`. */
function isLetGo({ sealed, expiration }: Authorization): boolean {
  return sealed.length === 0 && expiration <= 0
}

function isStale({ status, headers }: Response): boolean {
  return (
    status === 401 &&
    /error="invalid_token"/.test(headers.get('www-authenticate') ?? '')
  )
}

/** Who can read the database cannot come back in the user's place. */
function digestOf(key: string): string {
  return createHash('sha256').update(key).digest('hex')
}

function isSame(stored: StoredGrant | undefined, update: GrantUpdate): boolean {
  return (
    stored !== undefined &&
    stored.seq === update.seq &&
    stored.created === update.created &&
    stored.refreshed === update.refreshed &&
    stored.parts.length === update.parts.length
  )
}

function subjectOf({
  space,
  account,
}: {
  space: string
  account: string
}): GrantSubject {
  return { space: space as DID, account: account as DID }
}

function keyOf({ space, account }: { space: string; account: string }): string {
  return `${space} ${account}`
}
