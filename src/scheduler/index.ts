/**
 * Schedules: when they are due, and what becomes of them then.
 *
 * @packageDocumentation
 */
export { InvalidRhythmError } from './errors.ts'
export {
  anchorOf,
  nextTime,
  readRhythm,
  RHYTHM_LIMITS,
  type RhythmLimits,
} from './next-time.ts'
export {
  createScheduler,
  SCHEDULER_POLICY,
  type Scheduler,
  type SchedulerContext,
  type SchedulerPolicy,
} from './scheduler.ts'
export {
  createEmbeddedEngine,
  openPgBossEngine,
  type JobCounts,
  type JobEngine,
} from './engine/index.ts'
