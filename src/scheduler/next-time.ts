/**
 * When a schedule is due. The times follow from the schedule alone: whoever
 * computes them, wherever and how often, comes to the same ones. They are
 * spread, so that all who say "every hour" do not come at the same moment:
 *
 * - `every` counts from an anchor within the first hour, by the Space and the
 *   account;
 * - `cron` keeps its minute, and is due within it, by the Space and the account.
 *
 * `cron` with every hour of the day follows the hours that pass. Any other
 * `cron` follows the clock on the wall: when clocks go forward, a time that they
 * skip is due at the first moment after it, or in the last minute of its day if
 * they skip the rest of the day; when they go back, a time that they show twice
 * is due at the first.
 *
 * What was missed is made up for once: the next time is always after the moment
 * that it is asked for.
 *
 * @packageDocumentation
 */
import { createHash } from 'node:crypto'
import { Cron, CronPattern } from 'croner'
import { LRUCache } from 'lru-cache'
import type { Rhythm, Schedule } from '../stores/index.ts'
import { InvalidRhythmError } from './errors.ts'
import { latestShown, momentOf } from './wall-time.ts'

const MINUTE = 60_000
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

/** Milliseconds in which a new schedule of `every` is due for the first time. */
const FIRST_WINDOW = HOUR

/** Milliseconds that `cron` is due after its minute has begun, at most. */
export const CRON_SPREAD = MINUTE

/** A year and the day that one in four has more. */
const LONGEST_WAIT = 366 * DAY

