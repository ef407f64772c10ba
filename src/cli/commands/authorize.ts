import { delegate, DID } from '@ucanto/core'
import type { Delegation, Link } from '@ucanto/interface'
import type { Command } from 'commander'
import {
  BACKUP_ABILITIES,
  type Authorization as Protocol,
  type Backup,
} from '../../capabilities/index.ts'
import { Authorization, readReceipt } from '../../client/index.ts'
import { systemTime } from '../../node/index.ts'
import { expirationOf, proofsFor, serviceAuthority } from '../authority.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { ServiceError, UsageError } from '../errors.ts'
import { formatExpiration, formatFields, printable } from '../format.ts'
import { printLine, type Io } from '../io.ts'
import { createIssuedDelegations, issuedFolder } from '../issued.ts'
import { openBrowser } from '../open-browser.ts'
import { authorizeHere } from '../grants.ts'
import { readExpiration } from '../options.ts'
import { INCLUDE_HELP, readParts } from '../parts.ts'
import { isSoon } from '../reauthorize.ts'
import { askService } from '../service.ts'
import type { Session } from '../session.ts'
import { normalizeAccount, resolveAccount } from '../target.ts'

const DEFAULT_LIFETIME = '365d'

/** How the end of a request is waited for. Milliseconds. */
const WAIT_POLICY = { delay: 1000, failures: 5 }

/** `authorize`: lets the service, or this agent, into an account. */
export function createAuthorizeCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('authorize')
    .description(
      'let the service read what only the owner of an account may: you sign in at the host of the account, and consent there'
    )
    .argument('<account>', 'handle or DID')
    .option(
      '--here',
      'let this agent in, not the service: for backups that it makes itself'
    )
    .option('--include <PARTS>', INCLUDE_HELP)
    .option('--no-open', 'only show the address, and open no browser')
    .option(
      '--expires-in <DURATION>',
      `for how long the service may write into the Space what it is granted, as in 24h or 365d, or never (default: ${DEFAULT_LIFETIME})`
    )
  agentCommand<[string]>(
    command,
    context,
    'bluesky-backups authorize alice.bsky.social\nbluesky-backups authorize alice.bsky.social --include preferences,conversations\nbluesky-backups authorize alice.bsky.social --here',
    async ({ session, flags, io }, word) => {
      const include = readParts(flags['include'] as string | undefined)
      const show = (url: URL) => showAddress(io, url, flags['open'] !== false)
      if (flags['here']) {
        if (flags['expiresIn'] !== undefined) {
          throw new UsageError(
            '--expires-in is for the service; leave it out, or --here'
          )
        }
        const account = await resolveAccount(session, word, io.signal)
        const granted = await authorizeHere(session, {
          account,
          include,
          show,
          signal: io.signal,
        })
        return describe({ ...granted, agent: session.client.did() })
      }
      const expiration = readExpiration(
        (flags['expiresIn'] as string | undefined) ?? DEFAULT_LIFETIME
      )
      return describe(
        await authorizeService(session, {
          io,
          account: normalizeAccount(word),
          include,
          expiration,
          show,
        })
      )
    }
  )
}

/** Asks the service for an address, and waits for what the user does there. */
async function authorizeService(
  session: Session,
  {
    io,
    account,
    include,
    expiration,
    show,
  }: {
    io: Io
    account: string
    include: Backup.Part[] | undefined
    /** Unix seconds. */
    expiration: number
    show: (url: URL) => void
  }
): Promise<Protocol.Granted> {
  const space = session.space()
  // So that the authorization goes on where the agent's own clock stands.
  await session.clock()
  const service = await session.service()
  const delegation = await createDelegation(session, expiration)
  const config = await serviceAuthority(session, ['authorization/request'])
  const request = await askService(() =>
    Authorization.request(
      config,
      { account, include, delegation },
      { connection: service.connection, nonce: crypto.randomUUID() }
    )
  )
  printLine(
    io.stderr,
    `you will be asked whether the Space is yours: it is ${space}`
  )
  show(new URL(request.url))
  return waitFor(session, request.task, {
    account,
    deadline: request.expiration * 1000,
    signal: io.signal,
  })
}

/** Waits for the receipt that concludes a request. */
async function waitFor(
  session: Session,
  task: Link,
  {
    account,
    deadline,
    signal,
  }: { account: string; deadline: number; signal: AbortSignal }
): Promise<Protocol.Granted> {
  const service = await session.service()
  for (let failures = 0; Date.now() < deadline;) {
    await systemTime.sleep(WAIT_POLICY.delay, signal)
    let result
    try {
      result = await readReceipt(service, task, { signal })
      failures = 0
    } catch (error) {
      if (++failures >= WAIT_POLICY.failures) throw error
      continue
    }
    if (result?.ok) return result.ok as Protocol.Granted
    if (result?.error) {
      const { name, message } = result.error as Error
      throw new ServiceError(name, message)
    }
  }
  throw new ServiceError(
    'AuthorizationExpired',
    `nobody has signed in and consented in time; start again with \`bluesky-backups authorize ${account}\``
  )
}

/** Lets the service write its authorization into the Space. */
async function createDelegation(
  session: Session,
  expiration: number
): Promise<Delegation> {
  const { client } = session
  const space = session.space()
  const { info } = await session.service()
  const delegation = await delegate({
    issuer: client.agent.issuer,
    audience: DID.parse(info.agent),
    capabilities: BACKUP_ABILITIES.map((can) => ({
      can,
      with: space,
    })) as never,
    proofs: proofsFor(client, space, BACKUP_ABILITIES),
    expiration,
  })
  const end = expirationOf(delegation)
  if (end < expiration && isSoon(end)) {
    session.warn(
      `what allows this agent itself to act in the Space ends on ${formatExpiration(end)}; log in again with \`bluesky-backups login EMAIL\` before that, and authorize again`
    )
  }
  await createIssuedDelegations(issuedFolder(session)).keep(delegation)
  return delegation
}

function showAddress(io: Io, url: URL, open: boolean): void {
  printLine(
    io.stderr,
    `sign in and consent at\n\n  ${url.href}\n\nwaiting for it; Ctrl-C gives up`
  )
  if (open && io.stderr.isTTY) openBrowser(url)
}

function describe(granted: Protocol.Granted) {
  const { account, agent, parts, missing, expiration } = granted
  return {
    json: {
      account,
      agent,
      parts,
      missing,
      expiration: new Date(expiration * 1000).toISOString(),
    },
    text: formatFields([
      ['account', printable(account)],
      ['agent', printable(agent)],
      ['granted', printable(parts.join(', ')) || 'nothing beside the account'],
      [
        'not granted',
        missing.length === 0
          ? undefined
          : printable(`${missing.join(', ')} (by the host of the account)`),
      ],
      ['re-authorize by', formatExpiration(expiration)],
    ]),
  }
}
