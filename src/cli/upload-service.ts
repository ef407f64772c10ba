import { proxyHint } from '../atproto/index.ts'
import { UploadServiceError } from './errors.ts'
import type { Session } from './session.ts'

/**
 * Asks the upload service for something.
 *
 * @param doing - for the message, as `making a Space`
 * @throws {@link UploadServiceError}
 */
export async function askUploadService<T>(
  { config }: Session,
  doing: string,
  signal: AbortSignal,
  ask: () => Promise<T | { ok?: T; error?: Error }>
): Promise<T> {
  try {
    const answer = await ask()
    if (!isResult<T>(answer)) return answer
    if (answer.error) throw answer.error
    return answer.ok as T
  } catch (cause) {
    signal.throwIfAborted()
    const message = cause instanceof Error ? cause.message : String(cause)
    throw new UploadServiceError(
      `${doing} failed at the upload service ${config.uploadServiceUrl.origin}: ${firstLine(message)}; check that it runs and that --upload-service-url and --upload-service-did are right${proxyHint(config.uploadServiceUrl)}`,
      { cause }
    )
  }
}

function isResult<T>(
  answer: T | { ok?: T; error?: Error }
): answer is { ok?: T; error?: Error } {
  return (
    typeof answer === 'object' &&
    answer !== null &&
    ('ok' in answer || 'error' in answer)
  )
}

function firstLine(text: string): string {
  return text.split('\n', 1)[0]?.slice(0, 500) ?? ''
}
