import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

/** A request that is answered with a status other than 2xx. */
export class RequestError extends Error {
  override readonly name = 'RequestError'
  readonly status: number

  constructor(status: number, message: string, options?: ErrorOptions) {
    super(message, options)
    this.status = status
  }
}

/** Something that can be read in part. */
export interface Content {
  mimeType: string
  /** In bytes. */
  size: number
  read: (offset: number, length: number) => Readable
}

/** Reads the whole body of a request. */
export async function readBody(request: IncomingMessage): Promise<Uint8Array> {
  const chunks: Uint8Array[] = []
  for await (const chunk of request) chunks.push(chunk as Uint8Array)
  return Buffer.concat(chunks)
}

/** Answers with bytes that are in memory. */
export function sendBytes(
  response: ServerResponse,
  mimeType: string,
  bytes: Uint8Array | string
): void {
  response.writeHead(200, {
    'content-type': mimeType,
    'content-length': Buffer.byteLength(bytes),
  })
  response.end(bytes)
}

/**
 * Answers with the content, or with the part of it that the request is for.
 *
 * @throws {RequestError} 416: the part is not in the content
 * @see https://www.rfc-editor.org/rfc/rfc9110#name-range-requests
 */
export async function sendContent(
  request: IncomingMessage,
  response: ServerResponse,
  { mimeType, size, read }: Content
): Promise<void> {
  const range = parseRange(request.headers.range, size)
  const { offset, length } = range ?? { offset: 0, length: size }
  response.writeHead(range ? 206 : 200, {
    'content-type': mimeType,
    'content-length': length,
    'accept-ranges': 'bytes',
    ...(range && {
      'content-range': `bytes ${offset}-${offset + length - 1}/${size}`,
    }),
  })
  if (request.method === 'HEAD') {
    response.end()
    return
  }
  await pipeline(read(offset, length), response)
}

/**
 * A header that asks for several parts, or that is not valid, counts as none,
 * which is what the RFC allows.
 */
function parseRange(
  header: string | undefined,
  size: number
): { offset: number; length: number } | undefined {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? '')
  if (!match) return undefined
  const [, first = '', last = ''] = match
  if (first === '' && last === '') return undefined
  const start = first === '' ? Math.max(size - Number(last), 0) : Number(first)
  const end =
    first === '' || last === '' ? size - 1 : Math.min(Number(last), size - 1)
  if (first !== '' && last !== '' && Number(last) < start) return undefined
  if (start >= size) {
    throw new RequestError(416, `Ask for a part of the ${size} bytes there are`)
  }
  return { offset: start, length: end - start + 1 }
}
