/**
 * Gets ready, waits for a line, and runs a service until it is killed. It says
 * `ready`, and then where it is.
 *
 *   node serve-when-told.ts DATA_FOLDER
 */
import { createInterface } from 'node:readline'
import { readConfig, startService } from '../../src/service/index.ts'
import { createLogger } from '../../src/service/logger.ts'

const [dataFolder = ''] = process.argv.slice(2)
process.stdout.write('"ready"\n')
const told = createInterface(process.stdin)[Symbol.asyncIterator]()
if (!(await told.next()).done) {
  const { url, did } = await startService(
    readConfig({ port: '0', dataFolder, drainTimeout: '0' }, process.env),
    { logger: createLogger('error') }
  )
  process.stdout.write(`${JSON.stringify({ url, did })}\n`)
  // Whoever started it may end without a word.
  if ((await told.next()).done) process.exit()
}
