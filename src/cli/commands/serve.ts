import { resolve } from 'node:path'
import type { Command } from 'commander'
import { readConfig, SETTINGS, type SettingName } from '../../service/config.ts'
import { createLogger } from '../../service/logger.ts'
import { addCommonOptions, type CommandContext } from '../command.ts'
import { formatFields } from '../format.ts'
import { printLine } from '../io.ts'
import { addSettings, settingFlags, type Flags } from '../options.ts'

/** `serve`: runs the service until it is told to stop. */
export function createServeCommand(
  program: Command,
  { io }: CommandContext
): void {
  const command = program
    .command('serve')
    .description('run a backup service, until SIGTERM or Ctrl-C')
    .optionsGroup('Service:')
  addSettings(command, Object.keys(SETTINGS) as SettingName[])
  addCommonOptions(
    command,
    'bluesky-backups serve --public-url https://backups.example --data-folder /var/lib/bluesky-backups\nbluesky-backups serve --metrics-port 9464'
  )
  command.addHelpText(
    'after',
    `
Environment:
  HTTP_PROXY, HTTPS_PROXY  proxies that requests go through
  NO_PROXY                 hosts that are asked directly, as in .example.com,10.0.0.1
  Hosts of accounts at private addresses are not asked for through a proxy, as
  far as their names can be looked up here. Let the proxy refuse them as well.`
  )
  command.action(async () => {
    const flags = command.opts<Flags>()
    const config = readConfig(settingFlags(flags), io.env)
    // With --json, stdout is for the one object.
    const logs = flags['json'] ? io.stderr : io.stdout
    const { startService } = await import('../../service/start.ts')
    await using service = await startService(config, {
      logger: createLogger(config.logLevel, {
        write: (line) => void logs.write(line),
      }),
    })
    const { url, did, agent, keyCreated, metricsUrl } = service
    if (flags['json']) {
      printLine(
        io.stdout,
        JSON.stringify({
          url: url.href,
          did,
          agent,
          ...(metricsUrl ? { metrics: metricsUrl.href } : {}),
        })
      )
    } else {
      printLine(
        io.stderr,
        formatFields([
          ['URL', url.href],
          ['service', did],
          ['agent', agent],
          ['metrics', metricsUrl?.href],
          ['data', resolve(config.dataFolder)],
          ['key', `${config.keyFile}${keyCreated ? ' (made just now)' : ''}`],
        ])
      )
    }
    await interrupted(io.signal)
  })
}

/** Resolves when the user wants the command to end. */
export function interrupted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })
}
