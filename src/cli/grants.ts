import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { finished } from 'node:stream/promises'
import { pino } from 'pino'
import {
  CALLBACK_PATH,
  createOAuth,
  loopbackMetadata,
} from '../atproto/oauth/index.ts'
import { orAbort } from '../atproto/or-abort.ts'
import {
  HostError,
  recordAuthorization,
  type AuthorizationJournal,
  type Time,
} from '../backup/index.ts'
import { systemTime } from '../node/index.ts'
import { GrantRequestError } from '../service/grant-errors.ts'
import {
  createGrantKeeper,
  type ConcludedRequest,
  type GrantKeeper,
} from '../service/grants.ts'
import { PAGE_HEADERS, renderPage, type Page } from '../service/http/page.ts'
import { listAuthorizations, type DID } from '../space/index.ts'
import type { Session } from './session.ts'
import { viewSpace } from './target.ts'
import { openRecord } from './writer.ts'

/** Hosts send users back to this machine, and nowhere else. */
const LOOPBACK = '127.0.0.1'

/** Numbers of an authorization, before it is left to the next command. */
const MAX_ROUNDS = 3

/** How often a host is told again what it has not confirmed, in milliseconds. */
const RETURN_INTERVAL = 60 * 60_000

/** Sessions that are given back along with a command, at most. */
const MAX_RETURNS = 20

/**
 * How long a command that has ended waits for what must not be cut off, and
 * after how long it says so, in milliseconds. A courier, if there is one, keeps
 * what comes later.
 */
const SETTLE = { timeout: 30_000, quiet: 1_000 }

/** Milliseconds that the last answer may take to get to the user. */
const LAST_ANSWER_TIMEOUT = 2_000

/** What the agent was let into by its user. */
export interface AgentGrants {
  keeper: GrantKeeper
  /** Grants go along with backups that the agent makes. */
  journal: AuthorizationJournal
  /**
   * Writes what is not in the Space yet, and gives back what hosts have not
   * confirmed. What cannot be done now is done along with a later command.
   */
  publish(account: DID, signal: AbortSignal): Promise<void>
}

/**
 * Opens the grants of the agent itself.
 *
 * @param port - that users come back to
 */
export async function openGrants(
  session: Session,
  { port = 0 }: { port?: number } = {}
): Promise<AgentGrants> {
  const { client, config, signal } = session
  const space = session.space()
  const agent = client.agent.issuer
  const stores = await session.stores()
  const redirect = new URL(CALLBACK_PATH, `http://${LOOPBACK}:${port || 1}`)
  const ending = new AbortController()
  const uncut = createGrantKeeper({
    agent,
    grants: stores.grants,
    oauth: createOAuth({
      metadata: loopbackMetadata(redirect),
      // A host trades a token once: who has begun waits for the answer.
      fetch: session.fetchUntil(ending.signal),
      plcUrl: config.plcUrl,
      handleResolverUrl: config.handleResolverUrl,
      allowHttp: config.allowPrivateNetwork,
    }),
    courier: session.courier,
    readAuthorization: async (_space, account) => {
      const { blocks, state, isWhole } = await viewSpace(session)
      const [own] = await listAuthorizations(blocks, state, account, {
        agent: agent.did(),
      })
      if (!own && !isWhole) {
        throw new Error('a part of the state in the Space cannot be read')
      }
      return own?.authorization
    },
    time: timeUntil(ending.signal),
    logger: pino({ level: 'silent' }),
  })
  session.defer(async () => {
    await settle(uncut, session)
    // Neither a host nor a store that does not answer keeps the process.
    ending.abort(
      new HostError('the command has ended before there was an answer')
    )
  })
  const keeper = interruptible(uncut, signal)
  const journal: AuthorizationJournal = {
    async pending(account) {
      const pending = await keeper.pending(space, account)
      if (!pending) return undefined
      const { agent, authorization } = pending
      return { agent, authorization }
    },
    async recorded(account, found) {
      await keeper.published(space, account, found)
    },
  }
  const publish = async (account: DID, signal: AbortSignal) => {
    for (let round = 0; round < MAX_ROUNDS; round++) {
      const pending = await journal.pending(account)
      if (!pending) return
      const found = await recordAuthorization(
        await openRecord(session, signal),
        { account, ...pending },
        { signal }
      )
      if (await keeper.published(space, account, found)) return
    }
  }
  return {
    keeper,
    journal,
    async publish(account, signal) {
      try {
        await publish(account, signal)
        const before = systemTime.now() - RETURN_INTERVAL
        await orAbort(keeper.giveBack(before, { limit: MAX_RETURNS }), signal)
      } catch (error) {
        signal.throwIfAborted()
        session.warn(
          `the authorization for ${account} is kept here, and gets into the Space along with the next backup: ${(error as Error).message}`
        )
      }
    },
  }
}

/**
 * Ends what somebody waits for when the user interrupts the command. What was
 * begun goes on, and is waited for before the command ends.
 */
