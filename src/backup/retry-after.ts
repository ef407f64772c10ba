/** A day: what a server may at most make us wait, in seconds. */
const MAX_RETRY_AFTER = 86_400

/** Seconds from which on a number is a point in time: the year 2001. */
const UNIX_TIME = 1e9

/**
 * When the next request is welcome. Both headers may tell seconds from now or
 * a point in time: `Retry-After` as a date, `RateLimit-Reset` as seconds of
 * Unix time, as hosts of accounts do. A point in time is compared with the
 * `Date` of the answer, because our clock may differ from the server's.
 *
 * @returns seconds, 0 to a day; nothing if the headers do not tell
 * @see https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
 */
export function retryAfter(headers: Headers): number | undefined {
  const value = headers.get('retry-after') ?? headers.get('ratelimit-reset')
  if (!value) return undefined
  const date = Date.parse(headers.get('date') ?? '')
  const now = (Number.isNaN(date) ? Date.now() : date) / 1000
  const seconds = !/^\d+$/.test(value)
    ? Math.ceil(Date.parse(value) / 1000 - now)
    : Number(value) < UNIX_TIME
      ? Number(value)
      : Math.ceil(Number(value) - now)
  if (Number.isNaN(seconds)) return undefined
  return Math.min(Math.max(seconds, 0), MAX_RETRY_AFTER)
}
