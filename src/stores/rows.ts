/** Keeps a query far below the parameters that SQLite takes, 32,766. */
const BATCH = 1_000

/** @returns the items in batches; of none, one that is empty */
export function batchesOf<T>(items: T[]): T[][] {
  const batches = [items.slice(0, BATCH)]
  for (let start = BATCH; start < items.length; start += BATCH) {
    batches.push(items.slice(start, start + BATCH))
  }
  return batches
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
