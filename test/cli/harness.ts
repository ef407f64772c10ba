import { PassThrough } from 'node:stream'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pino from 'pino'
import { main } from '../../src/cli/main.ts'
import {
  readConfig,
  startService,
  type RunningService,
  type ServiceOptions,
} from '../../src/service/index.ts'
import type { Network } from '../network/index.ts'

/** What tests look into as they expect it to be. */

type Json = any

/** What a command printed, and how it ended. */
export interface Finished {
  code: number
  stdout: string
  stderr: string
  /** The one object on stdout, with `--json`; of a stream of them, all. */
  json: Json
}

export interface RunOptions {
  signal?: AbortSignal
  env?: Record<string, string>
  /** Whether stderr is a terminal. */
  terminal?: boolean
  /** Called with each piece of text on stdout. */
  onStdout?: (text: string) => void
  /** Called with each piece of text on stderr. */
  onStderr?: (text: string) => void
}

/** The command with a home of its own, in this process. */
export class Agent {
  readonly home: string
  readonly env: Record<string, string>

  constructor(home: string, env: Record<string, string>) {
    this.home = home
    this.env = { ...env, BLUESKY_BACKUPS_HOME: home }
  }

  async run(argv: string[], options: RunOptions = {}): Promise<Finished> {
    const stdout = collect(options.onStdout)
    const stderr = collect(options.onStderr)
    Object.assign(stderr.stream, {
      isTTY: options.terminal ?? false,
      columns: 200,
    })
    const code = await main({
      argv,
      env: { ...this.env, ...options.env },
      stdout: stdout.stream,
      stderr: stderr.stream,
      signal: options.signal ?? new AbortController().signal,
    })
    const text = stdout.text()
    return {
      code,
      stdout: text,
      stderr: stderr.text(),
      json: argv.includes('--json') ? parse(text) : undefined,
    }
  }

  /** Runs a command that must succeed, and gives its object. */
  async json(argv: string[], options?: RunOptions): Promise<Json> {
    const finished = await this.run([...argv, '--json'], options)
    if (finished.code !== 0) {
      throw new Error(
        `${argv.join(' ')} ended with ${finished.code}: ${finished.stdout}${finished.stderr}`
      )
    }
    return finished.json
  }
}

/** Folders that are removed at the end. */
export async function createFolder(): Promise<
  { path: string } & AsyncDisposable
> {
  const path = await mkdtemp(join(tmpdir(), 'bluesky-backups-test-'))
  return {
    path,
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  }
}

/** Starts a backup service that works in the network. */
export function startTestService(
  network: Network,
  dataFolder: string,
  flags: Parameters<typeof readConfig>[0] = {},
  options: ServiceOptions = {}
): Promise<RunningService> {
  return startService(
    readConfig({ port: '0', dataFolder, ...flags }, network.environment),
    { logger: pino({ level: 'silent' }), ...options }
  )
}

function parse(text: string): Json {
  if (text === '') return undefined
  const lines = text.trimEnd().split('\n')
  return lines.length === 1
    ? JSON.parse(text)
    : lines.map((line) => JSON.parse(line))
}

function collect(onText?: (text: string) => void) {
  const stream = new PassThrough()
  let text = ''
  stream.setEncoding('utf8')
  stream.on('data', (chunk: string) => {
    text += chunk
    onText?.(chunk)
  })
  return {
    stream,
    text: () => text + ((stream.read() as string | null) ?? ''),
  }
}
