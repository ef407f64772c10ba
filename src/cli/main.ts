/**
 * The command `bluesky-backups`.
 *
 * @packageDocumentation
 */
import { Command, CommanderError } from 'commander'
import { ProxyError, useProxies } from '../atproto/index.ts'
import { PACKAGE } from '../node/index.ts'
import { ConfigError } from '../service/config.ts'
import { createAuthorizationsCommand } from './commands/authorizations.ts'
import { createAuthorizeCommand } from './commands/authorize.ts'
import { createBackupCommand } from './commands/backup.ts'
import { createClockCommand } from './commands/clock.ts'
import { createDelegationCommand } from './commands/delegation.ts'
import { createDelegateCommand } from './commands/delegate.ts'
import { createLoginCommand, createWhoamiCommand } from './commands/login.ts'
import { createNetworkCommand } from './commands/network.ts'
import { createRecoveryCommand } from './commands/recovery.ts'
import { createRunsCommand } from './commands/runs.ts'
import { createScheduleCommands } from './commands/schedule.ts'
import { createServeCommand } from './commands/serve.ts'
import { createSpaceCommand } from './commands/space.ts'
import { createStatusCommand } from './commands/status.ts'
import { UsageError } from './errors.ts'
import { printable } from './format.ts'
import { printLine, type Io } from './io.ts'

/** Exit codes. */
const DONE = 0
const FAILED = 1
const WRONG_USAGE = 2
const INTERRUPTED = 130

/**
 * Milliseconds after a signal in which another one is taken for the same: npm
 * hands on what the terminal has sent to both.
 */
const SIGNAL_ECHO = 500

/**
 * Runs the command.
 *
 * @returns the exit code: 0 done, 1 failed, 2 wrong usage or configuration,
 *   130 interrupted
 */
export async function main(io: Io): Promise<number> {
  const outcome = { failed: false }
  const program = createProgram(io, () => {
    outcome.failed = true
  })
  try {
    await program.parseAsync(io.argv, { from: 'user' })
    return outcome.failed ? FAILED : DONE
  } catch (error) {
    return report(io, error)
  }
}

/** Runs the command as this process; a second interrupt ends it at once. */
export async function runProcess(process: NodeJS.Process): Promise<void> {
  const interrupt = new AbortController()
  const onSignal = () => {
    interrupt.abort(new Error('interrupted'))
    setTimeout(() => {
      process.off('SIGINT', onSignal)
      process.off('SIGTERM', onSignal)
    }, SIGNAL_ECHO).unref()
  }
  process.on('SIGINT', onSignal)
  process.on('SIGTERM', onSignal)
  // Who reads the output may stop early, as `head` does.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
    interrupt.abort(error)
  })
  const { env, stdout, stderr } = process
  const { signal } = interrupt
  const io: Io = { argv: process.argv.slice(2), env, stdout, stderr, signal }
  try {
    useProxies(env, {
      onWarning: (message) => printLine(stderr, `warning: ${message}`),
    })
  } catch (error) {
    process.exitCode = report(io, error)
    return
  }
  process.exitCode = await main(io)
}

function createProgram(io: Io, onFailed: () => void): Command {
  const program = new Command('bluesky-backups')
    .description(PACKAGE.description)
    .version(PACKAGE.version)
    .exitOverride()
    .configureOutput({
      writeOut: (text) => void io.stdout.write(text),
      writeErr: (text) => {
        // With --json, an error is an object on stdout.
        if (!wantsJson(io)) io.stderr.write(text)
      },
      getOutHelpWidth: () => io.stdout.columns ?? 80,
      getErrHelpWidth: () => io.stderr.columns ?? 80,
    })
    .showHelpAfterError('(see --help)')
    .addHelpText(
      'after',
      `
Example:
  $ bluesky-backups login alice@example.com
  $ bluesky-backups space create bluesky
  $ bluesky-backups backup run alice.bsky.social --here
  $ bluesky-backups backup export latest --out ./alice

Environment:
  HTTP_PROXY, HTTPS_PROXY  proxies that requests go through
  NO_PROXY                 hosts that are asked directly, as in .example.com,10.0.0.1`
    )
  for (const create of [
    createLoginCommand,
    createWhoamiCommand,
    createSpaceCommand,
    createDelegateCommand,
    createDelegationCommand,
    createAuthorizeCommand,
    createAuthorizationsCommand,
    createBackupCommand,
    createRecoveryCommand,
    createScheduleCommands,
    createRunsCommand,
    createClockCommand,
    createStatusCommand,
    createServeCommand,
    createNetworkCommand,
  ]) {
    create(program, { io, onFailed })
  }
  return program
}

/** Tells what went wrong. */
function report(io: Io, error: unknown): number {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return DONE
    if (wantsJson(io)) {
      const message = error.message.replace(/^error: /, '')
      printError(io, 'UsageError', message)
    }
    return WRONG_USAGE
  }
  const interrupted = io.signal.aborted
  const { name, message } = interrupted
    ? { name: 'InterruptedError', message: 'interrupted' }
    : error instanceof Error
      ? error
      : new Error(String(error))
  if (wantsJson(io)) printError(io, name, message)
  else printLine(io.stderr, `error: ${readable(error, message)}`)
  if (io.argv.includes('--verbose')) printStacks(io, error)
  if (interrupted) return INTERRUPTED
  return error instanceof UsageError ||
    error instanceof ConfigError ||
    error instanceof ProxyError
    ? WRONG_USAGE
    : FAILED
}

function printError(io: Io, name: string, message: string): void {
  printLine(io.stdout, JSON.stringify({ error: { name, message } }))
}

function printStacks(io: Io, error: unknown): void {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    printLine(io.stderr, safeLines(cause.stack ?? cause.message))
  }
}

/** A message in one line; only of settings there may be several problems. */
function readable(error: unknown, message: string): string {
  return error instanceof ConfigError
    ? safeLines(message)
    : printable(message.replace(/\s+/g, ' '))
}

/** Messages may quote what others sent. */
function safeLines(text: string): string {
  return text.split('\n').map(printable).join('\n')
}

function wantsJson(io: Io): boolean {
  return io.argv.includes('--json')
}
