import type { Receipt } from '@ucanto/interface'
import { CAR } from '@ucanto/transport'
import type { Time } from '../../backup/index.ts'
import { InvalidBodyError } from '../errors.ts'
import type { InvocationServer } from '../server.ts'
import { verifyBlocks } from './verify-blocks.ts'

/**
 * Milliseconds after which who is told anything must prove again that it may
 * be: rights may end.
 */
export const CHECK_INTERVAL = 5_000

/** Checks without news after which a line keeps the connection alive. */
export const QUIET_CHECKS = 3

/** Milliseconds within which a client must have taken what it was sent. */
const STALL_TIMEOUT = 60_000

/** A line that says nothing. */
export const KEEP_ALIVE = ':\n\n'

/** What those who stream events share. */
export interface StreamContext {
  server: InvocationServer
  time: Time
  /** Aborted when the service goes down. */
  stopping: AbortSignal
  /** Cuts the connection of the client. */
  cut?: () => void
}

/** A failure and the HTTP status it is answered with. */
export interface Refusal {
  status: 400 | 401 | 403 | 404 | 503
  name: string
  message: string
}

/** What the service answered to the invocation that came along. */
export type Answer<T> =
  | { ok: T; error?: undefined }
  | { ok?: undefined; error: { name: string; message: string } }

/**
 * Reads the invocation that allows a client to be told something.
 *
 * @param authorization - value of the header: `UCAN`, then in base64url the
 *   CAR of a message with one invocation
 * @param expected - the capability, whose Space is the one in the path
 * @returns the values of the capability, and how to ask for its answer, which
 *   validates it anew each time; or a refusal
 * @throws {@link InvalidBodyError}
 */
export async function readInvocation<T>(
  server: InvocationServer,
  authorization: string | undefined,
  expected: { can: string; with: string }
): Promise<
  { nb: Record<string, unknown>; ask: () => Promise<Answer<T>> } | Refusal
> {
  const body = readAuthorization(authorization)
  if (!body) {
    return {
      status: 401,
      name: 'Unauthorized',
      message: `send a signed ${expected.can} invocation along: Authorization: UCAN, and the CAR of its message in base64url`,
    }
  }
  const nb = await checkInvocation(body, expected)
  return {
    nb,
    async ask() {
      const { body: answer, headers } = await server.request({ body })
      const { receipts } = await CAR.response.decode({ body: answer, headers })
      const [receipt] = receipts.values() as Iterable<Receipt>
      const { ok, error } = receipt?.out ?? {}
      if (!error && ok) return { ok: ok as T }
      const { name, message } = Object(error) as Record<string, unknown>
      return { error: { name: String(name), message: String(message) } }
    },
  }
}

/** Failures that pass: who asks again later may be answered. */
const PASSING = new Set([
  'RateLimited',
  'RevocationsUnavailable',
  'ServiceUnavailable',
])

/** A failure to begin with, as it is answered. */
export function refusalOf(error: { name: string; message: string }): Refusal {
  const { name, message } = error
  const status = PASSING.has(name) ? 503 : name === 'RunNotFound' ? 404 : 403
  return { status, name, message }
}

/** The last event, for a client that need not ask again; else there is none. */
export function* endingOf(error: {
  name: string
  message: string
}): Generator<string> {
  if (!PASSING.has(error.name)) yield eventText('end', error)
}

/** A server-sent event. */
export function eventText(name: string, data: object): string {
  return `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`
}

/**
 * Sends text as fast as the client takes it: the next piece is made when the
 * one before is gone. A client that takes nothing is cut off.
 *
 * @param lines - the pieces
 * @param onEnd - called once, however it ends
 */
export function streamText(
  lines: AsyncGenerator<string>,
  { time, cut }: Pick<StreamContext, 'time' | 'cut'>,
  onEnd: () => void
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  let taken = new AbortController()
  let ended = false
  const end = () => {
    taken.abort()
    if (ended) return
    ended = true
    onEnd()
  }
  const awaitTaken = async (
    controller: ReadableStreamDefaultController<Uint8Array>
  ) => {
    const { signal } = (taken = new AbortController())
    await time.sleep(STALL_TIMEOUT, signal).catch(() => {})
    if (signal.aborted) return
    end()
    if (cut) cut()
    else controller.error(new Error('nobody takes what is sent'))
  }
  return new ReadableStream<Uint8Array>(
    {
      // It may be that nobody ever reads it.
      start: (controller) => void awaitTaken(controller),
      async pull(controller) {
        taken.abort()
        try {
          const next = await lines.next()
          if (!next.done) {
            controller.enqueue(encoder.encode(next.value))
            void awaitTaken(controller)
            return
          }
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

/** One invocation, of the capability that is expected. */
async function checkInvocation(
  body: Uint8Array,
  expected: { can: string; with: string }
): Promise<Record<string, unknown>> {
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
    capability?.can !== expected.can ||
    capability.with !== expected.with
  ) {
    throw new InvalidBodyError(
      `the authorization is not one invocation of ${expected.can} for ${expected.with}`
    )
  }
  return { ...(capability.nb as Record<string, unknown> | undefined) }
}

function readAuthorization(header: string | undefined): Uint8Array | undefined {
  const [, text] = /^UCAN ([\w-]+)$/i.exec(header ?? '') ?? []
  return text === undefined
    ? undefined
    : new Uint8Array(Buffer.from(text, 'base64url'))
}
