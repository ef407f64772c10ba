import Table from 'cli-table3'

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB']

/** Seconds in each unit of a duration. */
const SECONDS = { s: 1, m: 60, h: 3600, d: 86_400, w: 604_800, y: 31_536_000 }

/** The last time that there is a date for, in Unix seconds. */
const MAX_TIME = 8_640_000_000_000

/** @param bytes - number of bytes, given with three digits that count */
export function formatBytes(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000
    unit++
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2
  return `${value.toFixed(digits)} ${UNITS[unit]}`
}

export function formatCount(count: number, noun: string): string {
  return `${count.toLocaleString('en-US')} ${noun}${count === 1 ? '' : 's'}`
}

/** @param ms - milliseconds */
export function formatSeconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}

/** @param expiration - Unix seconds, or `Infinity` */
export function formatExpiration(expiration: number): string {
  return expiration > MAX_TIME
    ? 'never'
    : new Date(expiration * 1000).toISOString()
}

/**
 * @param text - a number with a unit: `90s`, `15m`, `24h`, `365d`, `4w`, `1y`
 * @returns seconds; `undefined` if it is no duration
 */
export function parseDuration(text: string): number | undefined {
  const [, count, unit] = /^(\d{1,9})([smhdwy])$/.exec(text) ?? []
  return count === undefined
    ? undefined
    : Number(count) * SECONDS[unit as keyof typeof SECONDS]
}

/**
 * @param seconds - a whole number
 * @returns the number with a unit, as {@link parseDuration} takes it
 */
export function formatDuration(seconds: number): string {
  const units = Object.entries(SECONDS).filter(([unit]) => !'wy'.includes(unit))
  const [unit, size] = units.findLast(([, size]) => seconds % size === 0) ?? [
    's',
    1,
  ]
  return `${seconds / size}${unit}`
}

/** Columns under a head, without lines between them. */
export function formatTable(head: string[], rows: string[][]): string {
  const none = Object.fromEntries(
    [
      'top',
      'top-mid',
      'top-left',
      'top-right',
      'bottom',
      'bottom-mid',
      'bottom-left',
      'bottom-right',
      'left',
      'left-mid',
      'mid',
      'mid-mid',
      'right',
      'right-mid',
      'middle',
    ].map((name) => [name, ''])
  )
  const table = new Table({
    head,
    chars: { ...none, middle: '  ' },
    style: { 'padding-left': 0, 'padding-right': 0, head: [], border: [] },
  })
  table.push(...rows)
  return trimmed(table.toString())
}

/** Names and values, one a line; those without a value are left out. */
export function formatFields(
  fields: [name: string, value: string | undefined][]
): string {
  const given = fields.filter(([, value]) => value !== undefined)
  const width = Math.max(...given.map(([name]) => name.length))
  return given
    .map(([name, value]) => `${name.padEnd(width)}  ${value}`.trimEnd())
    .join('\n')
}

/**
 * Makes text that others wrote safe for a terminal: what could move the cursor
 * or change colours is shown as `?`.
 */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}]/gu, '?')
}

function trimmed(text: string): string {
  return text
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n')
}
