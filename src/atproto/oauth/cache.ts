import { LRUCache } from 'lru-cache'

/** What is kept of what hosts have said. Sizes in characters of JSON. */
export const CACHE_POLICY = {
  /** Milliseconds that it is believed. */
  lifetime: 60_000,
  /** Of all hosts together: whoever they are, they do not fill the memory. */
  size: 8 * 1024 * 1024,
  /** Of one; what is longer is asked for each time. */
  entry: 64 * 1024,
  /** Added to each, however little it is. */
  overhead: 512,
}

/**
 * What hosts have said, by their origins. It is not asked for again for each
 * request, and not believed for long; a refresh asks all the same.
 */
export function createCache<Value extends string | object>() {
  const { lifetime, size, entry, overhead } = CACHE_POLICY
  const cache = new LRUCache<string, Value>({
    ttl: lifetime,
    maxSize: size,
    maxEntrySize: entry,
    sizeCalculation: (value, origin) =>
      overhead + origin.length + JSON.stringify(value).length,
  })
  return {
    get: (origin: string) => cache.get(origin),
    set: (origin: string, value: Value) => void cache.set(origin, value),
    del: (origin: string) => void cache.delete(origin),
    /** Characters that are kept. */
    size: () => cache.calculatedSize,
  }
}
