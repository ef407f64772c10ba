import { sha256 } from '@noble/hashes/sha2'
import type { Sha256 } from './interface.ts'

export const SHA2_256_CODE = 0x12

/** Makes a SHA-256 that takes bytes in pieces, with web standards only. */
export interface CreateSha256 {
  (): Sha256
  /** For bytes that are at hand, where the platform has a shorter way. */
  of?(bytes: Uint8Array): Uint8Array
}

/** The one to use where the platform has nothing faster. */
export function createSha256(): Sha256 {
  return sha256.create()
}

/** SHA-256 of bytes that are at hand. */
export function digestOf(create: CreateSha256, bytes: Uint8Array): Uint8Array {
  if (create.of) return create.of(bytes)
  const hash = create()
  hash.update(bytes)
  return hash.digest()
}
