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
