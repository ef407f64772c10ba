import {
  buildAtprotoLoopbackClientMetadata,
  type Keyset,
  type OAuthClientMetadataInput,
} from '@atproto/oauth-client-node'
import { allScopes } from './scopes.ts'

/** Where a service tells hosts of accounts what it is. */
export const METADATA_PATH = '/oauth/client-metadata.json'

/** Where users come back to from the host of their account. */
export const CALLBACK_PATH = '/oauth/callback'

/** How a client introduces itself to hosts. */
export type ClientMetadata = Readonly<OAuthClientMetadataInput>

/**
 * What a service says of itself as a confidential client. The address of it is
 * the client's name for hosts: it never changes, or all grants are lost.
 *
 * @param publicUrl - https, by a name that hosts can reach
 * @param keys - public halves are told; old ones for as long as grants use them
 * @see https://atproto.com/specs/oauth#clients
 */
export function confidentialMetadata(
  publicUrl: URL,
  keys: Keyset
): ClientMetadata {
  return {
    client_id: new URL(METADATA_PATH, publicUrl).href,
    client_name: 'Bluesky Backups',
    client_uri: publicUrl.origin,
    redirect_uris: [new URL(CALLBACK_PATH, publicUrl).href],
    scope: allScopes(),
    application_type: 'web',
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'private_key_jwt',
    token_endpoint_auth_signing_alg: 'ES256',
    dpop_bound_access_tokens: true,
    jwks: keys.publicJwks as never,
  }
}

/**
 * What a program on the user's own machine says of itself: hosts know it as
 * nobody in particular, and their grants do not last long. Its name for hosts
 * has no port, so that another port is no other client.
 *
 * @param redirect - http, on 127.0.0.1
 * @see https://atproto.com/specs/oauth#localhost-client-development
 */
export function loopbackMetadata(redirect: URL): ClientMetadata {
  const named = new URL(redirect)
  named.port = ''
  return {
    ...buildAtprotoLoopbackClientMetadata({
      redirect_uris: [named.href],
      scope: allScopes(),
    }),
    redirect_uris: [redirect.href],
  }
}

/** Whether a service at this address can only be a loopback client. */
export function isLoopback({ protocol, hostname }: URL): boolean {
  return (
    protocol === 'http:' &&
    ['localhost', '127.0.0.1', '[::1]'].includes(hostname)
  )
}
