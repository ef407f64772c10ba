/** Whether two byte strings are the same. */
export function bytesEqual(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}

/**
 * Takes exact lengths out of a stream of chunks, holding no more than one
 * length and one chunk in memory.
 */
export class ByteReader {
  readonly #chunks: AsyncIterator<Uint8Array>
  #buffer: Uint8Array = new Uint8Array(0)
  /** Number of bytes that came in. */
  received = 0

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks[Symbol.asyncIterator]()
  }

  /**
   * The next `length` bytes, `undefined` if the stream ends before.
   *
   * @param length - in bytes
   */
  async take(length: number): Promise<Uint8Array | undefined> {
    while (this.#buffer.length < length) {
      const parts = [this.#buffer]
      let size = this.#buffer.length
      while (size < length) {
        const next = await this.#chunks.next()
        if (next.done) {
          this.#buffer = concat(parts, size)
          return undefined
        }
        this.received += next.value.length
        parts.push(next.value)
        size += next.value.length
      }
      this.#buffer = concat(parts, size)
    }
    const taken = this.#buffer.subarray(0, length)
    this.#buffer = this.#buffer.subarray(length)
    return taken
  }

  /** Bytes that came in and were not taken. */
  get left(): number {
    return this.#buffer.length
  }

  /** Stops the stream, so that its source can let go of it. */
  async close(): Promise<void> {
    await this.#chunks.return?.()
  }
}

/** @param size - sum of the parts' lengths, in bytes */
export function concat(parts: Uint8Array[], size: number): Uint8Array {
  if (parts.length === 1 && parts[0]) return parts[0]
  const bytes = new Uint8Array(size)
  let offset = 0
  for (const part of parts) {
    bytes.set(part, offset)
    offset += part.length
  }
  return bytes
}
