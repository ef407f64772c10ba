import { createHash } from 'node:crypto'
import type { Signer } from '@ucanto/interface'
import type { Logger } from 'pino'
import { z } from 'zod'
import {
  DEFAULT_PARTS,
  GrantEndedError,
  GRANTABLE_PARTS,
  HostRefusedError,
  partsIn,
  SCOPE_VERSION,
  type OAuth,
  type OAuthSession,
} from '../atproto/oauth/index.ts'
import { HostError, type Time } from '../backup/index.ts'
import type { Authorization as Protocol } from '../capabilities/index.ts'
import {
  deriveIdentity,
  openAuthorization,
  recipientOf,
  sealAuthorization,
  type AgentAuthorization,
  type Authorization,
  type DID,
} from '../space/index.ts'
import type { GrantStore, GrantUpdate, StoredGrant } from '../stores/index.ts'

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
  /** How long to try to keep what a host has answered. */
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
  /** Parts of backups that it is for; all but conversations, if left out. */
  include?: readonly string[]
  /** CAR of the task that is concluded, and of what the service may do. */
  delegation: Uint8Array
  /** Where the user may go when it is done. */
  returnTo?: string
}

/** What came of a request. */
export interface ConcludedRequest {
  space: DID
  account: DID
  parts: string[]
  /** Unix seconds until which there has to be another grant. */
  expiration: number
  delegation: Uint8Array
  returnTo?: URL | undefined
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
 * What is left is the time from the commit of the host, which trades a token
 * once and answers once, to ours: a process that is killed in it takes the new
 * session along, and the old one is worth nothing. The next refresh finds that
 * out, the grant ends, and the user has to authorize again. A process that is
 * killed at any other moment loses nothing. Two more such cases are a host
 * whose answer does not arrive, and a refresher that is held up, alive, for
 * longer than its lease.
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
   * Takes what a user came back with.
   *
   * @param params - what the host of the account sent along
   * @throws {@link GrantRequestError}
   */
  conclude(params: URLSearchParams): Promise<ConcludedRequest>

  /**
   * @param options.delegation - CAR with a task and what allows to write the
   *   grant into the Space, for one that is only known from there
   * @returns the way in, or nothing if there is no grant
   * @throws {@link ReauthorizeError} {@link HostError}
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

  /** Notes that the clock has it. */
  published(space: DID, account: DID, seq: number): Promise<void>

  /** @returns grants of the Space, in the order of their accounts */
  list(space: DID): Promise<Protocol.Grant[]>

  /**
   * Gives a grant back to the host, and seals nothing in its place.
   *
   * @returns whether there was one
   */
  revoke(space: DID, account: DID): Promise<boolean>
}

export type GrantRequestFailure =
  | 'AuthorizationRefused'
  | 'WrongAccount'
  | 'AuthorizationExpired'
  | 'HostRefused'
  | 'HostUnavailable'
  | 'TooManyRequests'

/** Why a user has not let us in. */
export class GrantRequestError extends Error {
  override readonly name: GrantRequestFailure
  /** What was asked for, where that is known. */
  readonly request:
    | Pick<ConcludedRequest, 'space' | 'account' | 'delegation' | 'returnTo'>
    | undefined

  constructor(
    name: GrantRequestFailure,
    message: string,
    options: ErrorOptions & { request?: GrantRequestError['request'] } = {}
  ) {
    super(message, options)
    this.name = name
    this.request = options.request
  }
}

/** There was a grant, and it has ended: the user has to authorize again. */
export class ReauthorizeError extends Error {
  override readonly name = 'ReauthorizeError'
}

export interface GrantKeeperContext {
  /** Seals what is granted to it. */
  agent: Signer
  grants: GrantStore
  oauth: OAuth
  /** Reads the agent's own authorization in the Space, if it is there. */
  readAuthorization: (
    space: DID,
    account: DID
  ) => Promise<Authorization | undefined>
  time: Time
  logger: Logger
  policy?: GrantPolicy
}

/** What is sealed of a grant. */
const grantSchema = z.object({
  version: z.literal(1),
  session: z.string(),
  scope: z.string(),
  scopeVersion: z.number(),
  /** Unix milliseconds of the consent. */
  created: z.number(),
  /** Unix milliseconds of the last refresh. */
  refreshed: z.number(),
  /** Unix milliseconds until which the session is good. */
  until: z.number(),
})

type SealedGrant = z.infer<typeof grantSchema>

