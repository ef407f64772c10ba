import { HostError } from '../backup/errors.ts'

/** Bytes that a host may answer to a refresh. */
const MAX_ANSWER = 2 ** 20

/** An answer that is read whole, from somebody who may not mean well. */
export function limited(response: Response, { host }: URL): Response {
  const { body, status, statusText, headers, url } = response
  if (!body) return response
  let size = 0
  const counted = body.pipeThrough(
    new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(bytes, stream) {
        size += bytes.length
        if (size > MAX_ANSWER) {
          throw new HostError(`${host} answered more than there can be to say.`)
        }
        stream.enqueue(bytes)
      },
    })
  )
  const guarded = new Response(counted, { status, statusText, headers })
  return Object.defineProperty(guarded, 'url', { value: url })
}
