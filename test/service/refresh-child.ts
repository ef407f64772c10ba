/**
 * An agent that refreshes a grant when it is told to, in a process of its own.
 * Who has forked it is asked about the Space and at each step, and may kill it
 * instead of answering.
 */
import { once } from 'node:events'
import { ed25519 } from '@ucanto/principal'
import { withNativeSigning } from '../../src/node/index.ts'
import type { Authorization } from '../../src/space/index.ts'
import { openStores } from '../../src/stores/index.ts'
import { createRefreshAgent } from './refresh-agent.ts'
import type { Answer, Order, Question, Setting } from './refresh-process.ts'

const waiting = new Map<number, (answer: unknown) => void>()
let questions = 0

function ask(question: Question): Promise<unknown> {
  const number = questions++
  process.send?.({ number, question })
  return new Promise((resolve) => waiting.set(number, resolve))
}

process.on('disconnect', () => process.exit())
process.send?.('loaded')
const [setting] = (await once(process, 'message')) as [Setting]
const { space, account, key, stores: options, ...hosts } = setting
const stores = await openStores(options)
let ahead = 0
const { keeper, publish } = createRefreshAgent({
  ...hosts,
  agent: withNativeSigning(ed25519.parse(key)),
  store: stores.grants,
  readAuthorization: async () =>
    (await ask({ is: 'read' })) as Authorization | undefined,
  writeAuthorization: async (authorization) => {
    await ask({ is: 'write', authorization })
  },
  ahead: () => ahead,
  onStep: async (step) => {
    if (setting.steps) await ask({ is: 'step', step })
  },
})

async function follow(order: Order): Promise<void> {
  ahead = order.ahead
  const opened = await Promise.all(
    Array.from({ length: order.opens }, () => keeper.open(space, account))
  )
  if (!opened.every(Boolean)) throw new Error('there is no grant')
  if (order.publish) await publish(space, account)
}

process.on('message', (message: Answer | Order) => {
  if ('number' in message) {
    waiting.get(message.number)?.(message.answer)
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