/** What is sealed of a request: with `seq` 0, as no grant is. */
const requestSchema = z.object({
  version: z.literal(1),
  state: z.string(),
  returnTo: z.string().optional(),
})

interface LoadOptions {
  delegation?: Uint8Array
  known?: Held
}

/** A grant that is in use. */
interface Held extends SealedGrant {
  seq: number
}

export function createGrantKeeper(context: GrantKeeperContext): GrantKeeper {
  const { agent, grants, oauth, time, logger, policy = GRANT_POLICY } = context
  /** What could not be kept yet, by Space and account. */
  const unkept = new Map<string, GrantUpdate>()

  const untilOf = ({ created, refreshed }: SealedGrant): number => {
    const { total, idle } = oauth.lifetimes
    return Math.floor(Math.min(created / 1000 + total, refreshed / 1000 + idle))
  }

  const deriveRecipient = async (subject: { space: DID; account: DID }) =>
    recipientOf(await deriveIdentity(agent, subject))

  /**
   * Seals a grant, or nothing in its place.
   *
   * @param details.recipient - the agent's, where it is at hand
   */
  const updateOf = async (
    subject: { space: DID; account: DID },
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
    const recipient = known ?? (grant && (await deriveRecipient(subject)))
    const expiration = grant ? untilOf(grant) : 0
    const { sealed } = await sealAuthorization(
      agent,
      {
        ...subject,
        seq,
        expiration,
        ...(recipient === undefined ? {} : { recipient }),
      },
      encode(grant ?? {})
    )
    return {
      ...subject,
      seq,
      sealed,
      expiration,
      recipient,
      scope: grant?.scope ?? '',
      parts: grant ? partsIn(grant.scope) : [],
      state: grant ? 'active' : 'revoked',
      delegation,
      created: grant?.created ?? time.now(),
      refreshed: grant?.refreshed ?? time.now(),
    }
  }

  /** Makes it durable; what the database cannot take now is not given up. */
  const keep = async (update: GrantUpdate): Promise<boolean> => {
    const key = keyOf(update.space, update.account)
    const deadline = time.now() + policy.keep
    for (;;) {
      try {
        const isNewest = await grants.put(update, time.now())
        unkept.delete(key)
        return isNewest
      } catch (error) {
        unkept.set(key, update)
        if (time.now() >= deadline) throw error
        logger.error(
          { err: error, space: update.space, account: update.account },
          'a grant could not be kept; trying again'
        )
        await time.sleep(policy.retry)
      }
    }
  }

  const endedError = (account: DID, why: string) =>
    new ReauthorizeError(`${account} has to be authorized again: ${why}`)

  /** @throws {@link ReauthorizeError} */
  const endIfPast = async (stored: StoredGrant): Promise<void> => {
    const { seq, expiration } = stored
    const space = stored.space as DID
    const account = stored.account as DID
    if (time.now() < expiration * 1000) return
    const reason = {
      name: 'GrantEndedError',
      message: `the grant was good until ${new Date(expiration * 1000).toISOString()}`,
    }
    await grants.end(space, account, { seq, reason, now: time.now() })
    throw endedError(account, reason.message)
  }

  /**
   * The grant there is, from what is kept here or else from the Space.
   *
   * @param known - what it was before: the Space is not asked for that again
   * @throws {@link ReauthorizeError}
   */
  const load = async (
    space: DID,
    account: DID,
    { delegation = new Uint8Array(), known }: LoadOptions = {}
  ): Promise<{ held: Held; stored: StoredGrant } | undefined> => {
    const left = unkept.get(keyOf(space, account))
    if (left) await keep(left)
    let stored = await grants.get(space, account)
    if (stored?.state === 'revoked') return undefined
    if (stored?.state === 'ended') {
      throw endedError(account, stored.reason?.message ?? 'the grant has ended')
    }
    if (stored && !stored.sealed && stored.seq === known?.seq) {
      await endIfPast(stored)
      return { held: known, stored }
    }
    const authorization: Authorization | undefined = stored?.sealed
      ? { ...stored, sealed: stored.sealed }
      : await context.readAuthorization(space, account)
    if (!authorization) {
      if (!stored) return undefined
      throw endedError(account, 'its grant is not in the Space any more')
    }
    const { seq, expiration, sealed } = authorization
    const held = await openSealed(
      { space, account, newestSeq: stored?.seq ?? 0 },
      { seq, expiration, sealed }
    )
    if (!held) return undefined
    if (!stored || stored.seq < seq) {
      // The service has lost what it knew; the Space has not.
      const update = await updateOf(
        { space, account },
        { seq, grant: held, delegation: stored?.delegation ?? delegation }
      )
      await grants.put(update, time.now())
      await grants.published(space, account, seq)
      stored = await grants.get(space, account)
      if (!stored) throw new TypeError('a grant that was put and is not there')
    }
    await endIfPast(stored)
    return { held: { ...held, seq }, stored }
  }

  /** @returns nothing for one that was given back */
  const openSealed = async (
    subject: { space: DID; account: DID; newestSeq: number },
    authorization: Authorization
  ): Promise<SealedGrant | undefined> => {
    const bytes = await openAuthorization(agent, subject, authorization)
    const value = decode(bytes)
    return isEmpty(value) ? undefined : grantSchema.parse(value)
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
        await refresh({ space, account }, latest, owner)
      } finally {
        // Others would use up what the host has traded already.
        if (!unkept.has(keyOf(space, account))) {
          await grants.release(space, account, owner)
        }
      }
    }
  }

  /**
   * Lets whoever was to make the last refresh go first: it may have an answer
   * that it could not keep until now.
   *
   * @returns whether there is a newer grant now
   */
  const isKeptNow = async (stored: StoredGrant): Promise<boolean> => {
    const { space, account, seq, refreshing } = stored
    const { lease, keep, precedence } = policy
    if (refreshing === undefined) return false
    if (time.now() >= refreshing + lease + keep) return false
    await time.sleep(precedence)
    return (await grants.get(space, account))?.seq !== seq
  }

  const refresh = async (
    subject: { space: DID; account: DID },
    { held, stored }: { held: Held; stored: StoredGrant },
    owner: string
  ): Promise<void> => {
    const { space, account } = subject
    const log = logger.child({ space, account, seq: held.seq })
    if (stored.refreshing !== undefined) {
      log.warn(
        { begun: stored.refreshing },
        'nobody has seen the end of a refresh; it is tried again'
      )
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
        save: async ({ session, scope }) => {
          const grant: SealedGrant = {
            ...held,
            session,
            scope,
            refreshed: time.now(),
            until: time.now() + oauth.lifetimeOf(session),
          }
          const seq = held.seq + 1
          // Until it is kept, nothing is done that can be done before.
          const { delegation, recipient } = stored
          const details = { seq, grant, delegation, recipient }
          await keep(await updateOf(subject, details))
        },
      })
      log.info('a grant was refreshed')
    } catch (error) {
      if (error instanceof HostRefusedError) {
        // Of the host or of us, and it may pass: the grant is as good as before.
        throw new HostError(error.message, { cause: error })
      }
      if (!(error instanceof GrantEndedError)) throw error
      log.warn({ err: error }, 'a grant has ended')
      const { name, message } = error
      await grants.end(space, account, {
        seq: held.seq,
        reason: { name, message },
        now: time.now(),
      })
      throw endedError(account, message)
    }
  }

  /** The greatest `seq` that anybody knows of. */
  const newestSeq = async (space: DID, account: DID): Promise<number> => {
    const stored = await grants.get(space, account)
    if (stored) return stored.seq
    const authorization = await context.readAuthorization(space, account)
    return authorization?.seq ?? 0
  }

  return {
    async request({ space, account, include, delegation, returnTo }) {
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
      let begun
      try {
        begun = await oauth.authorize(account, { parts })
      } catch (error) {
        if (!(error instanceof HostRefusedError)) throw error
        const { message } = error
        throw new GrantRequestError('HostRefused', message, { cause: error })
      }
      const { key, url, state } = begun
      // The user is told of whole seconds.
      const expiration = Math.floor((now + policy.request) / 1000)
      const { sealed } = await sealAuthorization(
        agent,
        { space, account, seq: 0, expiration },
        encode({
          version: 1,
          state,
          ...(returnTo === undefined ? {} : { returnTo }),
        })
      )
      await grants.addRequest(
        {
          state: digestOf(key),
          ...{ space, account, sealed, delegation },
          expires: expiration * 1000,
        },
        now
      )
      return { url, expiration }
    },

    async conclude(params) {
      const key = params.get('state')
      const request =
        key === null ? undefined : await grants.takeRequest(digestOf(key))
      if (!request) {
        throw new GrantRequestError(
          'AuthorizationExpired',
          'This request is not known, was concluded before, or has expired. Start again where you came from.'
        )
      }
      const space = request.space as DID
      const account = request.account as DID
      const { delegation, expires } = request
      const opened = await openAuthorization(
        agent,
        { space, account },
        {
          seq: 0,
          expiration: expires / 1000,
          sealed: request.sealed,
        }
      )
      const { state, returnTo } = requestSchema.parse(decode(opened))
      const about = {
        request: {
          space,
          account,
          delegation,
          returnTo: returnTo === undefined ? undefined : new URL(returnTo),
        },
      }
      if (time.now() >= expires) {
        throw new GrantRequestError(
          'AuthorizationExpired',
          'You took longer than this request is good for. Start again where you came from.',
          about
        )
      }
      let granted
      try {
        granted = await oauth.callback(params, state)
      } catch (error) {
        throw asRequestError(error, about)
      }
      if (granted.account !== account) {
        await oauth.revoke(granted.session).catch((error: unknown) => {
          logger.warn(
            { err: error, space, account },
            'a grant of another account could not be given back'
          )
        })
        throw new GrantRequestError(
          'WrongAccount',
          `You signed in to ${granted.account}, and were asked for ${account}. Nothing was kept. Start again, and sign in to the other account.`,
          about
        )
      }
      const now = time.now()
      const { session, scope } = granted
      const grant: SealedGrant = {
        version: 1,
        session,
        scope,
        scopeVersion: SCOPE_VERSION,
        created: now,
        refreshed: now,
        until: now + oauth.lifetimeOf(session),
      }
      const before = await loadQuietly(space, account)
      for (;;) {
        const seq = (await newestSeq(space, account)) + 1
        const update = await updateOf(
          { space, account },
          { seq, grant, delegation }
        )
        if (!(await keep(update))) continue
        if (before) await giveBack(before, { space, account })
        const { parts, expiration } = update
        return { ...about.request, parts, expiration }
      }
    },

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

    async pendingOlderThan(before, { limit }) {
      return (await grants.pending({ before, limit })) as {
        space: DID
        account: DID
      }[]
    },

    published: (space, account, seq) => grants.published(space, account, seq),

    async list(space) {
      const kept = await grants.list(space)
      return kept.flatMap(({ state: last, ...grant }) => {
        if (last === 'revoked') return []
        const { account, parts, scope, created, refreshed, expiration } = grant
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
            scope,
            created,
            refreshed,
            expiration,
          },
        ]
      })
    },

    async revoke(space, account) {
      const stored = await grants.get(space, account)
      if (stored?.state === 'revoked') return false
      const held = await loadQuietly(space, account)
      const seq = await newestSeq(space, account)
      if (seq === 0) return false
      const delegation = stored?.delegation ?? new Uint8Array()
      for (let next = seq + 1; ; next++) {
        const update = await updateOf(
          { space, account },
          { seq: next, grant: undefined, delegation }
        )
        if (await keep(update)) break
      }
      if (held) await giveBack(held, { space, account })
      return true
    },
  }

  /** A grant that may have ended, for giving it back. */
  async function loadQuietly(
    space: DID,
    account: DID
  ): Promise<Held | undefined> {
    try {
      return (await load(space, account))?.held
    } catch (error) {
      logger.info({ err: error, space, account }, 'the grant before is no use')
      return undefined
    }
  }

  async function giveBack(
    { session }: { session: OAuthSession },
    subject: { space: DID; account: DID }
  ): Promise<void> {
    try {
      await oauth.revoke(session)
    } catch (error) {
      logger.warn(
        { err: error, ...subject },
        'the host was not told that a grant is given back; it forgets it by itself in time'
      )
    }
  }
}

function asRequestError(
  error: unknown,
  about: { request: GrantRequestError['request'] }
): unknown {
  if (error instanceof HostRefusedError) {
    return error.code === 'access_denied'
      ? new GrantRequestError(
          'AuthorizationRefused',
          'You said no at the host of your account, and nothing was kept. What is public is backed up all the same.',
          { ...about, cause: error }
        )
      : new GrantRequestError('HostRefused', error.message, {
          ...about,
          cause: error,
        })
  }
  if (error instanceof HostError) {
    return new GrantRequestError('HostUnavailable', error.message, {
      ...about,
      cause: error,
    })
  }
  return error
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

function isEmpty(value: unknown): boolean {
  return Object.keys(Object(value) as object).length === 0
}

function keyOf(space: string, account: string): string {
  return `${space} ${account}`
}

function encode(value: object): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value))
}

function decode(bytes: Uint8Array): unknown {
  return JSON.parse(new TextDecoder().decode(bytes))
}
