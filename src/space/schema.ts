import * as dagPB from '@ipld/dag-pb'
import type { Link, UnknownLink } from 'multiformats'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { compareBytes, isBytes } from './bytes.ts'
import { DecodeError, TooLargeError, UnknownVersionError } from './errors.ts'
import type { DID } from './interface.ts'

/**
 * Takes an unknown value and gives it back typed, or throws. The path says
 * where the value stands, for the message: `Backup bafy….identity.log`.
 *
 * @throws {@link DecodeError}
 */
export type Check<T> = (value: unknown, path: string) => T

/** Length of a SHA-256 digest in bytes. */
export const SHA_256_LENGTH = 32

/** Length of a DID in characters, at most. */
const MAX_DID_LENGTH = 2048

/** Characters of an unknown key that an error message shows. */
const MAX_SHOWN_KEY_LENGTH = 64

const DID_SYNTAX =
  /^did:[a-z0-9]+:(?:[A-Za-z0-9._:-]|%[0-9A-Fa-f]{2})*(?:[A-Za-z0-9._-]|%[0-9A-Fa-f]{2})$/

const TIMESTAMP_SYNTAX = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/

/** A map with exactly these fields. */
export function struct<T extends object>(fields: {
  [Key in keyof T]-?: Check<T[Key]>
}): Check<T> {
  return (value, path) => {
    const map = mapOf(value, path)
    for (const key of Object.keys(map)) {
      if (!Object.hasOwn(fields, key)) {
        throw new DecodeError(`${path} has an unknown field ${show(key)}`)
      }
    }
    const result: Record<string, unknown> = {}
    for (const [key, check] of Object.entries<Check<unknown>>(fields)) {
      const field = check(map[key], `${path}.${key}`)
      if (field !== undefined) result[key] = field
    }
    return result as T
  }
}

/**
 * A struct that says which version of the format it is in.
 *
 * @param additions - for each later version, the fields that it has beside
 *   those of the first
 */
export function versioned<
  T extends { version: number },
  Later extends keyof T = never,
>(
  fields: { [Key in Exclude<keyof T, 'version' | Later>]-?: Check<T[Key]> },
  ...additions: { [Key in Later]?: Check<T[Key]> }[]
): Check<T> {
  const checks = [{}, ...additions].map(
    (added, at) =>
      struct<object>({
        version: oneOf([at + 1]),
        ...fields,
        ...added,
      }) as Check<T>
  )
  return (value, path) => {
    const { version } = mapOf(value, path)
    if (Number.isSafeInteger(version) && !checks[(version as number) - 1]) {
      throw new UnknownVersionError(
        `${path} is in version ${version as number} of the format and only version ${checks.map((_, at) => at + 1).join(' and ')} is known: update this program`
      )
    }
    // Anything but a number is left to the check, which refuses it by name:
    // a map cannot be made a number without an exception.
    const at = typeof version === 'number' ? version - 1 : 0
    return ((checks[at] ?? checks[0]) as Check<T>)(value, path)
  }
}

/** A map with some of the keys. */
export function partial<Key extends string, T>(
  keys: readonly Key[],
  check: Check<T>
): Check<Partial<Record<Key, T>>> {
  return struct(
    Object.fromEntries(keys.map((key) => [key, optional(check)]))
  ) as Check<Partial<Record<Key, T>>>
}

/** Whatever passes one of the checks; the last one's error is told. */
export function anyOf<T>(...checks: Check<T>[]): Check<T> {
  return (value, path) => {
    for (const check of checks.slice(0, -1)) {
      try {
        return check(value, path)
      } catch (error) {
        if (!(error instanceof DecodeError)) throw error
      }
    }
    return (checks.at(-1) as Check<T>)(value, path)
  }
}

/** A field that may be left out. */
export function optional<T>(check: Check<T>): Check<T | undefined> {
  return (value, path) => (value === undefined ? undefined : check(value, path))
}

/** A map from DIDs to values, with at most `max` entries. */
export function didMap<T>(check: Check<T>, max: number): Check<Record<DID, T>> {
  return (value, path) => {
    const entries = Object.entries(mapOf(value, path))
    if (entries.length > max) {
      throw new TooLargeError(
        `${path} has ${entries.length} entries, more than ${max}`
      )
    }
    const result: Record<DID, T> = {}
    for (const [key, item] of entries) {
      result[did(key, `${path} key ${show(key)}`)] = check(
        item,
        `${path}[${show(key)}]`
      )
    }
    return result
  }
}

/** A list with at most `max` items. */
export function list<T>(check: Check<T>, max: number): Check<T[]> {
  return (value, path) => {
    if (!Array.isArray(value)) {
      throw new DecodeError(`${path} must be a list`)
    }
    if (value.length > max) {
      throw new TooLargeError(
        `${path} has ${value.length} items, more than ${max}`
      )
    }
    return value.map((item, i) => check(item, `${path}[${i}]`))
  }
}

/** One of a few values. */
export function oneOf<const T>(values: readonly T[]): Check<T> {
  return (value, path) => {
    if (!values.includes(value as T)) {
      throw new DecodeError(`${path} must be one of: ${values.join(', ')}`)
    }
    return value as T
  }
}

