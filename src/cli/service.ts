import type { Result } from '@ucanto/interface'
import { ServiceError } from './errors.ts'

/**
 * Asks the backup service for something.
 *
 * @throws {@link ServiceError} named as the failure that it answered
 */
export async function askService<T extends object>(
  ask: () => Promise<Result<T, { name: string; message: string }>>
): Promise<T> {
  let out: Awaited<ReturnType<typeof ask>>
  try {
    out = await ask()
  } catch (cause) {
    throw unreachable(cause)
  }
  if (out.error) throw refused(out.error)
  return out.ok
}

/** What it comes to when a service does not answer. */
export function unreachable(cause: unknown): ServiceError {
  return new ServiceError(
    'ServiceUnreachableError',
    `the backup service cannot be reached (${cause instanceof Error ? cause.message : String(cause)}); check its URL and that it runs`,
    { cause }
  )
}

/** What it comes to when a service answers with a failure. */
export function refused(failure: {
  name: string
  message: string
}): ServiceError {
  return new ServiceError(failure.name, describe(failure), { cause: failure })
}

function describe({
  name,
  message,
}: {
  name: string
  message: string
}): string {
  const said = message.slice(0, 1000)
  return name === 'Unauthorized'
    ? `the backup service does not accept what this agent may do in the Space; log in again, and check that the service trusts your upload service (${said})`
    : `the backup service refused: ${said}`
}
