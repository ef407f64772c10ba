/**
 * Advances a clock until it is killed, or as often as it is told to, and
 * prints each event after it was accepted.
 *
 *   node advance-forever.ts OPTIONS SPACE PREFIX [COUNT]
 */
import { writeSync } from 'node:fs'
import { openStores } from '../../src/stores/index.ts'
import type { StoresOptions } from '../../src/stores/index.ts'
import { eventOf } from './contract/samples.ts'

const [options = '', space = '', prefix = '', count = 'Infinity'] =
  process.argv.slice(2)
await using stores = await openStores(JSON.parse(options) as StoresOptions)
let parents: string[] = []
for (let index = 0; index < Number(count); index += 1) {
  const event = `${prefix}-${index}`
  await stores.clock.advance(space, [eventOf(event, ...parents)])
  writeSync(1, `${event}\n`)
  parents = [event]
}