/** Text of at most `max` UTF-16 code units. */
export function text(max: number): Check<string> {
  return (value, path) => {
    if (typeof value !== 'string' || !value.isWellFormed()) {
      throw new DecodeError(`${path} must be text`)
    }
    if (value.length > max) {
      throw new TooLargeError(
        `${path} has ${value.length} characters, more than ${max}`
      )
    }
    return value
  }
}

/** Text that matches a pattern, which `what` names. */
export function pattern(syntax: RegExp, what: string): Check<string> {
  return (value, path) => {
    if (typeof value !== 'string' || !syntax.test(value)) {
      throw new DecodeError(`${path} must be ${what}`)
    }
    return value
  }
}

/**
 * A DID.
 *
 * @see https://www.w3.org/TR/did-core/#did-syntax
 */
export function did(value: unknown, path: string): DID {
  if (
    typeof value !== 'string' ||
    value.length > MAX_DID_LENGTH ||
    !DID_SYNTAX.test(value)
  ) {
    throw new DecodeError(`${path} must be a DID`)
  }
  return value as DID
}

/** A point in time as `YYYY-MM-DDTHH:mm:ss.sssZ`: ordered as text is. */
export function timestamp(value: unknown, path: string): string {
  if (!isTimestamp(value)) {
    throw new DecodeError(
      `${path} must be a UTC time like 2025-03-12T15:13:59.958Z`
    )
  }
  return value
}

/** Whether a value is a UTC time with milliseconds, as ISO 8601 has it. */
export function isTimestamp(value: unknown): value is string {
  return (
    typeof value === 'string' &&
    TIMESTAMP_SYNTAX.test(value) &&
    isSameTime(value)
  )
}

/** Whether the text is its own canonical form: no 30th of February. */
function isSameTime(value: string): boolean {
  const time = new Date(value)
  return !Number.isNaN(time.getTime()) && time.toISOString() === value
}

/** A whole number from 0 to 2^53 - 1. */
export function integer(value: unknown, path: string): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) {
    throw new DecodeError(`${path} must be a whole number from 0 to 2^53 - 1`)
  }
  return value
}

/**
 * Whom private parts are sealed for. Its checksum is not looked at.
 *
 * @see https://age-encryption.org/v1
 */
export const recipient: Check<string> = pattern(
  /^age1[02-9ac-hj-np-z]{58}$/,
  'an age X25519 recipient'
)

/** Any bytes. */
export function bytes(value: unknown, path: string): Uint8Array {
  if (!isBytes(value)) {
    throw new DecodeError(`${path} must be bytes`)
  }
  return value
}

/** The multihash of something that is hashed with SHA-256. */
export function sha256Multihash(value: unknown, path: string): Uint8Array {
  const multihash = bytes(value, path)
  if (
    multihash.length !== SHA_256_LENGTH + 2 ||
    multihash[0] !== sha256.code ||
    multihash[1] !== SHA_256_LENGTH
  ) {
    throw new DecodeError(`${path} must be a sha2-256 multihash`)
  }
  return multihash
}

/** Whether a link is a CIDv1 of the codec with a whole SHA-256 digest. */
export function isSha256Link(
  link: {
    version: number
    code: number
    multihash: { code: number; size: number }
  },
  code: number
): boolean {
  return (
    link.version === 1 &&
    link.code === code &&
    link.multihash.code === sha256.code &&
    link.multihash.size === SHA_256_LENGTH
  )
}

/** A link to a block of the codec, hashed with SHA-256. */
export function link<T>(code: number): Check<Link<T>> {
  return (value, path) => {
    const cid = CID.asCID(value)
    if (cid === null || !isSha256Link(cid, code)) {
      throw new DecodeError(
        `${path} must be a link (CIDv1, codec 0x${code.toString(16)}, sha2-256)`
      )
    }
    return cid as Link<T>
  }
}

/** A link to a file: its one raw block, or the root of its UnixFS DAG. */
export function fileLink(value: unknown, path: string): UnknownLink {
  return anyOf<UnknownLink>(link(raw.code), link(dagPB.code))(value, path)
}

/** Fails unless the items ascend, each greater than the one before. */
export function checkAscending(
  items: Iterable<Uint8Array>,
  path: string
): void {
  let previous: Uint8Array | undefined
  for (const item of items) {
    if (previous !== undefined && compareBytes(previous, item) >= 0) {
      throw new DecodeError(`${path} must be sorted and without duplicates`)
    }
    previous = item
  }
}

function mapOf(value: unknown, path: string): Record<string, unknown> {
  const prototype: unknown =
    typeof value === 'object' && value !== null
      ? Object.getPrototypeOf(value)
      : undefined
  if (prototype !== Object.prototype && prototype !== null) {
    throw new DecodeError(`${path} must be a map`)
  }
  return value as Record<string, unknown>
}

function show(key: string): string {
  return JSON.stringify(
    key.length > MAX_SHOWN_KEY_LENGTH
      ? `${key.slice(0, MAX_SHOWN_KEY_LENGTH)}…`
      : key
  )
}
