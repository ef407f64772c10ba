/** Settles as the promise does, or fails once the signal aborts. */
export async function orAbort<T>(
  promise: Promise<T>,
  signal: AbortSignal
): Promise<T> {
  const aborted = Promise.withResolvers<never>()
  const abort = () => aborted.reject(signal.reason)
  signal.addEventListener('abort', abort)
  try {
    signal.throwIfAborted()
    return await Promise.race([promise, aborted.promise])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}
