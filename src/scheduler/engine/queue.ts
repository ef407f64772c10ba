import type { Kysely } from 'kysely'
import type { Tables } from '../../stores/index.ts'
import type { DeadLetter, Job, JobCounts, NewJob } from './interface.ts'

/** What an engine's database does. Everything else is the same on both. */
export interface JobQueue {
  insert(jobs: NewJob[], transaction?: Kysely<Tables>): Promise<number>

  /** Takes jobs, at most `limit`; none is there when none can be taken now. */
  claim(limit: number): Promise<ClaimedJob[]>

  /** @returns ids of the jobs that are still held */
  keep(claims: Claim[]): Promise<Set<string>>

  /** @returns ids of the jobs that were held, and are done now */
  complete(claims: Claim[]): Promise<Set<string>>

  /** @returns whether the job was held */
  settle(claimed: ClaimedJob, ending: Unfinished): Promise<boolean>

  outstanding(): Promise<Map<string, number>>
  live(keys: string[]): Promise<Set<string>>
  counts(): Promise<JobCounts>
  deadLetters(limit: number): Promise<DeadLetter[]>
  close(): Promise<void>
}

/** One run of a job. No other run has the same id and the same `claims`. */
export interface Claim {
  id: string
  /** How often the job was claimed, this time included. */
  claims: number
  /** Claims before this one that do not count as attempts. */
  excused: number
}

export interface ClaimedJob {
  claim: Claim
  job: Job
}

/** How a claim ends whose job is not done. */
export type Unfinished =
  /** Back into the queue, for so many milliseconds. */
  | { retry: number; excused: boolean; isLast?: boolean }
  | { dead: { name: string; message: string } }

/** Below all that anybody asks for. */
export const LAST = -1_000

/** The priority that a job has from now on. */
export function priorityAfter(
  { priority }: Job,
  { isLast = false }: { isLast?: boolean }
): number {
  return isLast ? LAST : priority
}

export function attemptOf({ claims, excused }: Claim): number {
  return claims - excused
}
