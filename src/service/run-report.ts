import type { Result } from '@ucanto/interface'
import type { Outcome, Progress, Stage } from '../backup/index.ts'
import type { Run, RunError } from '../stores/index.ts'

/** What is logged and counted of a run that has ended. */
export interface RunReport {
  outcome: Outcome['kind'] | 'failed'
  /** Since it was begun for the first time, in milliseconds. */
  ms: number
  /** Since it was asked for until it was begun, in milliseconds. */
  waitedMs: number
  /** Milliseconds in each stage. */
  stages: Partial<Record<Stage, number>>
  bytesRead: number
  bytesUploaded: number
  blobsDone: number
  blobsMissing: number
  blobsFailed: number
  /** How often it was begun again. */
  retries: number
  /** CID of the event that it made. */
  event?: string
  failure?: RunError
}

/**
 * Sums a run up that has ended.
 *
 * @param progress - how far it came, where it came so far
 */
export function reportOf(
  {
    created,
    started,
    finished,
    attempts,
  }: Pick<Run, 'created' | 'started' | 'attempts'> & { finished: number },
  { ok, error }: Result<Outcome, RunError>,
  progress: Readonly<Progress> | undefined
): RunReport {
  const begun = started ?? finished
  const stages: RunReport['stages'] = {}
  for (const { stage, began, ended } of progress?.stages ?? []) {
    stages[stage] = (stages[stage] ?? 0) + (ended ?? finished) - began
  }
  return {
    outcome: ok ? ok.kind : 'failed',
    ms: finished - begun,
    waitedMs: begun - created,
    stages,
    bytesRead: progress?.bytesRead ?? 0,
    bytesUploaded: progress?.bytesUploaded ?? 0,
    blobsDone: progress?.blobsDone ?? 0,
    blobsMissing: progress?.blobsMissing ?? 0,
    blobsFailed: progress?.blobsFailed ?? 0,
    retries: attempts - 1,
    ...(ok?.event === undefined ? {} : { event: ok.event }),
    ...(error ? { failure: error } : {}),
  }
}
