import { delegate, DID } from '@ucanto/core'
import type { Link } from '@ucanto/interface'
import { createAccountReader } from '../atproto/index.ts'
import {
  DEFAULT_LIMITS,
  runBackup,
  type Outcome,
  type Progress,
} from '../backup/index.ts'
import { BACKUP_ABILITIES } from '../capabilities/index.ts'
import type { Backup as Protocol } from '../capabilities/index.ts'
import { Backup } from '../client/index.ts'
import type { StatusInput } from '../client/backup.ts'
import {
  createFileSpool,
  createNativeSha256,
  systemTime,
} from '../node/index.ts'
import { readSettings } from '../service/config.ts'
import { proofsFor, serviceAuthority } from './authority.ts'
import { ServiceError } from './errors.ts'
import { openGrants } from './grants.ts'
import type { Io } from './io.ts'
import { createPrivateContext } from '../service/private.ts'
import { createJournal } from '../service/journal.ts'
import { LIMIT_SETTINGS, settingFlags, type Flags } from './options.ts'
import { askService } from './service.ts'
import type { FoundService, Session } from './session.ts'
import { resolveAccount } from './target.ts'
import { openWriter } from './writer.ts'

/** What a service may do for one run is over after so many seconds. */
const RUN_LIFETIME = 24 * 60 * 60

/** How a run at a service is followed. Milliseconds. */
const FOLLOW_POLICY = {
  minDelay: 250,
  maxDelay: 2000,
  /** Answers in a row that may fail before the run is not followed any more. */
  failures: 5,
}

export interface RunOptions {
  io: Io
  flags: Flags
  /** DID or handle. */
  account: string
  include?: Protocol.Part[] | undefined
}

/** Backs an account up in this process, by the agent's own power. */
export async function runHere(
  session: Session,
  {
    io,
    flags,
    account,
    include,
    onProgress,
  }: RunOptions & { onProgress: (progress: Readonly<Progress>) => void }
): Promise<Outcome> {
  const limits = readSettings(LIMIT_SETTINGS, settingFlags(flags), io.env)
  const space = session.space()
  const { journal } = await session.stores()
  const grants = await openGrants(session)
  const outcome = await runBackup(
    {
      identities: session.identities,
      accounts: createAccountReader({ fetch: session.fetch }),
      writer: openWriter(session, io.signal),
      reader: session.reader,
      clock: await session.clock(),
      journal: (account) => createJournal(journal, space, account),
      createSpool: () => createFileSpool(),
      createSha256: createNativeSha256,
      time: systemTime,
      limits: { ...DEFAULT_LIMITS, ...limits },
      authorizations: grants.journal,
      private: createPrivateContext({
        agent: session.client.agent.issuer,
        keeper: grants.keeper,
        space,
        plain: flags['plain'] === true,
      }),
      onWarning: (message) => session.warn(message),
    },
    {
      account,
      ...(include ? { parts: include } : {}),
      signal: io.signal,
      onProgress,
    }
  )
  // A run that found nothing new took no authorization along.
  await grants.publish(outcome.account, io.signal)
  return outcome
}

/**
 * Asks the service to back an account up, and lets it act in the Space as long
 * as one run may take.
 *
 * @returns the run
 */
export async function startRun(
  session: Session,
  { io, account, include }: RunOptions
): Promise<Link> {
  const { client } = session
  const space = session.space()
  // So that the backup goes on where the agent's own clock stands.
  await session.clock()
  const { info, connection } = await session.service()
  const did = await resolveAccount(session, account, io.signal)
  const delegation = await delegate({
    issuer: client.agent.issuer,
    audience: DID.parse(info.agent),
    capabilities: BACKUP_ABILITIES.map((can) => ({
      can,
      with: space,
    })) as never,
    proofs: proofsFor(client, space, BACKUP_ABILITIES),
    expiration: Math.floor(Date.now() / 1000) + RUN_LIFETIME,
  })
  const config = await serviceAuthority(session, ['backup/run'])
  const { run } = await askService(() =>
    Backup.run(
      config,
      { account: did, ...(include ? { include } : {}), delegation },
      // Asked again in the same second, it is another run that is meant.
      { connection, nonce: crypto.randomUUID() }
    )
  )
  return run
}

/**
 * Waits for a run at the service to end.
 *
 * @throws {@link ServiceError} named as the failure that the run ended with
 */
export async function followRun(
  session: Session,
  run: Link,
  {
    io,
    onProgress,
  }: Pick<RunOptions, 'io'> & {
    onProgress: (progress: Readonly<Protocol.RunProgress>) => void
  }
): Promise<Protocol.RunOutcome> {
  const service = await session.service()
  let failures = 0
  for (
    let delay = FOLLOW_POLICY.minDelay;
    ;
    delay = Math.min(delay * 1.5, FOLLOW_POLICY.maxDelay)
  ) {
    await systemTime.sleep(delay, io.signal)
    let status: Protocol.RunStatus | undefined
    try {
      ;[status] = await listRuns(session, service, { run })
      failures = 0
    } catch (error) {
      if (++failures >= FOLLOW_POLICY.failures) throw error
      continue
    }
    if (!status) continue
    if (status.progress) onProgress(status.progress)
    if (status.state === 'done' && status.outcome) return status.outcome
    if (status.state === 'failed') {
      const { name, message } = status.error ?? {
        name: 'RunFailed',
        message: 'the run failed; the log of the service has the reason',
      }
      throw new ServiceError(name, message)
    }
  }
}

/** Runs at the service: one, or the latest of the Space or of an account. */
export async function listRuns(
  session: Session,
  { connection }: FoundService,
  which: StatusInput = {}
): Promise<Protocol.RunStatus[]> {
  const { client } = session
  const space = session.space()
  const { runs } = await askService(() =>
    Backup.status(
      {
        issuer: client.agent.issuer,
        with: space,
        proofs: proofsFor(client, space, ['backup/status']),
      },
      which,
      { connection }
    )
  )
  return runs
}
