/**
 * Sweeps once, and prints how much memory it took.
 *
 *   node schedules-process.ts STORES NOW
 */
import { readFile } from 'node:fs/promises'
import { pino } from 'pino'
import { systemTime } from '../src/node/index.ts'
import {
  createEmbeddedEngine,
  openPgBossEngine,
} from '../src/scheduler/index.ts'
import { openStores, type StoresOptions } from '../src/stores/index.ts'
import { createSweeper } from './schedules-place.ts'

const [place = '', now = ''] = process.argv.slice(2)
const options = JSON.parse(place) as StoresOptions
await using stores = await openStores(options)
const engineOptions = {
  database: stores.database,
  time: systemTime,
  logger: pino({ level: 'warn' }),
}
const openEngine = () =>
  'databaseUrl' in options
    ? openPgBossEngine({ ...engineOptions, ...options })
    : createEmbeddedEngine(engineOptions)
await using engine = await openEngine()
await createSweeper({ stores, engine }).sweep(Number(now))
const jobs = [...(await engine.outstanding()).values()]
const status = await readFile('/proc/self/status', 'utf8')
const peak = Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024
process.stdout.write(
  `${JSON.stringify({ peak, jobs: jobs.reduce((sum, one) => sum + one, 0) })}\n`
)
process.exit()
