import { InvalidBodyError } from '../errors.ts'

/** The body is larger than the service takes. */
export class BodyTooLargeError extends Error {
  override readonly name = 'BodyTooLargeError'
}

/**
 * Reads a request's body, and no more of it than there may be.
 *
 * @param maxSize - of the body, in bytes
 * @throws {@link BodyTooLargeError} {@link InvalidBodyError}
 */
export async function readBody(
  request: Request,
  maxSize: number
): Promise<Uint8Array> {
  const tooLarge = () =>
    new BodyTooLargeError(`the body is larger than ${maxSize} bytes`)
  if (Number(request.headers.get('content-length')) > maxSize) throw tooLarge()
  const chunks: Uint8Array[] = []
  if (!request.body) return Buffer.concat(chunks)
  const reader = request.body.getReader()
  let size = 0
  for (;;) {
    let next: Awaited<ReturnType<typeof reader.read>>
    try {
      next = await reader.read()
    } catch (cause) {
      throw new InvalidBodyError('the body ended before it was complete', {
        cause,
      })
    }
    if (next.done) return Buffer.concat(chunks)
    size += next.value.length
    if (size > maxSize) throw tooLarge()
    chunks.push(next.value)
  }
}