function interruptible(keeper: GrantKeeper, signal: AbortSignal): GrantKeeper {
  const whileWanted = <T>(work: () => Promise<T>): Promise<T> => {
    signal.throwIfAborted()
    return orAbort(work(), signal)
  }
  return {
    ...keeper,
    request: async (request) => whileWanted(() => keeper.request(request)),
    revoke: async (...input) => whileWanted(() => keeper.revoke(...input)),
    async open(...input) {
      const session = await whileWanted(() => keeper.open(...input))
      return (
        session && {
          ...session,
          fetch: async (...input) => whileWanted(() => session.fetch(...input)),
        }
      )
    },
  }
}

/** Waits for what must not be cut off, and not for ever. */
async function settle(
  keeper: GrantKeeper,
  { warn }: Pick<Session, 'warn'>
): Promise<void> {
  const settled = new AbortController()
  const { signal } = settled
  const after = (ms: number) =>
    systemTime.sleep(ms, signal).then(
      () => true,
      () => false
    )
  const isLong = after(SETTLE.quiet).then((isLong) => {
    if (!isLong) return
    warn(
      'what a host was asked for must not be lost, and is waited for; interrupt again to end at once'
    )
  })
  await Promise.race([keeper.settle(), after(SETTLE.timeout)])
  settled.abort()
  await isLong
}

/** The time of this machine, in which nobody sleeps after the signal. */
function timeUntil(end: AbortSignal): Time {
  return {
    now: () => systemTime.now(),
    sleep: (ms, signal) =>
      systemTime.sleep(ms, signal ? AbortSignal.any([end, signal]) : end),
  }
}

/**
 * Lets the agent into an account: the user signs in at its host, and comes
 * back to a server on this machine, which is there for as long as it takes.
 *
 * @param options.show - is told where the user goes
 * @throws {@link GrantRequestError}
 */
export async function authorizeHere(
  session: Session,
  {
    account,
    include,
    show,
    signal,
  }: {
    account: DID
    include: readonly string[] | undefined
    show: (url: URL) => void
    signal: AbortSignal
  }
): Promise<ConcludedRequest> {
  const { promise, resolve, reject } = Promise.withResolvers<ConcludedRequest>()
  // Nobody waits for it while the server starts.
  promise.catch(() => {})
  let grants: AgentGrants | undefined
  /** Answers that are on their way. */
  const answering = new Set<Promise<void>>()
  const server = createServer((request, response) => {
    const url = new URL(request.url ?? '/', `http://${LOOPBACK}`)
    const answer = async () => {
      if (url.pathname !== CALLBACK_PATH || !grants) {
        response.writeHead(404).end()
        return
      }
      let status = 200
      let page = DONE
      try {
        // Whoever comes back here is at the machine that has asked.
        const granted = await grants.keeper.conclude(url.searchParams)
        if (granted.again) {
          response.writeHead(303, {
            ...PAGE_HEADERS,
            location: granted.again.href,
            connection: 'close',
          })
          response.end()
          return
        }
        await grants.publish(granted.account, signal)
        resolve(granted)
      } catch (error) {
        status = 400
        const { message } = error as Error
        page = { title: 'This agent was not let in', text: [[message]] }
        // Anybody may call with nonsense; who was asked is still to come.
        const isOurs = !(error instanceof GrantRequestError) || error.request
        if (isOurs) reject(error)
      }
      response.writeHead(status, {
        ...PAGE_HEADERS,
        'content-type': 'text/html; charset=utf-8',
        connection: 'close',
      })
      response.end(await renderPage(page))
    }
    const answered = answer()
      .catch(reject)
      // Whoever does not want it any more may have gone.
      .then(() => finished(response).catch(() => {}))
      .finally(() => answering.delete(answered))
    answering.add(answered)
  })
  server.listen(0, LOOPBACK)
  await once(server, 'listening', { signal })
  const abort = () => reject(signal.reason as Error)
  signal.addEventListener('abort', abort, { once: true })
  try {
    const { port } = server.address() as AddressInfo
    grants = await openGrants(session, { port })
    const { url, expiration } = await grants.keeper.request({
      space: session.space(),
      account,
      ...(include ? { include } : {}),
      delegation: new Uint8Array(),
      requester: session.client.did(),
    })
    show(url)
    const late = setTimeout(
      () => {
        reject(
          new GrantRequestError(
            'AuthorizationExpired',
            'nobody has signed in and consented in time; start again'
          )
        )
      },
      expiration * 1000 - Date.now()
    )
    try {
      return await promise
    } finally {
      clearTimeout(late)
    }
  } finally {
    signal.removeEventListener('abort', abort)
    server.close()
    const waited = new AbortController()
    await Promise.race([
      Promise.all(answering),
      systemTime.sleep(LAST_ANSWER_TIMEOUT, waited.signal).catch(() => {}),
    ])
    waited.abort()
    // Browsers open some ahead that they never use.
    server.closeAllConnections()
  }
}

const DONE: Page = {
  title: 'You have let this agent in',
  text: [['You can close this page, and go on in the terminal.']],
}
