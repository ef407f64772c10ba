import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { StoresOptions } from '../../../src/stores/index.ts'
import type { SharedContract } from './contract.ts'
import { alice, eventOf } from './samples.ts'

export const processesContract: SharedContract = {
  'another process may advance the same clock at the same time': async (
    assert,
    open,
    options
  ) => {
    const count = 100
    const children = ['a', 'b'].map((prefix) =>
      startAdvancing(options, prefix, count)
    )
    const stores = await open()
    for (let index = 0; index < count; index += 1) {
      const parents = index === 0 ? [] : [`own-${index - 1}`]
      await stores.clock.advance(alice, [eventOf(`own-${index}`, ...parents)])
      await new Promise((resolve) => setImmediate(resolve))
    }
    const outputs = await Promise.all(children.map(({ output }) => output))
    for (const output of outputs) {
      assert.equal(output.trimEnd().split('\n').length, count)
    }
    assert.deepEqual(await stores.clock.head(alice), [
      `a-${count - 1}`,
      `b-${count - 1}`,
      `own-${count - 1}`,
    ])
  },

  'another process that ends takes nothing away': async (
    assert,
    open,
    options
  ) => {
    const one = await open()
    await one.clock.advance(alice, [eventOf('a')])
    const two = await open()
    await startAdvancing(options, 'b', 1).output
    await one.clock.advance(alice, [eventOf('c')])
    const head = ['a', 'b-0', 'c']
    assert.deepEqual(await two.clock.head(alice), head)
    const three = await open()
    assert.deepEqual(await three.clock.head(alice), head)
  },

  'a killed process has lost nothing that was acknowledged': async (
    assert,
    open,
    options
  ) => {
    for (let round = 0; round < 5; round += 1) {
      const { child, output } = startAdvancing(options, `${round}`)
      await once(child.stdout!, 'readable')
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 150))
      child.kill('SIGKILL')
      // What follows the last newline was not printed whole.
      const events = (await output).split('\n').slice(0, -1)
      assert.ok(events.length > 0)

      await using stores = await open()
      assert.deepEqual(await stores.clock.unknown(alice, events), [])
      const last = (await stores.clock.head(alice))[round]
      const acknowledged = [events.length - 1, events.length]
      assert.ok(
        acknowledged.map((index) => `${round}-${index}`).includes(last ?? ''),
        `${last} is the head after ${events.at(-1)} was acknowledged`
      )
    }
  },
}

function startAdvancing(
  options: StoresOptions,
  prefix: string,
  count?: number
): { child: ChildProcess; output: Promise<string> } {
  const script = fileURLToPath(
    new URL('../advance-forever.ts', import.meta.url)
  )
  const child = spawn(
    process.execPath,
    [script, JSON.stringify(options), alice, prefix, `${count ?? Infinity}`],
    { stdio: ['ignore', 'pipe', 'inherit'] }
  )
  return { child, output: text(child.stdout) }
}
