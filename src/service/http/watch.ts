import type { Receipt } from '@ucanto/interface'
import { CAR } from '@ucanto/transport'
import type { Time } from '../../backup/index.ts'
import { InvalidBodyError } from '../errors.ts'
import type { InvocationServer } from '../server.ts'
import type { Watchers } from '../watchers.ts'
import { verifyBlocks } from './verify-blocks.ts'

/** Connections that watch clocks at the same time. */
const MAX_WATCHERS = 1_000

/**
 * Milliseconds after which the proofs are validated and the head is read
 * again: other processes advance clocks too, and rights may end.
 */
const CHECK_INTERVAL = 5_000

/** Checks without news after which a line keeps the connection alive. */
const QUIET_CHECKS = 3

export interface WatchContext {
  server: InvocationServer
  watchers: Watchers
  time: Time
  /** Aborted when the service goes down. */
  stopping: AbortSignal
}

/** A failure and the HTTP status it is answered with. */
export interface Refusal {
  status: 400 | 401 | 403 | 503
  name: string
  message: string
}

/**
 * Streams the head of a clock as server-sent events: at once, and whenever it
 * changes, for as long as the invocation is valid.
 *
 * @param space - DID of the Space
 * @param authorization - value of the header: `UCAN`, then in base64url the
 *   CAR of a message with one `clock/head` invocation
 * @see https://html.spec.whatwg.org/multipage/server-sent-events.html
 */
export async function watchClock(
  { server, watchers, time, stopping }: WatchContext,
  space: string,
  authorization: string | undefined
): Promise<ReadableStream<Uint8Array> | Refusal> {
  const body = readAuthorization(authorization)
  if (!body) {
    return {
      status: 401,
      name: 'Unauthorized',
      message:
        'send a signed clock/head invocation along: Authorization: UCAN, and the CAR of its message in base64url',
    }
  }
  if (watchers.size >= MAX_WATCHERS) {
    return {
      status: 503,
      name: 'TooManyWatchers',
      message: 'too many watch clocks here already; try again later',
    }
  }
  await checkInvocation(body, space)
  const read = async (): Promise<
    { head: string[] } | { name: string; message: string }
  > => {
    const { body: answer, headers } = await server.request({ body })
    const { receipts } = await CAR.response.decode({ body: answer, headers })
    const [receipt] = receipts.values() as Iterable<Receipt>
    const { ok, error } = receipt?.out ?? {}
    if (error || !ok) {
      const { name, message } = Object(error) as Record<string, unknown>
      return { name: String(name), message: String(message) }
    }
    return { head: (ok as { head: object[] }).head.map(String) }
  }
  // Watching begins before the first look, so that nothing is missed.
  const watcher = watchers.watch(space)
  const first = await read().catch((error: unknown) => {
    watcher.close()
    throw error
  })
  if ('name' in first) {
    watcher.close()
    return { status: 403, ...first }
  }

  const done = new AbortController()
  const end = () => {
    stopping.removeEventListener('abort', end)
    done.abort()
    watcher.close()
  }
  stopping.addEventListener('abort', end)
  async function* lines(): AsyncGenerator<string> {
    let last = ''
    let quiet = 0
    let now: Awaited<ReturnType<typeof read>> = first
    while (!done.signal.aborted) {
      if ('name' in now) {
        yield event('end', now)
        return
      }
      const text = event('head', now)
      if (text !== last) {
        yield (last = text)
        quiet = 0
      } else if (++quiet % QUIET_CHECKS === 0) {
        yield ':\n\n'
      }
      const waiting = new AbortController()
      await Promise.race([
        watcher.next(),
        time
          .sleep(CHECK_INTERVAL, AbortSignal.any([waiting.signal, done.signal]))
          .catch(() => {}),
      ])
      waiting.abort()
      if (!done.signal.aborted) now = await read()
    }
  }
  const encoder = new TextEncoder()
  const source = lines()
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const next = await source.next()
          if (!next.done) return controller.enqueue(encoder.encode(next.value))
          end()
          controller.close()
        } catch (error) {
          end()
          controller.error(error)
        }
      },
      cancel: end,
    },
    { highWaterMark: 0 }
  )
}

/** One invocation, of `clock/head`, for this Space. */
async function checkInvocation(body: Uint8Array, space: string): Promise<void> {
  await verifyBlocks(body)
  let invocations
  try {
    const message = await CAR.request.decode({ headers: {}, body })
    invocations = message.invocations.flatMap(({ capabilities }) => [
      ...capabilities,
    ])
  } catch (cause) {
    throw new InvalidBodyError('the authorization is not a message', { cause })
  }
  const [capability, ...others] = invocations
  if (
    others.length > 0 ||
    capability?.can !== 'clock/head' ||
    capability.with !== space
  ) {
    throw new InvalidBodyError(
      `the authorization is not one invocation of clock/head for ${space}`
    )
  }
}

function readAuthorization(header: string | undefined): Uint8Array | undefined {
  const [, text] = /^UCAN ([\w-]+)$/i.exec(header ?? '') ?? []
  return text === undefined
    ? undefined
    : new Uint8Array(Buffer.from(text, 'base64url'))
}

function event(name: string, data: object): string {
  return `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`
}
