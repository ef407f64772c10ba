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

const CAR_TYPE = 'application/vnd.ipld.car'
/** Characters of what a service says that go into an error. */
const MAX_PROBLEM_LENGTH = 500

/** A connection to a backup service. */
export type Connection = ConnectionView<Service>

/**
 * Connects to a service; nothing is sent yet. What is invoked later answers
 * failures by name, and throws {@link ServiceUnreachableError} when no service
 * answers.
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
      fetch: async (_url, init) => {
        const response = await send(fetch, url, init as RequestInit)
        if (!response.headers.get('content-type')?.startsWith(CAR_TYPE)) {
          throw unreachable(url, 'is not a backup service')
        }
        return response
      },
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
  /**
   * `did:key` of the service's agent, as {@link discover} tells it. With it a
   * service can find out by itself that the Space has a storage provider,
   * before it keeps its clock, backs up into it or holds a grant for it.
   */
  agent?: string
}

/** Where an invocation goes, and for how long it is valid. */
export interface InvocationOptions {
  connection: Connection
  /** Unix seconds; the invocation is not valid from then on. */
  expiration?: number
  /** Makes two invocations of the same thing two tasks. */
  nonce?: string
}

/** What all invocations have in common. */
export function commonOf(
  { issuer, audience, with: space, proofs }: InvocationConfig,
  { connection, expiration, nonce }: InvocationOptions
) {
  return {
    issuer,
    audience: audience ?? connection.id,
    with: space,
    ...(proofs ? { proofs } : {}),
    ...(expiration === undefined ? {} : { expiration }),
    ...(nonce === undefined ? {} : { nonce }),
  }
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
  const response = await send(fetch, url, {
    headers: { accept: 'application/json' },
    ...(signal ? { signal } : {}),
  })
  let info: unknown
  try {
    info = await response.json()
  } catch (cause) {
    signal?.throwIfAborted()
    throw unreachable(url, 'is not a backup service', cause)
  }
  if (!isServiceInfo(info)) throw unreachable(url, 'is not a backup service')
  const { name, version, did, agent, capabilities } = info
  return { name, version, did, agent, capabilities }
}

/** There is no service where one should be, or it does not work. */
export class ServiceUnreachableError extends Error {
  override readonly name = 'ServiceUnreachableError'
  /** HTTP status of the answer, if there was one. */
  readonly status: number | undefined

  constructor(
    message: string,
    { status, ...options }: ErrorOptions & { status?: number } = {}
  ) {
    super(message, options)
    this.status = status
  }
}

/** @throws {@link ServiceUnreachableError} unless the answer is a success */
export async function send(
  fetch: typeof globalThis.fetch,
  url: URL,
  init: RequestInit
): Promise<Response> {
  let response: Response
  try {
    response = await fetch(url, init)
  } catch (cause) {
    init.signal?.throwIfAborted()
    throw unreachable(url, 'cannot be reached', cause)
  }
  if (response.ok) return response
  const said = await response.text().catch(() => '')
  throw unreachable(
    url,
    `answered with status ${response.status}${problemIn(said)}`,
    undefined,
    response.status
  )
}

/** What the service says is wrong, if it is ours. */
function problemIn(body: string): string {
  try {
    const { name, message } = Object(JSON.parse(body)) as Record<
      string,
      unknown
    >
    return typeof name === 'string' && typeof message === 'string'
      ? ` (${name}: ${message.slice(0, MAX_PROBLEM_LENGTH)})`
      : ''
  } catch {
    return ''
  }
}

function unreachable(url: URL, what: string, cause?: unknown, status?: number) {
  return new ServiceUnreachableError(
    `${url.href} ${what}; check the URL of the service and that it runs`,
    { cause, ...(status === undefined ? {} : { status }) }
  )
}

function isServiceInfo(value: unknown): value is ServiceInfo {
  const { name, version, did, agent, capabilities } = Object(value) as Record<
    keyof ServiceInfo,
    unknown
  >
  return (
    typeof name === 'string' &&
    typeof version === 'string' &&
    typeof did === 'string' &&
    /^did:(web|key):./.test(did) &&
    typeof agent === 'string' &&
    agent.startsWith('did:key:') &&
    Array.isArray(capabilities) &&
    capabilities.every((can) => typeof can === 'string')
  )
}
