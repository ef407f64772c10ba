import type { IncomingMessage } from 'node:http'
import { InvalidBodyError } from '../errors.ts'

/** The body is larger than the service takes. */
export class BodyTooLargeError extends Error {
  override readonly name = 'BodyTooLargeError'
}

/**
 * Reads a request's body, and no more of it than there may be.
 *
 * @param incoming - the request as Node.js has it, from which it is read
 *   without the streams of the web, which take longer than all the rest
 * @param maxSize - of the body, in bytes
 * @throws {@link BodyTooLargeError} {@link InvalidBodyError}
 */
export function readBody(
  request: Request,
  incoming: IncomingMessage | undefined,
  maxSize: number
): Promise<Uint8Array> {
  const body = createCollector(maxSize)
  if (Number(request.headers.get('content-length')) > maxSize) {
    return Promise.reject(body.tooLarge())
  }
  return incoming ? readIncoming(incoming, body) : readStream(request, body)
}

function readIncoming(
  incoming: IncomingMessage,
  body: Collector
): Promise<Uint8Array> {
  const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>()
  const onData = (chunk: Uint8Array) => {
    try {
      body.push(chunk)
    } catch (error) {
      // The rest stays where it is until the answer has been sent.
      incoming.off('data', onData).pause()
      reject(error)
    }
  }
  incoming.on('data', onData)
  incoming.once('end', () => resolve(body.bytes()))
  incoming.once('error', (cause) => reject(incomplete(cause)))
  incoming.once('close', () => reject(incomplete()))
  return promise
}

async function readStream(
  request: Request,
  body: Collector
): Promise<Uint8Array> {
  const reader = request.body?.getReader()
  for (;;) {
    let next:
      Awaited<ReturnType<NonNullable<typeof reader>['read']>> | undefined
    try {
      next = await reader?.read()
    } catch (cause) {
      throw incomplete(cause)
    }
    if (!next?.value) return body.bytes()
    body.push(next.value)
  }
}

type Collector = ReturnType<typeof createCollector>

function createCollector(maxSize: number) {
  const chunks: Uint8Array[] = []
  let size = 0
  const tooLarge = () =>
    new BodyTooLargeError(`the body is larger than ${maxSize} bytes`)
  return {
    tooLarge,
    push(chunk: Uint8Array) {
      size += chunk.length
      if (size > maxSize) throw tooLarge()
      chunks.push(chunk)
    },
    bytes: () => Buffer.concat(chunks),
  }
}

function incomplete(cause?: unknown): InvalidBodyError {
  return new InvalidBodyError('the body ended before it was complete', {
    cause,
  })
}
