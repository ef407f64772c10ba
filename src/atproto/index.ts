/**
 * Accounts of ATProto: who they are and what their hosts give out.
 *
 * @packageDocumentation
 */
export { createAccountReader } from './account-reader.ts'
export { createIdentityResolver, readIdentity } from './identity.ts'
export {
  createSafeFetch,
  type SafeFetch,
  type SafeFetchOptions,
} from './safe-fetch.ts'
