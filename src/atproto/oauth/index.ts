/**
 * The way into accounts by OAuth.
 *
 * @packageDocumentation
 */
export {
  createOAuth,
  type OAuth,
  type OAuthOptions,
  type OAuthSession,
  type OAuthState,
} from './client.ts'
export { GrantEndedError, HostRefusedError } from './errors.ts'
export type { GrantLifetimes } from './lifetimes.ts'
export {
  CALLBACK_PATH,
  confidentialMetadata,
  isLoopback,
  loopbackMetadata,
  METADATA_PATH,
  type ClientMetadata,
} from './metadata.ts'
export {
  DEFAULT_PARTS,
  GRANTABLE_PARTS,
  partsIn,
  SCOPE_VERSION,
} from './scopes.ts'
