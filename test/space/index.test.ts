import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import * as Space from '../../src/space/index.ts'

const source = new URL('../../src/space/index.ts', import.meta.url)

describe('the example of the space package', () => {
  it('runs', async () => {
    const documentation = await readFile(source, 'utf8')
    const example = /```js\n([^]*?)```/.exec(documentation)![1]!
    const [, ...lines] = example.replaceAll(/^ \* ?/gm, '').split('\n')
    const printed: string[] = []
    const console = { log: (...text: string[]) => printed.push(...text) }
    // eslint-disable-next-line @typescript-eslint/no-implied-eval
    const run = new Function(
      'Space',
      'console',
      `return (async () => {${lines.join('\n')}})()`
    ) as (...names: unknown[]) => Promise<void>
    await run(Space, console)
    assert.equal(printed.length, 2)
    assert.match(printed[0]!, /^\d{4}-.*Z$/)
    assert.match(printed[1]!, /^bafy/)
  })
})
