/**
 * What the clock on the wall of a time zone shows. A wall time is a number of
 * milliseconds as well: those of the moment at which a clock in UTC shows it.
 *
 * @packageDocumentation
 */

const MINUTE = 60_000

/** Milliseconds that wall times differ from UTC at most, and more. */
const DAY = 24 * 60 * MINUTE

/** A moment at which the clocks of a zone are changed. */
interface Change {
  /** Unix milliseconds of the first moment after it. */
  at: number
  /** Milliseconds that the wall is ahead of UTC until then. */
  before: number
  /** The same from then on. */
  after: number
}

/**
 * The latest wall time whose moment, as {@link momentOf} tells it, has come.
 *
 * @param now - Unix milliseconds
 */
export function latestShown(zone: string, now: number): number {
  const change = changeBetween(zone, now - DAY, now + MINUTE)
  if (!change) return now + offsetAt(zone, now)
  const { at, before, after } = change
  if (now < at) return restOfDay(change) ?? now + before
  // After clocks went back, they show nothing new until they have caught up.
  return Math.max(now + after, at + before - 1)
}

/**
 * The first moment at which clocks show a wall time. A time that they skip has
 * the first moment after it; if they skip the rest of the day, that is the last
 * minute of the day before: what is due on a day stays on it.
 *
 * @param shown - the wall time
 * @returns Unix milliseconds
 */
export function momentOf(zone: string, shown: number): number {
  const change = changeBetween(zone, shown - DAY, shown + DAY)
  if (!change) return shown - offsetAt(zone, shown)
  const { at, before, after } = change
  if (shown < at + before) return shown - before
  if (shown <= (restOfDay(change) ?? -Infinity)) return at - MINUTE
  return Math.max(at, shown - after)
}

/** @returns the last wall time of a day of which a change skips the rest */
function restOfDay({ at, before, after }: Change): number | undefined {
  const skipped = at + before
  const last = Math.floor((skipped - 1) / DAY) * DAY + DAY - 1
  return last >= skipped && last < at + after ? last : undefined
}

/** @returns the first change after one moment, up to another; there is one at most */
function changeBetween(
  zone: string,
  from: number,
  to: number
): Change | undefined {
  const before = offsetAt(zone, from)
  const after = offsetAt(zone, to)
  if (before === after) return undefined
  let [low, high] = [from, to]
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2)
    if (offsetAt(zone, middle) === before) low = middle
    else high = middle
  }
  return { at: high, before, after }
}

/** One for each zone that is in use: to make one takes long. */
const formats = new Map<string, Intl.DateTimeFormat>()

/** @returns milliseconds that the wall is ahead of UTC */
function offsetAt(zone: string, moment: number): number {
  let format = formats.get(zone)
  if (!format) {
    format = new Intl.DateTimeFormat('en-US', {
      timeZone: zone,
      calendar: 'gregory',
      numberingSystem: 'latn',
      hourCycle: 'h23',
      year: 'numeric',
      month: 'numeric',
      day: 'numeric',
      hour: 'numeric',
      minute: 'numeric',
      second: 'numeric',
    })
    formats.set(zone, format)
  }
  const parts = new Map(
    format.formatToParts(moment).map(({ type, value }) => [type, Number(value)])
  )
  const part = (type: Intl.DateTimeFormatPartTypes) => parts.get(type) ?? 0
  const shown = Date.UTC(
    part('year'),
    part('month') - 1,
    part('day'),
    part('hour'),
    part('minute'),
    part('second')
  )
  return shown - Math.floor(moment / 1000) * 1000
}
