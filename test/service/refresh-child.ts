/**
 * An agent that refreshes a grant when it is told to, in a process of its own.
 * Who has forked it is asked at each step, and may kill it instead of answering.
 */
import { once } from 'node:events'
import { ed25519 } from '@ucanto/principal'
import { withNativeSigning } from '../../src/node/index.ts'
import { createCourier } from '../../src/service/courier.ts'
import { openStores } from '../../src/stores/index.ts'
import { createRefreshAgent, type RefreshStep } from './refresh-agent.ts'
import type { Answer, Order, Question, Setting } from './refresh-process.ts'
import { openSpaceAt } from './test-space.ts'

const waiting = new Map<number, () => void>()
let questions = 0

function ask(step: RefreshStep): Promise<void> {
  const number = questions++
  process.send?.({ number, step } satisfies Question)
  return new Promise((resolve) => waiting.set(number, resolve))
}

process.on('disconnect', () => process.exit())
process.send?.('loaded')
const [setting] = (await once(process, 'message')) as [Setting]
const { account, key, stores: options, courier, ...hosts } = setting
const stores = await openStores(options)
const agent = withNativeSigning(ed25519.parse(key))
const space = openSpaceAt(agent, setting.space)
let ahead = 0
const { keeper, publish } = createRefreshAgent({
  ...hosts,
  agent,
  space,
  store: stores.grants,
  ahead: () => ahead,
  ...(courier
    ? {
        courier: createCourier({
          stores: options,
          fetch: { allowPrivateNetwork: true },
          logLevel: 'warn',
        }),
      }
    : {}),
  onStep: async (step) => {
    if (setting.steps) await ask(step)
  },
})

async function follow(order: Order): Promise<void> {
  ahead = order.ahead
  const opened = await Promise.all(
    Array.from({ length: order.opens }, () => keeper.open(space.did, account))
  )
  if (!opened.every(Boolean)) throw new Error('there is no grant')
  if (order.publish) await publish(account)
}

process.on('message', (message: Answer | Order) => {
  if ('number' in message) {
    waiting.get(message.number)?.()
    waiting.delete(message.number)
    return
  }
  follow(message).then(
    () => process.send?.('done'),
    (error: unknown) => {
      process.send?.({ failure: String((error as Error).stack) })
    }
  )
})
process.send?.('ready')
