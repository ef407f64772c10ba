import type { CID } from 'multiformats/cid'
import { encodeCarHeader, encodeCarSection } from './car.ts'
import type { ShardSlice } from './interface.ts'

const FIRST_BUFFER_SIZE = 64 * 1024
const CAR_HEADER = encodeCarHeader([])
/** Largest prefix of a section: a length of 5 bytes and a CID. */
const MAX_SECTION_PREFIX = 64

/** A CAR that is complete and not uploaded yet. */
export interface SealedShard {
  bytes: Uint8Array
  /** What `bytes` is the start of: free when they are not needed any more. */
  buffer: Uint8Array
  slices: ShardSlice[]
  /** Blobs whose last block is in this shard: CID and UnixFS root, as text. */
  blobs: [cid: string, root: string][]
}

/** Packs blocks into a CAR of a limited size. */
export class ShardBuilder {
  readonly #maxSize: number
  #buffer: Uint8Array
  #size = 0
  #slices: ShardSlice[] = []
  readonly blobs: [cid: string, root: string][] = []

  /**
   * @param maxSize - of the CAR, in bytes, unless one block is larger
   * @param options.buffer - memory to use, of a shard that is not needed any
   *   more
   * @param options.roots - that the CAR's header names; none, if not given
   */
  constructor(
    maxSize: number,
    { buffer, roots }: { buffer?: Uint8Array | undefined; roots?: CID[] } = {}
  ) {
    this.#maxSize = maxSize
    this.#buffer = buffer ?? new Uint8Array(FIRST_BUFFER_SIZE)
    this.#append(roots ? encodeCarHeader(roots) : CAR_HEADER)
  }

  get isEmpty(): boolean {
    return this.#slices.length === 0
  }

  /** Size of the CAR so far, in bytes. */
  get size(): number {
    return this.#size
  }

  /** Whether a block of this size, in bytes, may be added. */
  fits(blockSize: number): boolean {
    return (
      this.isEmpty ||
      this.#size + MAX_SECTION_PREFIX + blockSize <= this.#maxSize
    )
  }

  /**
   * @param cid - bytes of the CID
   * @param digest - SHA-256 in the CID, 32 bytes
   */
  add(cid: Uint8Array, digest: Uint8Array, bytes: Uint8Array): void {
    this.#append(encodeCarSection(cid, bytes.length))
    this.#slices.push({
      // A copy: the digest may be part of a buffer much larger than itself.
      digest: digest.slice(),
      offset: this.#size,
      length: bytes.length,
    })
    this.#append(bytes)
  }

  seal(): SealedShard {
    return {
      bytes: this.#buffer.subarray(0, this.#size),
      buffer: this.#buffer,
      slices: this.#slices,
      blobs: this.blobs,
    }
  }

  #append(bytes: Uint8Array): void {
    const size = this.#size + bytes.length
    if (size > this.#buffer.length) {
      const room = Math.max(
        size,
        Math.min(this.#buffer.length * 4, this.#maxSize)
      )
      const larger = new Uint8Array(room)
      larger.set(this.#buffer.subarray(0, this.#size))
      this.#buffer = larger
    }
    this.#buffer.set(bytes, this.#size)
    this.#size = size
  }
}
