import { z } from 'zod'
import { HostError } from '../backup/errors.ts'
import type { CallOptions } from '../backup/interface.ts'
import { retryAfter } from '../backup/retry-after.ts'
import { printable, printableError } from './printable.ts'
import type { Fetch } from './safe-fetch.ts'

/** What is read of an error's body: at most so many bytes and milliseconds. */
const ERROR_BODY = { maxSize: 8192, timeout: 5000 }

const errorSchema = z.object({
  error: z.string(),
  message: z.string().default(''),
})

/** An XRPC method answered with an error. */
export class XrpcError extends Error {
  override readonly name = 'XrpcError'
  readonly status: number
  /** Name of the error, or empty if the answer had none. */
  readonly error: string
  /** What the service says about it, at most 256 printable characters. */
  readonly detail: string
  /** Seconds until the next request is welcome. */
  readonly retryAfter?: number

  constructor(
    message: string,
    { status, error, detail, retryAfter }: Omit<XrpcError, keyof Error>
  ) {
    super(message)
    this.status = status
    this.error = error
    this.detail = detail
    this.retryAfter = retryAfter
  }
}

export type XrpcResponse = Response & { body: ReadableStream<Uint8Array> }

/**
 * Calls an XRPC query. Redirects are followed, as hosts may keep blobs
 * elsewhere; the safe fetch checks each hop.
 *
 * @param host - base URL of the service
 * @param method - NSID of the query
 * @throws {@link XrpcError}, and what the safe fetch throws
 * @see https://atproto.com/specs/xrpc
 */
export async function query(
  fetch: Fetch,
  host: URL,
  method: string,
  parameters: Record<string, string | undefined>,
  {
    signal,
    headers: added,
  }: CallOptions & { headers?: Record<string, string> } = {}
): Promise<XrpcResponse> {
  const url = new URL(`/xrpc/${method}`, host)
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined) url.searchParams.set(name, value)
  }
  const response = await fetch(url, {
    // Hashes and images do not compress: it would cost both sides time, and
    // a small answer cannot become a large one.
    headers: { 'accept-encoding': 'identity', ...added },
    redirect: 'follow',
    signal,
  })
  if (response.status === 200 && response.body) return response as XrpcResponse
  const { status, headers } = response
  const { error, detail } = parseError(await readStart(response))
  const answer = [status, error, detail && `(${detail})`].filter(Boolean)
  throw new XrpcError(
    `${url.host} answered ${method} with ${answer.join(' ')}`,
    {
      status,
      error,
      detail,
      retryAfter: retryAfter(headers),
    }
  )
}

/**
 * Reads the answer of a query as JSON of a given shape.
 *
 * @throws {@link HostError}, and what the safe fetch throws
 */
export async function readJSON<T>(
  response: Response,
  schema: z.ZodType<T>
): Promise<T> {
  const text = await response.text()
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (cause) {
    throw new HostError(
      `${new URL(response.url).host} did not answer with JSON. Check that it is an ATProto service.`,
      { cause: printableError(cause) }
    )
  }
  const result = schema.safeParse(json)
  if (result.success) return result.data
  throw new HostError(
    `${new URL(response.url).host} answered in a shape that the protocol does not have. Check that it is an ATProto service.`,
    { cause: printableError(result.error) }
  )
}

function parseError(text: string): Pick<XrpcError, 'error' | 'detail'> {
  try {
    const { error, message } = errorSchema.parse(JSON.parse(text))
    return { error: printable(error), detail: printable(message) }
  } catch {
    return { error: '', detail: printable(text) }
  }
}

async function readStart(response: Response): Promise<string> {
  const decoder = new TextDecoder()
  const reader = response.body?.getReader()
  const timer = setTimeout(() => void reader?.cancel(), ERROR_BODY.timeout)
  let text = ''
  try {
    while (reader && text.length < ERROR_BODY.maxSize) {
      const { done, value } = await reader.read()
      if (done) break
      text += decoder.decode(value, { stream: true })
    }
  } finally {
    clearTimeout(timer)
    await reader?.cancel()
  }
  return text
}
