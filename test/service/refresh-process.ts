import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { DID } from '../../src/space/index.ts'
import type { StoresOptions } from '../../src/stores/index.ts'
import type { RefreshStep } from './refresh-agent.ts'
import type { SpacePlace } from './test-space.ts'

/** What an agent in another process is told first. */
export interface Setting {
  space: SpacePlace
  account: DID
  /** Secret key of the agent. */
  key: string
  stores: StoresOptions
  plcUrl: string
  pdsUrl: string
  /** Whether it asks at each step whether it may go on. */
  steps: boolean
  /** Whether a process that outlives it carries what it asks of the host. */
  courier: boolean
}

/** What it is to do next. */
export interface Order {
  /** How often at once the grant is opened. */
  opens: number
  /** How far the agent's time is ahead, in milliseconds. */
  ahead: number
  /** Whether it goes to the Space then. */
  publish: boolean
}

/** A step that the agent has come to. */
export interface Question {
  number: number
  step: RefreshStep
}

/** It may go on. */
export interface Answer {
  number: number
}

/** An agent in another process. Disposing of it kills it. */
export interface RefreshProcess extends AsyncDisposable {
  start(setting: Setting): Promise<void>
  /** @returns whether it got to the end, and was not killed before */
  follow(order: Order): Promise<boolean>
  /** Ends it between any two of its instructions, and waits for its courier. */
  kill(): Promise<void>
}

/**
 * Loads an agent into a process of its own.
 *
 * @param onStep - called at each step; the agent waits for it
 */
export async function loadRefreshProcess(
  onStep: (step: RefreshStep, kill: () => Promise<void>) => Promise<void>
): Promise<RefreshProcess> {
  const script = fileURLToPath(new URL('refresh-child.ts', import.meta.url))
  const child = fork(script, {
    serialization: 'advanced',
    // A courier has the same output, which is at its end when both are.
    stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
  })
  child.stdout?.resume()
  const exit = once(child, 'exit')
  const close = once(child, 'close')
  const kill = async () => {
    child.kill('SIGKILL')
    await close
  }
  let wake: (message: unknown) => void = () => {}
  const next = () =>
    Promise.race([
      new Promise<unknown>((resolve) => (wake = resolve)),
      exit.then(() => undefined),
    ])
  child.on('message', (message) => {
    if (typeof message !== 'object' || !('step' in message)) {
      wake(message)
      return
    }
    const { number, step } = message as Question
    onStep(step, kill).then(
      () => {
        // Who was killed does not listen any more.
        if (child.connected) child.send({ number }, () => {})
      },
      (error: unknown) => wake({ failure: String(error) })
    )
  })
  const expect = async (expected: string): Promise<boolean> => {
    const message = await next()
    if (message === expected) return true
    if (message === undefined && child.signalCode === 'SIGKILL') return false
    throw new Error(`instead of "${expected}": ${JSON.stringify(message)}`)
  }
  await expect('loaded')
  return {
    kill,
    [Symbol.asyncDispose]: kill,
    async start(setting) {
      child.send(setting)
      await expect('ready')
    },
    follow(order) {
      child.send(order)
      return expect('done')
    },
  }
}