const FIELDS = /^[\dA-Za-z*,/#-]+( +[\dA-Za-z*,/#-]+){4}$/
const MAX_CRON_LENGTH = 500
/** Cron expressions that are kept parsed: to parse one takes a tenth of a millisecond. */
const MAX_PARSED = 1_000

const ZONE = /^[A-Za-z][A-Za-z0-9_+/-]{0,63}$/

/** Seconds between two runs. */
export interface RhythmLimits {
  minimum: number
  maximum: number
}

export const RHYTHM_LIMITS: RhythmLimits = {
  minimum: 5 * 60,
  maximum: 365 * 24 * 60 * 60,
}

/** What the times of a schedule follow from. */
export type Timed = Pick<Schedule, 'space' | 'account' | 'rhythm' | 'anchor'>

/**
 * Reads a rhythm as somebody gave it.
 *
 * @param given - `every` in seconds, or `cron` and perhaps its `timezone`
 * @param now - Unix milliseconds
 * @throws {@link InvalidRhythmError}
 */
export function readRhythm(
  {
    every,
    cron,
    timezone,
  }: {
    every?: number | undefined
    cron?: string | undefined
    timezone?: string | undefined
  },
  now: number,
  limits: RhythmLimits = RHYTHM_LIMITS
): Rhythm {
  if ((every === undefined) === (cron === undefined)) {
    throw new InvalidRhythmError(
      'say when there are backups either by every, in seconds, or by cron'
    )
  }
  if (every !== undefined) {
    if (timezone !== undefined) {
      throw new InvalidRhythmError(
        'a timezone goes with cron; every counts seconds, which are the same everywhere'
      )
    }
    checkEvery(every, limits)
    return { every }
  }
  const rhythm = { cron: cron ?? '', timezone: timezone ?? 'UTC' }
  checkCron(rhythm, now, limits)
  return rhythm
}

/**
 * What the times of a new schedule are counted from: its first, if the rhythm
 * is `every`.
 *
 * @param now - Unix milliseconds
 * @returns Unix milliseconds
 */
export function anchorOf(
  { space, account, rhythm }: Omit<Timed, 'anchor'>,
  now: number
): number {
  if (!('every' in rhythm)) return now
  const window = Math.min(rhythm.every * 1000, FIRST_WINDOW)
  return now + spread(space, account, window)
}

/**
 * The first regular time of a schedule after a moment.
 *
 * @param after - Unix milliseconds
 * @returns Unix milliseconds
 * @throws {@link InvalidRhythmError} if there is none
 */
export function nextTime(
  { space, account, rhythm, anchor }: Timed,
  after: number
): number {
  if ('every' in rhythm) {
    const interval = rhythm.every * 1000
    if (after < anchor) return anchor
    return anchor + (Math.floor((after - anchor) / interval) + 1) * interval
  }
  const delay = spread(space, account, CRON_SPREAD)
  const minute = parseCron(rhythm).nextMinute(after - delay)
  if (minute === undefined) throw neverDue(rhythm.cron)
  return minute + delay
}

function checkEvery(every: number, { minimum, maximum }: RhythmLimits): void {
  if (!Number.isSafeInteger(every)) {
    throw new InvalidRhythmError('every must be a whole number of seconds')
  }
  if (every < minimum || every > maximum) {
    throw new InvalidRhythmError(
      `every is ${every} seconds; it may be from ${minimum} to ${maximum}`
    )
  }
}

function checkCron(
  rhythm: { cron: string; timezone: string },
  now: number,
  { minimum }: RhythmLimits
): void {
  const { nextMinute, pattern } = parseCron(rhythm)
  const gap = shortestGap(pattern)
  if (gap < minimum) {
    throw new InvalidRhythmError(
      `"${rhythm.cron}" makes backups ${gap} seconds after one another; at least ${minimum} seconds must lie between them`
    )
  }
  // Twice: what comes on leap days only may come tomorrow.
  let last = now
  for (let times = 0; times < 2; times += 1) {
    const next = nextMinute(last)
    if (next === undefined || next - last > LONGEST_WAIT) {
      throw neverDue(rhythm.cron)
    }
    last = next
  }
}

/** A cron expression that was checked. */
interface Times {
  pattern: CronPattern
  /**
   * @param after - Unix milliseconds
   * @returns Unix milliseconds, later than `after`; nothing if there is no time
   */
  nextMinute: (after: number) => number | undefined
}

const parsed = new LRUCache<string, Times>({ max: MAX_PARSED })

function parseCron(rhythm: { cron: string; timezone: string }): Times {
  const key = `${rhythm.timezone} ${rhythm.cron}`
  const times = parsed.get(key) ?? parseAnew(rhythm)
  parsed.set(key, times)
  return times
}

function parseAnew({
  cron,
  timezone,
}: {
  cron: string
  timezone: string
}): Times {
  const zone = parseZone(timezone)
  if (cron.length > MAX_CRON_LENGTH || !FIELDS.test(cron)) {
    throw notCron(cron)
  }
  try {
    const pattern = new CronPattern(cron, undefined, { mode: '5-part' })
    const isHourly = pattern.hour.every((inHour) => inHour)
    const calendar = new Cron(cron, {
      mode: '5-part',
      timezone: isHourly ? zone : 'UTC',
      paused: true,
    })
    const next = (after: number) => calendar.nextRun(new Date(after))?.getTime()
    if (isHourly) return { pattern, nextMinute: next }
    return {
      pattern,
      nextMinute(after) {
        // The calendar has no zone: its times are those on the wall.
        const shown = next(latestShown(zone, after))
        return shown === undefined ? undefined : momentOf(zone, shown)
      },
    }
  } catch (cause) {
    throw notCron(cron, cause)
  }
}

/** @returns the name as the runtime writes it: names differ in case only once */
function parseZone(timezone: string): string {
  if (ZONE.test(timezone)) {
    try {
      const format = new Intl.DateTimeFormat('en', { timeZone: timezone })
      return format.resolvedOptions().timeZone
    } catch {
      // It is told below.
    }
  }
  throw new InvalidRhythmError(
    `"${timezone.slice(0, 64)}" is not a timezone; give the name of one, as in Europe/Berlin or UTC`
  )
}

/** Seconds between two times of a day, or of a day and the next. */
function shortestGap({ minute, hour }: CronPattern): number {
  const times: number[] = []
  for (const [hours, inHour] of hour.entries()) {
    if (!inHour) continue
    for (const [minutes, inMinute] of minute.entries()) {
      if (inMinute) times.push((hours * HOUR + minutes * MINUTE) / 1000)
    }
  }
  const day = DAY / 1000
  return Math.min(
    ...times.map((time, at) => (times[at + 1] ?? (times[0] ?? 0) + day) - time)
  )
}

/** @returns a number of milliseconds below `window`, always the same */
function spread(space: string, account: string, window: number): number {
  const digest = createHash('sha256').update(`${space}\n${account}`).digest()
  return digest.readUIntBE(0, 6) % window
}

function notCron(cron: string, cause?: unknown): InvalidRhythmError {
  return new InvalidRhythmError(
    `"${cron.slice(0, 100)}" is not a cron expression; write five fields – minute, hour, day of the month, month, day of the week – as in 0 4 * * *`,
    { cause }
  )
}

function neverDue(cron: string): InvalidRhythmError {
  return new InvalidRhythmError(
    `"${cron}" does not come once a year; choose days that there are every year`
  )
}
