/** Keeps a query far below the parameters that SQLite takes, 32,766. */
const BATCH = 1_000

/** Calls `query` with at most {@link BATCH} items at a time, one after another. */
export async function inBatches<T>(
  items: T[],
  query: (batch: T[]) => Promise<unknown>
): Promise<void> {
  for (let start = 0; start < items.length; start += BATCH) {
    await query(items.slice(start, start + BATCH))
  }
}

/** Both drivers answer a `Buffer`; what leaves the stores is a plain array. */
export function toBytes(buffer: Uint8Array): Uint8Array {
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength)
}

/** JSON is kept as text: databases have different types for it. */
export function toJSON(value: unknown): string | null {
  return value === undefined ? null : JSON.stringify(value)
}

export function fromJSON(text: string | null): unknown {
  return text === null ? undefined : JSON.parse(text)
}
