import type { Watchers } from '../watchers.ts'
import {
  CHECK_INTERVAL,
  endingOf,
  eventText,
  KEEP_ALIVE,
  QUIET_CHECKS,
  readInvocation,
  refusalOf,
  streamText,
  type Answer,
  type Refusal,
  type StreamContext,
} from './event-stream.ts'

/** Connections that watch clocks at the same time. */
const MAX_WATCHERS = 1_000

/**
 * Streams the head of a clock as server-sent events: at once, and whenever it
 * changes, for as long as the invocation is valid. The head is read again now
 * and then, as other processes advance clocks too.
 *
 * @param space - DID of the Space
 * @param authorization - value of the header, with one `clock/head` invocation
 * @see https://html.spec.whatwg.org/multipage/server-sent-events.html
 */
export async function watchClock(
  { watchers, ...context }: StreamContext & { watchers: Watchers },
  space: string,
  authorization: string | undefined
): Promise<ReadableStream<Uint8Array> | Refusal> {
  const { server, time, stopping } = context
  const invocation = await readInvocation<{ head: object[] }>(
    server,
    authorization,
    { can: 'clock/head', with: space }
  )
  if ('status' in invocation) return invocation
  if (watchers.size >= MAX_WATCHERS) {
    return {
      status: 503,
      name: 'TooManyWatchers',
      message: 'too many watch clocks here already; try again later',
    }
  }
  const { ask } = invocation
  // Watching begins before the first look, so that nothing is missed.
  const watcher = watchers.watch(space)
  const first = await ask().catch((error: unknown) => {
    watcher.close()
    throw error
  })
  if (first.error) {
    watcher.close()
    return refusalOf(first.error)
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
    let now: Answer<{ head: object[] }> = first
    while (!done.signal.aborted) {
      if (now.error) {
        yield* endingOf(now.error)
        return
      }
      const text = eventText('head', { head: now.ok.head.map(String) })
      if (text !== last) {
        yield (last = text)
        quiet = 0
      } else if (++quiet % QUIET_CHECKS === 0) {
        yield KEEP_ALIVE
      }
      const waiting = new AbortController()
      await Promise.race([
        watcher.next(),
        time
          .sleep(CHECK_INTERVAL, AbortSignal.any([waiting.signal, done.signal]))
          .catch(() => {}),
      ])
      waiting.abort()
      if (!done.signal.aborted) now = await ask()
    }
  }
  return streamText(lines(), context, end)
}
