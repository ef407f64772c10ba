import type { Link } from '@ucanto/interface'
import { CID } from 'multiformats/cid'
import { Backup } from '../capabilities/index.ts'
import type { StatusInput } from './backup.ts'
import type { InvocationConfig } from './connection.ts'
import { meaningless, watchEvents, type WatchOptions } from './events.ts'

const STATES: unknown[] = ['queued', 'running', 'done', 'failed']

/** Runs that are remembered, so that none is told twice. */
const MAX_REMEMBERED = 1_000

/**
 * Follows runs of a Space: gives the latest as they are, and each whenever it
 * changes. When the answer breaks off, the service is asked again; what a run
 * went through meanwhile is not told, only how it is then.
 *
 * @param input.run - one run: ends when it has ended
 * @param input.account - only runs of this account
 * @throws {@link ServiceUnreachableError} {@link WatchRefusedError}
 * @example
 * ```ts
 * for await (const { state, progress } of followRuns(
 *   { issuer, with: space, proofs },
 *   { run },
 *   { connection, url }
 * )) {
 *   console.log(state, progress?.stage)
 * }
 * ```
 */
export async function* followRuns(
  { issuer, audience, with: space, proofs }: InvocationConfig,
  { run, account }: Pick<StatusInput, 'run' | 'account'>,
  options: WatchOptions
): AsyncGenerator<Backup.RunStatus, void> {
  const events = watchEvents(
    `/backup/${space}/events`,
    (validity) =>
      Backup.status.invoke({
        issuer,
        audience: audience ?? options.connection.id,
        with: space,
        proofs,
        nb: {
          ...(run ? { run } : {}),
          ...(account === undefined ? {} : { account }),
        },
        ...validity,
      }),
    options
  )
  const told = new Map<string, string>()
  for await (const { name, data } of events) {
    if (name !== 'run') continue
    const status = readStatus(data)
    const id = status.run.toString()
    const text = JSON.stringify(data)
    if (told.get(id) !== text) {
      told.delete(id)
      told.set(id, text)
      const [oldest] = told.keys()
      if (told.size > MAX_REMEMBERED) told.delete(oldest!)
      yield status
    }
    if (run && (status.state === 'done' || status.state === 'failed')) return
  }
}

/** @throws {@link WatchRefusedError} when it is no run */
function readStatus(data: unknown): Backup.RunStatus {
  const status = Object(data) as Omit<Backup.RunStatus, 'run'> & { run: string }
  if (
    !STATES.includes(status.state) ||
    typeof status.account !== 'string' ||
    typeof status.created !== 'number'
  ) {
    throw meaningless()
  }
  try {
    return { ...status, run: CID.parse(status.run) as Link }
  } catch (cause) {
    throw meaningless(cause)
  }
}
