/**
 * What Node.js offers the pipeline: files for what is not verified yet, fast
 * hashes, the time, and keys in files.
 *
 * @packageDocumentation
 */
export { parseVerifier, withNativeSigning } from './ed25519.ts'
export { createFileSpool } from './file-spool.ts'
export { loadClientKeys, openClientKeys } from './client-keys.ts'
export { loadKeyFile, KeyFileError } from './key-file.ts'
export { createNativeSha256 } from './sha256.ts'
export { PACKAGE } from './package-info.ts'
export { systemTime } from './time.ts'
