/**
 * The process of a courier. Its life is tied to the channel to its sender:
 * while that is there, answers are handed over; when it has gone, what nobody
 * has taken is put into the store.
 *
 * @packageDocumentation
 */
// No index of a folder: somebody waits for this process to be there.
import { limited } from '../atproto/limited.ts'
import { createSafeFetch, type SafeFetch } from '../atproto/safe-fetch.ts'
import { useProxies } from '../atproto/proxies.ts'
import { systemTime } from '../node/time.ts'
import type { RefreshAnswer } from './answer.ts'
import type {
  CarriedGrant,
  CourierOptions,
  CourierOrder,
  CourierReport,
} from './courier.ts'
import { createLogger } from './logger.ts'

/** How long, and how often, to try to keep an answer, in milliseconds. */
const KEEP = { timeout: 10 * 60_000, retry: 500 }

/** What nobody has taken yet. */
const held = new Map<
  number,
  { grant: CarriedGrant; answer: Promise<RefreshAnswer | undefined> }
>()
let options: CourierOptions | undefined
let safeFetch: SafeFetch | undefined
/** What it takes to keep an answer: it may be too late to load it then. */
let loading: ReturnType<typeof load> | undefined

async function load() {
  const [{ sealAnswer }, { openStores }] = await Promise.all([
    import('./answer.ts'),
    import('../stores/index.ts'),
  ])
  return { sealAnswer, openStores }
}

useProxies(process.env)

// Its sender tells it when to go, by going.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {})
}
// The other end may have gone together with its sender.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', () => {})
}

process.on('message', (order: CourierOrder) => {
  if (order.kind === 'begin') {
    ;({ options } = order)
    safeFetch = createSafeFetch(options.fetch)
    report({ kind: 'ready' })
  } else if (order.kind === 'release') held.delete(order.number)
  else carry(order)
})

process.on('disconnect', () => {
  // Connections to hosts that are kept open would keep it here.
  void leave().finally(() => process.exit())
})

function carry({
  number,
  grant,
  request,
}: Extract<CourierOrder, { kind: 'send' }>): void {
  const asking = ask(request)
  loading ??= load()
  loading.catch(() => {})
  const answer = asking.then(
    (answer) => {
      report({ kind: 'answer', number, answer })
      return answer
    },
    (error: unknown) => {
      const { name, message } = error as Error
      report({ kind: 'failure', number, name, message })
      return undefined
    }
  )
  held.set(number, { grant, answer })
}

async function ask({
  url,
  ...init
}: Extract<CourierOrder, { kind: 'send' }>['request']): Promise<RefreshAnswer> {
  if (!safeFetch) throw new TypeError('a courier that was not told how to ask')
  // What is given up has been done all the same: it is waited for.
  const response = limited(
    await safeFetch.stream(url, { ...init, redirect: 'error' }),
    new URL(url)
  )
  const body = await response.text()
  const { status, headers } = response
  return { status, headers: [...headers], body }
}

function report(report: CourierReport): void {
  if (!process.connected) return
  // Whoever cannot be told has gone, and the answer is kept.
  process.send?.(report, () => {})
}

/** Keeps what nobody has taken. */
async function leave(): Promise<void> {
  await Promise.all(
    [...held.values()].map(async ({ grant, answer }) => {
      const given = await answer
      // A refusal has changed nothing at the host.
      if (given && given.status >= 200 && given.status < 300) {
        await keep(grant, given)
      }
    })
  )
}

async function keep(
  { space, account, seq, recipient }: CarriedGrant,
  answer: RefreshAnswer
): Promise<void> {
  if (!options || !loading) return
  const log = createLogger(options.logLevel).child({ space, account, seq })
  const deadline = systemTime.now() + KEEP.timeout
  for (;;) {
    try {
      const { openStores, sealAnswer } = await loading
      const sealed = await sealAnswer(recipient, answer)
      await using stores = await openStores(options.stores)
      const isKept = await stores.grants.answered(space, account, {
        seq,
        sealed,
      })
      log.warn(
        isKept
          ? 'who refreshed a grant has gone; what the host answered is kept'
          : 'who refreshed a grant has gone, and the grant has changed since'
      )
      return
    } catch (error) {
      log.error(
        { err: error },
        'what a host has answered could not be kept; trying again'
      )
      if (systemTime.now() >= deadline) return
      await systemTime.sleep(KEEP.retry)
    }
  }
}
