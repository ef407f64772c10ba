import { createHash, hash as hashOf } from 'node:crypto'
import type { Sha256 } from '../backup/interface.ts'

/** SHA-256 of the platform, several times faster than one in JavaScript. */
export function createNativeSha256(): Sha256 {
  const hash = createHash('sha256')
  return {
    update: (bytes) => void hash.update(bytes),
    digest: () => hash.digest(),
  }
}

createNativeSha256.of = (bytes: Uint8Array): Uint8Array =>
  hashOf('sha256', bytes, 'buffer')
