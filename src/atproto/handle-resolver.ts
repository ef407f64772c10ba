import { AtprotoHandleResolverNode } from '@atproto-labs/handle-resolver-node'
import { z } from 'zod'
import {
  ForbiddenAddressError,
  HandleNotFoundError,
  IdentityUnavailableError,
} from '../backup/errors.ts'
import type { BackupError } from '../backup/errors.ts'
import type { CallOptions } from '../backup/interface.ts'
import { orAbort } from './or-abort.ts'
import type { Fetch } from './safe-fetch.ts'
import { XrpcError, query, readJSON } from './xrpc.ts'

/** @see https://atproto.com/specs/handle#handle-identifier-syntax */
const HANDLE =
  /^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/

/** Milliseconds. Name servers cannot be told to stop earlier. */
const DNS_TIMEOUT = 15_000

const answerSchema = z.object({ did: z.string().max(2048) })

/**
 * Finds the DID that a handle points to. What it answers is not checked.
 *
 * @throws {@link HandleNotFoundError} {@link IdentityUnavailableError}
 *   {@link ForbiddenAddressError}
 */
export type ResolveHandle = (
  handle: string,
  options?: CallOptions
) => Promise<string>

/** Whether the text can be a handle, in lower case. */
export function isHandle(text: string): boolean {
  return text.length <= 253 && HANDLE.test(text)
}

/**
 * Resolves handles by the `com.atproto.identity.resolveHandle` of a service.
 *
 * @param service - base URL of an App View or a PDS
 */
export function createServiceHandleResolver(
  fetch: Fetch,
  service: URL
): ResolveHandle {
  return async (handle, options) => {
    const method = 'com.atproto.identity.resolveHandle'
    try {
      const response = await query(fetch, service, method, { handle }, options)
      return (await readJSON(response, answerSchema)).did
    } catch (cause) {
      options?.signal?.throwIfAborted()
      if (cause instanceof XrpcError && cause.status === 400) {
        throw notFound(handle, cause)
      }
      if (cause instanceof ForbiddenAddressError) throw cause
      throw unavailable(handle, cause)
    }
  }
}

/**
 * Resolves handles as the protocol says: by the DNS record `_atproto`, then by
 * `/.well-known/atproto-did`. Never goes to private addresses.
 *
 * @param options.nameservers - asked when those of the system have no answer
 * @see https://atproto.com/specs/handle#handle-resolution
 */
export function createDnsHandleResolver({
  nameservers,
}: { nameservers?: string[] } = {}): ResolveHandle {
  return async (handle, { signal } = {}) => {
    let failure: unknown
    const resolver = new AtprotoHandleResolverNode({
      fallbackNameservers: nameservers,
      onError: (error) => (failure = error),
    })
    const timeout = AbortSignal.timeout(DNS_TIMEOUT)
    const stop = signal ? AbortSignal.any([signal, timeout]) : timeout
    let did
    try {
      did = await orAbort(resolver.resolve(handle, { signal: stop }), stop)
    } catch (cause) {
      signal?.throwIfAborted()
      throw unavailable(handle, cause)
    }
    if (did) return did
    // Without name service nothing is known about the handle.
    if (codeOf(failure) === 'EAI_AGAIN') throw unavailable(handle, failure)
    throw notFound(handle, failure)
  }
}

function codeOf(error: unknown): unknown {
  if (!(error instanceof Error)) return undefined
  return 'code' in error ? error.code : codeOf(error.cause)
}

function notFound(handle: string, cause: unknown): BackupError {
  return new HandleNotFoundError(
    `The handle ${handle} leads to no account. Check its spelling, or give the DID of the account.`,
    { cause }
  )
}

function unavailable(handle: string, cause: unknown): BackupError {
  return new IdentityUnavailableError(
    `The handle ${handle} cannot be resolved at the moment. Try again later, or give the DID of the account.`,
    { cause }
  )
}
