/**
 * Begins jobs, prints the key of each, and goes on with it until it is killed.
 *
 *   node begin-jobs.ts PLACE
 */
import { writeSync } from 'node:fs'
import { aborted, openEngine } from './harness.ts'
import type { EnginePlace } from './harness.ts'

const [place = ''] = process.argv.slice(2)
const { engine } = await openEngine(JSON.parse(place) as EnginePlace)
engine.work(
  {
    async test({ key }, { signal }) {
      writeSync(1, `${key}\n`)
      await aborted(signal)
    },
  },
  { concurrency: 2 }
)
