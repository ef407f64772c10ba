import * as dagCBOR from '@ipld/dag-cbor'
import fc from 'fast-check'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'

/** What the suites share out among themselves: together they have a little more. */
export const FUZZ_CASES = Number(process.env.FUZZ_CASES ?? 100_000)

/** Milliseconds after which a case hangs. */
const TIMEOUT = 10_000

const link = fc
  .tuple(
    fc.constantFrom(0x71, 0x55, 0x0129, 0x0200, 0x70),
    fc.uint8Array({ minLength: 32, maxLength: 32 })
  )
  .map(([code, digest]) => CID.createV1(code, Digest.create(0x12, digest)))

/** Keys that mean something to JavaScript, or to a library. */
const meaning = fc.constantFrom(
  '__proto__',
  'toString',
  'valueOf',
  'toJSON',
  'then',
  'constructor',
  'length',
  'asCID',
  '/'
)

/** Whatever DAG-CBOR can say. */
export const value = fc.letrec((tie) => ({
  any: fc.oneof(
    { maxDepth: 3, withCrossShrink: true },
    fc.constantFrom<unknown>(null, true, false, '', 0, -1, 2 ** 53, 2n ** 63n),
    fc.integer(),
    fc.double({ noNaN: true, noDefaultInfinity: true }),
    fc.string({ unit: 'binary', maxLength: 40 }),
    fc.uint8Array({ maxLength: 80 }),
    link,
    fc.constantFrom('__proto__', 'constructor', 'did:key:z6Mk', 'did:plc:a'),
    fc.array(tie('any'), { maxLength: 4 }),
    fc.dictionary(
      fc.oneof({ weight: 3, arbitrary: fc.string({ maxLength: 12 }) }, meaning),
      tie('any'),
      { maxKeys: 4 }
    )
  ),
})).any

/** How bytes get damaged: where, as a fraction, and with what. */
export const damage = fc.record({
  kind: fc.constantFrom('flip', 'cut', 'drop', 'repeat', 'insert', 'splice'),
  from: fc.double({ min: 0, max: 1, noNaN: true }),
  to: fc.double({ min: 0, max: 1, noNaN: true }),
  bytes: fc.uint8Array({ minLength: 1, maxLength: 16 }),
})
export type Damage = typeof damage extends fc.Arbitrary<infer T> ? T : never

/**
 * Damages bytes.
 *
 * @param other - what they are spliced with
 */
export function damaged(
  bytes: Uint8Array,
  other: Uint8Array,
  { kind, from, to, bytes: noise }: Damage
): Uint8Array {
  const start = Math.floor(Math.min(from, to) * bytes.length)
  const end = Math.ceil(Math.max(from, to) * bytes.length)
  const [head, middle, tail] = [
    bytes.subarray(0, start),
    bytes.subarray(start, end),
    bytes.subarray(end),
  ]
  switch (kind) {
    case 'flip': {
      const changed = new Uint8Array(bytes)
      for (const [at, byte] of noise.entries()) {
        if (start + at < changed.length) changed[start + at]! ^= byte
      }
      return changed
    }
    case 'cut':
      return head
    case 'drop':
      return joined(head, tail)
    case 'repeat':
      return joined(head, middle, middle, tail)
    case 'insert':
      return joined(head, noise, tail)
    default:
      return joined(head, other.subarray(Math.floor(from * other.length)))
  }
}

function joined(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts))
}

/** How a value is changed: the way down to a part of it, and what is there. */
export const change = fc.record({
  path: fc.array(fc.nat(20), { maxLength: 6 }),
  kind: fc.constantFrom('replace', 'replace', 'remove', 'add', 'swap'),
  key: fc.oneof({ weight: 3, arbitrary: fc.string({ maxLength: 8 }) }, meaning),
  value,
})
export type Change = typeof change extends fc.Arbitrary<infer T> ? T : never

/** Changes one part of a value of DAG-CBOR. */
export function changed(value: unknown, change: Change): unknown {
  const [next, ...path] = change.path
  const isBranch =
    typeof value === 'object' &&
    value !== null &&
    !(value instanceof Uint8Array) &&
    CID.asCID(value) === null
  if (next === undefined || !isBranch) {
    if (change.kind === 'add' && isBranch) {
      return Array.isArray(value)
        ? [...(value as unknown[]), change.value]
        : { ...value, [change.key]: change.value }
    }
    return change.value
  }
  const keys = Object.keys(value)
  const key = keys[next % keys.length]
  if (key === undefined) return change.value
  const copy = (
    Array.isArray(value) ? [...(value as unknown[])] : { ...value }
  ) as Record<string, unknown>
  if (path.length === 0 && change.kind === 'remove') {
    if (Array.isArray(copy)) copy.splice(Number(key), 1)
    else delete copy[key]
  } else if (path.length === 0 && change.kind === 'swap') {
    const other = keys[(next + 1) % keys.length]!
    ;[copy[key], copy[other]] = [copy[other], copy[key]]
  } else {
    copy[key] = changed(copy[key], { ...change, path })
  }
  return copy
}

/** @returns the bytes, or nothing where DAG-CBOR has none for the value */
export function tryEncode(value: unknown): Uint8Array | undefined {
  try {
    return dagCBOR.encode(value)
  } catch {
    return undefined
  }
}

/**
 * Checks something with many values.
 *
 * @param numRuns - how many; a fraction is rounded up
 */
export function fuzz<T>(
  arbitrary: fc.Arbitrary<T>,
  numRuns: number,
  check: (value: T) => Promise<void>
): Promise<void> {
  return fc.assert(fc.asyncProperty(arbitrary, check), {
    numRuns: Math.ceil(numRuns),
    timeout: TIMEOUT,
  })
}
