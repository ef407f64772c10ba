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
  /** But for what every command in the network of the tests warns of. */
  stderr: string
  /** What it warned of. */
  warnings: number
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
    let warnings = 0
    const stderr = collect(options.onStderr, (text) =>
      text.replaceAll(LOCAL_WARNING, () => {
        warnings++
        return ''
      })
    )
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
      warnings,
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

/** Each command says so in a local network, once and in one piece. */
const LOCAL_WARNING =
  'warning: private and loopback addresses are allowed: only for local networks\n'

/** @param leave - what is left of a piece of text */
function collect(
  onText?: (text: string) => void,
  leave: (text: string) => string = (text) => text
) {
  const stream = new PassThrough()
  let text = ''
  const take = (chunk: string) => {
    const left = leave(chunk)
    text += left
    if (left !== '') onText?.(left)
  }
  stream.setEncoding('utf8')
  stream.on('data', take)
  return {
    stream,
    text() {
      take((stream.read() as string | null) ?? '')
      return text
    },
  }
}
