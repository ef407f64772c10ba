import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { connect, type Connection } from '../../src/client/index.ts'
import type { TestStore } from './slow-stores.ts'

/** The service is asked by few, often, about Spaces that are made up. */
const ENVIRONMENT = {
  BLUESKY_BACKUPS_PROVISIONING_POLICY: 'off',
  BLUESKY_BACKUPS_REVOCATIONS_POLICY: 'off',
  BLUESKY_BACKUPS_SPACE_RATE: '0',
  BLUESKY_BACKUPS_ISSUER_RATE: '0',
}

/** A service in another process. Disposing of it kills it. */
export interface ServiceProcess extends AsyncDisposable {
  /** @returns how to reach it, or undefined if it was killed meanwhile */
  start(): Promise<Connection | undefined>
  /** Ends it between any two of its instructions. */
  kill(): Promise<void>
  pid: number
  /** Settles when the process has ended, however it did. */
  exited: Promise<unknown>
}

/**
 * Loads a service into a process of its own, where it starts when told to.
 *
 * @param environment - settings of this service
 */
export async function loadServiceProcess(
  { dataFolder, databaseUrl = '' }: TestStore,
  environment: Record<string, string> = {}
): Promise<ServiceProcess> {
  const script = fileURLToPath(new URL('serve-when-told.ts', import.meta.url))
  const child = spawn(process.execPath, [script, dataFolder], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: {
      ...process.env,
      ...ENVIRONMENT,
      ...environment,
      DATABASE_URL: databaseUrl,
    },
  })
  const exit = once(child, 'exit')
  // Who is killed does not listen any more.
  child.stdin.on('error', () => {})
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  const ready = await lines.next()
  if (ready.done) throw new Error('the service could not be loaded')
  const kill = async () => {
    child.kill('SIGKILL')
    await exit
  }
  return {
    kill,
    pid: child.pid!,
    exited: exit,
    [Symbol.asyncDispose]: kill,
    async start() {
      child.stdin.write('start\n')
      const line = await lines.next()
      if (line.done) {
        await exit
        if (child.signalCode === 'SIGKILL') return undefined
        throw new Error('the service did not start; its log is above')
      }
      const { url, did } = JSON.parse(line.value) as {
        url: string
        did: string
      }
      return connect({ url: new URL(url), did })
    },
  }
}
