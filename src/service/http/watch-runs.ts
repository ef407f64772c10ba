import { isOver, type RunFeed } from '../run-feed.ts'
import {
  CHECK_INTERVAL,
  endingOf,
  eventText,
  KEEP_ALIVE,
  QUIET_CHECKS,
  readInvocation,
  refusalOf,
  streamText,
  type Refusal,
  type StreamContext,
} from './event-stream.ts'

/**
 * Streams runs of a Space as server-sent events: as they are at once, and
 * whenever they change, for as long as the invocation is valid. Ends with the
 * run, where the invocation names one.
 *
 * @param space - DID of the Space
 * @param authorization - value of the header, with one `backup/status`
 *   invocation, which says which runs
 */
export async function watchRuns(
  { feed, ...context }: StreamContext & { feed: RunFeed },
  space: string,
  authorization: string | undefined
): Promise<ReadableStream<Uint8Array> | Refusal> {
  const { server, time, stopping } = context
  const invocation = await readInvocation(server, authorization, {
    can: 'backup/status',
    with: space,
  })
  if ('status' in invocation) return invocation
  const { nb, ask } = invocation
  const first = await ask()
  if (first.error) return refusalOf(first.error)
  const follower = feed.follow({
    space,
    ...(nb['run'] ? { run: String(nb['run']) } : {}),
    ...(nb['account'] ? { account: String(nb['account']) } : {}),
  })
  if (!follower) {
    return {
      status: 503,
      name: 'TooManyWatchers',
      message: 'too many follow runs here already; try again later',
    }
  }

  const news = follower
  const done = new AbortController()
  const end = () => {
    stopping.removeEventListener('abort', end)
    done.abort()
    follower.close()
  }
  stopping.addEventListener('abort', end)
  if (stopping.aborted) end()
  async function* lines(): AsyncGenerator<string> {
    let quiet = 0
    while (!done.signal.aborted) {
      const check = time
        .sleep(CHECK_INTERVAL, done.signal)
        .then(() => true)
        .catch(() => true)
      let due = false
      while (!due) {
        due = await Promise.race([check, news.next().then(() => false)])
        if (done.signal.aborted) return
        for (const message of news.take()) {
          quiet = 0
          yield eventText('run', message)
          if (nb['run'] && isOver(message)) return
        }
      }
      const { error } = await ask()
      if (error) {
        yield* endingOf(error)
        return
      }
      if (++quiet % QUIET_CHECKS === 0) yield KEEP_ALIVE
    }
  }
  return streamText(lines(), context, end)
}
