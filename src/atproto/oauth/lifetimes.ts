const DAY = 24 * 60 * 60
const YEAR = 365.25 * DAY

/** How long a grant may be used, in seconds. */
export interface GrantLifetimes {
  /** From the consent on, however it is used. */
  total: number
  /** From one refresh to the next. */
  idle: number
}

/** A client that proves who it is. */
export const CONFIDENTIAL_LIFETIMES: GrantLifetimes = {
  total: 2 * YEAR,
  idle: YEAR / 4,
}

/** A client that anybody could be. */
export const PUBLIC_LIFETIMES: GrantLifetimes = {
  total: 14 * DAY,
  idle: 14 * DAY,
}
