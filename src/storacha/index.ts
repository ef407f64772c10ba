/**
 * The Storacha network: writing into a Space and reading it back.
 *
 * @packageDocumentation
 */
export {
  connectUploadService,
  RETRY_POLICY,
  type Fetch,
  type RetryPolicy,
  type UploadServiceConfig,
  type UploadServiceConnection,
} from './connection.ts'
export { createSpaceReader } from './space-reader.ts'
export { createSpaceWriter, type SpaceAuthority } from './space-writer.ts'
export {
  createRevocationReader,
  RevocationsUnavailableError,
  type RevocationReader,
} from './revocations.ts'
