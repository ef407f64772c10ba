/**
 * Runs a service until it is killed, and prints where it is.
 *
 *   node serve-child.ts DATA_FOLDER SHARD_SIZE POLICY
 */
import { readConfig, startService } from '../../src/service/index.ts'
import { createLogger } from '../../src/service/logger.ts'
import type { RunnerPolicy } from '../../src/service/runner.ts'

const [dataFolder = '', shardSize = '', policy = ''] = process.argv.slice(2)
const service = await startService(
  readConfig({ port: '0', dataFolder, drainTimeout: '0' }, process.env),
  {
    logger: createLogger('silent'),
    shardSize: Number(shardSize),
    policy: JSON.parse(policy) as RunnerPolicy,
  }
)
const { url, did, agent } = service
process.stdout.write(`${JSON.stringify({ url, did, agent })}\n`)
process.once('SIGTERM', () => void service[Symbol.asyncDispose]())
