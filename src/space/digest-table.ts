import { SHA_256_LENGTH } from './schema.ts'

/** Entries of one page. */
const PAGE_SIZE = 16384

/** Slots of an empty table: a power of two, as always. */
const INITIAL_SLOTS = 1024

/** Share of the slots that may be taken. */
const MAX_LOAD = 0.75

/** Greatest first number: 48 bits. */
const MAX_UINT48 = 2 ** 48 - 1

/** Greatest second number: 32 bits. */
const MAX_UINT32 = 2 ** 32 - 1

/** Entries in the order in which they came. */
interface Page {
  digests: Uint8Array
  first: Float64Array
  second: Uint32Array
}

/**
 * A map from SHA-256 digests to two numbers each, such as the offset and the
 * length of a block, for millions of entries: about 55 bytes each.
 *
 * Entries lie in pages of typed arrays, which never move, numbered in the
 * order in which they came. A hash table with open addressing and linear
 * probing holds nothing but these numbers, plus one; 0 is a free slot. It
 * always has at least a quarter of its slots free, so every search ends, and
 * entries are never removed. The table hashes the digests once more with
 * random factors: nobody can make blocks that collide in it.
 */
export class DigestTable {
  readonly #pages: Page[] = []
  readonly #factors = crypto.getRandomValues(new Uint32Array(2))
  #slots = new Uint32Array(INITIAL_SLOTS)
  #size = 0

  /** Number of digests. */
  get size(): number {
    return this.#size
  }

  /**
   * Adds a digest, or gives it new numbers.
   *
   * @param digest - 32 bytes; they are copied
   * @param first - a whole number below 2^48
   * @param second - a whole number below 2^32
   * @throws {@link RangeError} for anything else
   */
  set(digest: Uint8Array, first: number, second: number): void {
    checkNumber(first, MAX_UINT48)
    checkNumber(second, MAX_UINT32)
    const slot = this.#find(digest)
    const found = this.#slots[slot]!
    const entry = found === 0 ? this.#append(digest, slot) : found - 1
    const page = this.#pages[Math.floor(entry / PAGE_SIZE)]!
    page.first[entry % PAGE_SIZE] = first
    page.second[entry % PAGE_SIZE] = second
  }

  /**
   * @param digest - 32 bytes
   * @throws {@link RangeError} for a digest of another length
   */
  get(digest: Uint8Array): [first: number, second: number] | undefined {
    const found = this.#slots[this.#find(digest)]!
    if (found === 0) return undefined
    const page = this.#pages[Math.floor((found - 1) / PAGE_SIZE)]!
    const i = (found - 1) % PAGE_SIZE
    return [page.first[i]!, page.second[i]!]
  }

  /**
   * @param digest - 32 bytes
   * @throws {@link RangeError} for a digest of another length
   */
  has(digest: Uint8Array): boolean {
    return this.#slots[this.#find(digest)] !== 0
  }

  /** Slot of the digest, or the free slot where it belongs. */
  #find(digest: Uint8Array): number {
    if (digest.length !== SHA_256_LENGTH) {
      throw new RangeError(`Digest must have ${SHA_256_LENGTH} bytes`)
    }
    const mask = this.#slots.length - 1
    let slot = this.#hash(digest, 0) & mask
    for (;;) {
      const found = this.#slots[slot]!
      if (found === 0 || this.#matches(found - 1, digest)) return slot
      slot = (slot + 1) & mask
    }
  }

  #append(digest: Uint8Array, slot: number): number {
    const entry = this.#size
    if (entry % PAGE_SIZE === 0) {
      this.#pages.push({
        digests: new Uint8Array(PAGE_SIZE * SHA_256_LENGTH),
        first: new Float64Array(PAGE_SIZE),
        second: new Uint32Array(PAGE_SIZE),
      })
    }
    const offset = (entry % PAGE_SIZE) * SHA_256_LENGTH
    this.#pages.at(-1)!.digests.set(digest, offset)
    this.#slots[slot] = entry + 1
    this.#size = entry + 1
    if (this.#size > this.#slots.length * MAX_LOAD) this.#grow()
    return entry
  }

  #grow(): void {
    const slots = new Uint32Array(this.#slots.length * 2)
    const mask = slots.length - 1
    for (let entry = 0; entry < this.#size; entry++) {
      const { digests } = this.#pages[Math.floor(entry / PAGE_SIZE)]!
      const offset = (entry % PAGE_SIZE) * SHA_256_LENGTH
      let slot = this.#hash(digests, offset) & mask
      while (slots[slot] !== 0) slot = (slot + 1) & mask
      slots[slot] = entry + 1
    }
    this.#slots = slots
  }

  #matches(entry: number, digest: Uint8Array): boolean {
    const { digests } = this.#pages[Math.floor(entry / PAGE_SIZE)]!
    const offset = (entry % PAGE_SIZE) * SHA_256_LENGTH
    for (let i = 0; i < SHA_256_LENGTH; i++) {
      if (digests[offset + i] !== digest[i]) return false
    }
    return true
  }

  /** Mixes the first 64 bits of a digest with the factors of this table. */
  #hash(bytes: Uint8Array, offset: number): number {
    const [a, b] = this.#factors as unknown as [number, number]
    const mixed =
      Math.imul(readUint32(bytes, offset) ^ a, b | 1) ^
      Math.imul(readUint32(bytes, offset + 4) ^ b, a | 1)
    return mixed ^ (mixed >>> 15)
  }
}

function readUint32(bytes: Uint8Array, offset: number): number {
  return (
    (bytes[offset]! << 24) |
    (bytes[offset + 1]! << 16) |
    (bytes[offset + 2]! << 8) |
    bytes[offset + 3]!
  )
}

function checkNumber(value: number, max: number): void {
  if (!Number.isInteger(value) || value < 0 || value > max) {
    throw new RangeError(`Number must be whole and from 0 to ${max}`)
  }
}
