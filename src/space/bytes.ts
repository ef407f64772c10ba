/**
 * Orders two byte strings lexicographically, as `memcmp` does.
 *
 * @returns a negative number, 0, or a positive number
 */
export function compareBytes(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.length, b.length)
  for (let i = 0; i < length; i++) {
    const difference = a[i]! - b[i]!
    if (difference !== 0) return difference
  }
  return a.length - b.length
}

/**
 * Whether something that DAG-CBOR decoded to is bytes. A map with the key
 * `__proto__` passes for an instance of `Uint8Array`, and throws when it is
 * used as one: it has no buffer.
 */
export function isBytes(value: unknown): value is Uint8Array {
  return value instanceof Uint8Array && ArrayBuffer.isView(value)
}
