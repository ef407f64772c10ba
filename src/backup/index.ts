/**
 * Backing an ATProto account up into a Space, and reading it back. Knows no
 * server: the host of the account, the Space and the clock are interfaces.
 *
 * @packageDocumentation
 */
export * from './errors.ts'
export type * from './interface.ts'
export {
  BackupReader,
  openBackup,
  verifyBackup,
  type Problem,
  type RepoBlock,
  type Verification,
} from './read.ts'
export type { PrivateContext } from './private.ts'
export { chunksOf, streamOf } from './streams.ts'
export {
  mergeEvents,
  recordAuthorization,
  recordChange,
  type MergedEvents,
  type RecordContext,
} from './record.ts'
export {
  DEFAULT_LIMITS,
  runBackup,
  type BackupContext,
  type BackupLimits,
  type BackupRequest,
} from './run.ts'
export {
  shareParts,
  type ShareContext,
  type ShareRequest,
  type Shared,
} from './share.ts'
export { createMemorySpool } from './spool.ts'
export { createSha256, digestOf, type CreateSha256 } from './sha256.ts'
