import {
  closeSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LRUCache } from 'lru-cache'
import type { Spool } from '../backup/interface.ts'
import { createMemorySpool } from '../backup/spool.ts'

/** What is smaller stays in memory, in bytes. */
const MEMORY_SIZE = 512 * 1024
const COPY_SIZE = 1024 * 1024
/** Small writes are collected, in bytes: a write to a file costs a call. */
const BUFFER_SIZE = 256 * 1024
/** Small reads are near each other: what is read at once, in bytes. */
const WINDOW_SIZE = 64 * 1024
const MAX_WINDOWS = 16

/**
 * A spool that moves from memory into a temporary file when it grows. The file
 * has no name: it is gone with the process, however that ends.
 */
export function createFileSpool(folder: string = tmpdir()): Spool {
  let memory: Spool | undefined = createMemorySpool()
  let file: number | undefined
  let size = 0
  let written = 0
  const buffer = new Uint8Array(BUFFER_SIZE)
  const windows = new LRUCache<number, Uint8Array>({ max: MAX_WINDOWS })

  const flush = () => {
    if (file === undefined) return
    for (let done = 0; written < size;) {
      const count = writeSync(file, buffer, done, size - written, written)
      done += count
      written += count
    }
  }
  const append = (bytes: Uint8Array) => {
    for (let taken = 0; taken < bytes.length;) {
      if (size - written === BUFFER_SIZE) flush()
      const part = bytes.subarray(taken, taken + BUFFER_SIZE - (size - written))
      buffer.set(part, size - written)
      size += part.length
      taken += part.length
    }
  }
  const moveToFile = (from: Spool) => {
    file = openUnnamed(folder)
    const total = from.size
    size = 0
    for (let offset = 0; offset < total; offset += COPY_SIZE) {
      const part = from.read(offset, Math.min(COPY_SIZE, total - offset))
      if (part instanceof Uint8Array) append(part)
    }
    memory = undefined
    return from.close()
  }

  return {
    get size() {
      return memory?.size ?? size
    },
    async write(bytes) {
      if (memory && memory.size + bytes.length > MEMORY_SIZE) {
        await moveToFile(memory)
      }
      if (memory) await memory.write(bytes)
      else append(bytes)
    },
    read(offset, length) {
      if (memory) return memory.read(offset, length)
      if (file === undefined) throw new TypeError('the spool is closed')
      if (offset + length > size) {
        throw new RangeError('read beyond the end of a spool')
      }
      if (offset + length > written) flush()
      const bytes = new Uint8Array(length)
      if (length >= WINDOW_SIZE) {
        readFully(file, bytes, offset)
        return bytes
      }
      for (let done = 0; done < length;) {
        const number = Math.floor((offset + done) / WINDOW_SIZE)
        const start = number * WINDOW_SIZE
        let window = windows.get(number)
        const end = offset + length - start
        if (!window || window.length < Math.min(end, WINDOW_SIZE)) {
          // What is written later is not in it: the next read takes it anew.
          window = new Uint8Array(Math.min(WINDOW_SIZE, written - start))
          readFully(file, window, start)
          windows.set(number, window)
        }
        const part = window.subarray(offset + done - start, end)
        bytes.set(part, done)
        done += part.length
      }
      return bytes
    },
    async close() {
      await memory?.close()
      memory = undefined
      windows.clear()
      if (file !== undefined) closeSync(file)
      file = undefined
    },
  }
}

function readFully(file: number, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.length;) {
    const count = readSync(
      file,
      bytes,
      done,
      bytes.length - done,
      offset + done
    )
    if (count === 0) throw new RangeError('read beyond the end of a spool')
    done += count
  }
}

function openUnnamed(folder: string): number {
  const parent = mkdtempSync(join(folder, 'bluesky-backups-'))
  try {
    return openSync(join(parent, 'spool'), 'w+', 0o600)
  } finally {
    rmSync(parent, { recursive: true })
  }
}
