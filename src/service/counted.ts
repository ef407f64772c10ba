import type { Fetch, SafeFetch } from '../atproto/index.ts'
import { HostError, type Time } from '../backup/index.ts'
import type { HostBudget } from './host-budget.ts'

export interface CountedOptions {
  budget: HostBudget
  time: Time
  /** The longest that a request waits until there is one left, in milliseconds. */
  patience: number
  /** No host of accounts: what it is asked is not counted. */
  directory: URL
}

/**
 * Counts what is asked of hosts on the way into accounts among all that they
 * are asked. It takes no place at the host: whoever reads with a grant that is
 * to be refreshed has one already, and would wait for itself. Nor does what has
 * begun wait or fail: the trade of a code is counted when it is made. That of a
 * session, for which there is a lease, is not counted; what the host is asked
 * before is.
 *
 * Reading counts elsewhere.
 */
export function counted(fetch: SafeFetch, options: CountedOptions): SafeFetch {
  const small: Fetch = async (input, init) => {
    const { host, pathname } = new URL(
      input instanceof Request ? input.url : input
    )
    if (host !== options.directory.host && !pathname.startsWith('/xrpc/')) {
      if (await isTrade(input, init)) await options.budget.take(host)
      else await pay(host, options, signalOf(input, init))
    }
    return fetch.small(input, init)
  }
  return { ...fetch, small }
}

/** @throws {@link HostError} */
async function pay(
  host: string,
  { budget, time, patience }: CountedOptions,
  signal: AbortSignal | undefined
): Promise<void> {
  const deadline = time.now() + patience
  for (;;) {
    const wait = await budget.take(host)
    if (wait === 0) return
    if (time.now() + wait > deadline) {
      const seconds = Math.max(1, Math.ceil(wait / 1000))
      throw new HostError(
        `${host} was asked as often as it may be for now. Try again in ${seconds} seconds.`
      )
    }
    await time.sleep(wait, signal)
  }
}

/** Whether a request trades what is worth nothing afterwards. */
async function isTrade(...[input, init]: Parameters<Fetch>): Promise<boolean> {
  const request = input instanceof Request ? input : undefined
  if ((init?.method ?? request?.method) !== 'POST') return false
  const body = request ? await request.clone().text() : init?.body
  return typeof body === 'string' && new URLSearchParams(body).has('grant_type')
}

function signalOf(
  ...[input, init]: Parameters<Fetch>
): AbortSignal | undefined {
  return init?.signal ?? (input instanceof Request ? input.signal : undefined)
}
