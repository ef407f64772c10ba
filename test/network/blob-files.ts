import { createHash, randomUUID } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { MultihashDigest } from 'multiformats'
import { base58btc } from 'multiformats/bases/base58'

/** The bytes are not those that were announced. */
export class BlobMismatchError extends Error {
  override readonly name = 'BlobMismatchError'
}

/** Blobs in a folder, one file each, named by their multihash. */
export class BlobFiles {
  readonly #folder: string

  constructor(folder: string) {
    this.#folder = folder
  }

  /** Size of a blob in bytes, or undefined if it is not there. */
  async size(digest: MultihashDigest): Promise<number | undefined> {
    try {
      const { size } = await stat(this.#path(digest))
      return size
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
  }

  /**
   * Reads a part of a blob that is there.
   *
   * @param offset of the first byte
   * @param length in bytes
   */
  read(digest: MultihashDigest, offset: number, length: number): Readable {
    if (length === 0) return Readable.from([])
    return createReadStream(this.#path(digest), {
      start: offset,
      end: offset + length - 1,
    })
  }

  /**
   * Stores a blob, or nothing if its bytes are not the right ones.
   *
   * @param digest sha2-256 of the blob
   * @param size in bytes
   * @throws {BlobMismatchError} size or hash differ
   */
  async write(
    digest: MultihashDigest,
    size: number,
    bytes: AsyncIterable<Uint8Array>
  ): Promise<void> {
    const partial = join(this.#folder, `${randomUUID()}.partial`)
    const hash = createHash('sha256')
    let received = 0
    try {
      await pipeline(
        bytes,
        async function* (chunks: AsyncIterable<Uint8Array>) {
          for await (const chunk of chunks) {
            received += chunk.length
            if (received > size) break
            hash.update(chunk)
            yield chunk
          }
        },
        createWriteStream(partial)
      )
      if (received !== size || !hash.digest().equals(digest.digest)) {
        throw new BlobMismatchError(
          `The bytes are not the ${size} bytes announced: upload them again`
        )
      }
      await rename(partial, this.#path(digest))
    } finally {
      await rm(partial, { force: true })
    }
  }

  #path(digest: MultihashDigest): string {
    return join(this.#folder, base58btc.encode(digest.bytes))
  }
}
