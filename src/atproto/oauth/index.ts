/**
 * The way into accounts by OAuth.
 *
 * @packageDocumentation
 */
export { createOAuth, type OAuth, type OAuthOptions } from './client.ts'
export { GrantEndedError, HostRefusedError, REQUEST_EXPIRED } from './errors.ts'
export {
  CALLBACK_PATH,
  confidentialMetadata,
  isLoopback,
  loopbackMetadata,
  METADATA_PATH,
} from './metadata.ts'
export {
  DEFAULT_PARTS,
  GRANTABLE_PARTS,
  partsIn,
  SCOPE_VERSION,
} from './scopes.ts'
