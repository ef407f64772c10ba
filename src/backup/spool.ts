import { concat } from './bytes.ts'
import type { Spool } from './interface.ts'

const CHUNK_SIZE = 1024 * 1024

/**
 * A spool in memory, for what is known to be small and for platforms without
 * temporary files.
 */
export function createMemorySpool(): Spool {
  let chunks: Uint8Array[] = []
  let size = 0
  return {
    get size() {
      return size
    },
    write(bytes) {
      for (let taken = 0; taken < bytes.length;) {
        const at = size % CHUNK_SIZE
        if (at === 0) chunks.push(new Uint8Array(CHUNK_SIZE))
        const part = bytes.subarray(taken, taken + CHUNK_SIZE - at)
        chunks.at(-1)?.set(part, at)
        taken += part.length
        size += part.length
      }
    },
    read(offset, length) {
      const parts: Uint8Array[] = []
      for (let taken = 0; taken < length;) {
        const at = (offset + taken) % CHUNK_SIZE
        const chunk = chunks[Math.floor((offset + taken) / CHUNK_SIZE)]
        const part = chunk?.subarray(at, at + length - taken)
        if (!part?.length) break
        parts.push(part)
        taken += part.length
      }
      return concat(parts, length)
    },
    async close() {
      chunks = []
      size = 0
    },
  }
}
