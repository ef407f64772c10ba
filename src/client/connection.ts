import { connect as connectTo } from '@ucanto/client'
import { DID } from '@ucanto/core'
import type {
  ConnectionView,
  Principal,
  Proof,
  Signer,
} from '@ucanto/interface'
import { CAR, HTTP } from '@ucanto/transport'
import type { Service } from '../capabilities/index.ts'

/** A connection to a backup service. */
export type Connection = ConnectionView<Service>

/**
 * Connects to a service; nothing is sent yet.
 *
 * @param options.url - base URL of the service
 * @param options.did - DID of the service: its `did:web` or its `did:key`
 * @example
 * ```ts
 * const service = connect({ url: new URL('https://backups.example'), did: 'did:web:backups.example' })
 * const { ok, error } = await Clock.head({ issuer: agent, with: space, proofs }, { connection: service })
 * ```
 */
export function connect({
  url,
  did,
  fetch = globalThis.fetch.bind(globalThis),
}: {
  url: URL
  did: string
  fetch?: typeof globalThis.fetch
}): Connection {
  return connectTo<Service>({
    id: DID.parse(did),
    codec: CAR.outbound,
    channel: HTTP.open<Service>({
      url,
      method: 'POST',
      fetch: (input, init) => fetch(input, init as RequestInit),
    }),
  })
}

/** Who invokes, in which Space, and what allows it. */
export interface InvocationConfig {
  issuer: Signer
  /** DID of the Space. */
  with: `did:key:${string}`
  proofs?: Proof[]
  /** Who is asked; the service of the connection, if left out. */
  audience?: Principal
}

/** Where an invocation goes, and for how long it is valid. */
export interface InvocationOptions {
  connection: Connection
  /** Unix seconds; the invocation is not valid from then on. */
  expiration?: number
  /** Makes two invocations of the same thing two tasks. */
  nonce?: string
}

/** What a service says of itself. */
export interface ServiceInfo {
  name: string
  version: string
  /** DID for invocations. */
  did: string
  /** `did:key` that capabilities of Storacha are delegated to. */
  agent: string
  capabilities: string[]
}

/**
 * Asks a service what it is.
 *
 * @throws {@link ServiceUnreachableError}
 */
export async function discover(
  url: URL,
  {
    fetch = globalThis.fetch.bind(globalThis),
    signal,
  }: { fetch?: typeof globalThis.fetch; signal?: AbortSignal } = {}
): Promise<ServiceInfo> {
  const fail = (what: string, cause?: unknown) =>
    new ServiceUnreachableError(
      `${url.href} ${what}; check the URL of the service and that it runs`,
      { cause }
    )
  let info: unknown
  try {
    const response = await fetch(url, {
      headers: { accept: 'application/json' },
      ...(signal ? { signal } : {}),
    })
    if (!response.ok) throw fail(`answered with status ${response.status}`)
    info = await response.json()
  } catch (error) {
    signal?.throwIfAborted()
    if (error instanceof ServiceUnreachableError) throw error
    throw fail('cannot be reached', error)
  }
  const { name, version, did, agent, capabilities } = Object(
    info
  ) as Partial<ServiceInfo>
  if (
    typeof name !== 'string' ||
    typeof version !== 'string' ||
    !did?.startsWith('did:') ||
    !agent?.startsWith('did:key:') ||
    !Array.isArray(capabilities)
  ) {
    throw fail('is not a backup service')
  }
  return { name, version, did, agent, capabilities }
}

/** There is no service where one should be. */
export class ServiceUnreachableError extends Error {
  override readonly name = 'ServiceUnreachableError'
}
