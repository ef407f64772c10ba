import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import { Option, type Command } from 'commander'
import {
  ConfigError,
  flagOf,
  readSettings,
  SETTINGS,
  variableOf,
  type SettingName,
} from '../service/config.ts'
import { UsageError } from './errors.ts'
import { parseDuration } from './format.ts'

/** Settings that the agent shares with the service. */
const NETWORK_SETTINGS = [
  'uploadServiceUrl',
  'uploadServiceDid',
  'receiptsUrl',
  'gatewayUrls',
  'plcUrl',
  'handleResolverUrl',
  'allowPrivateNetwork',
] as const satisfies SettingName[]

/** Limits of a backup that the agent makes itself. */
export const LIMIT_SETTINGS = [
  'maxBlobSize',
  'concurrentBlobs',
] as const satisfies SettingName[]

const HOME_VARIABLE = 'BLUESKY_BACKUPS_HOME'
const SERVICE_VARIABLE = 'BLUESKY_BACKUPS_SERVICE_URL'

/** Options as commander gives them, by their names in camel case. */
export type Flags = Record<string, unknown>

/** What the agent knows of the world. */
export type AgentConfig = ReturnType<
  typeof readSettings<(typeof NETWORK_SETTINGS)[number]>
> & {
  /** Folder of the agent's state. */
  home: string
  /** The backup service to work with. */
  serviceUrl?: URL
}

/** Adds a flag for each of the settings, which tells its variable and default. */
export function addSettings(
  command: Command,
  names: readonly SettingName[]
): Command {
  for (const name of names) {
    const { value, description, schema } = SETTINGS[name]
    const initial = schema.safeParse(undefined)
    const shown = initial.success ? defaultText(initial.data) : undefined
    const notes = [
      `env: ${variableOf(name)}`,
      ...(shown === undefined ? [] : [`default: ${shown}`]),
    ]
    command.addOption(
      new Option(
        `--${flagOf(name)}${value === '' ? '' : ` <${value}>`}`,
        `${description} (${notes.join(', ')})`
      )
    )
  }
  return command
}

/** Adds what every command of the agent takes. */
export function addAgentOptions(command: Command): Command {
  command
    .optionsGroup('Agent:')
    .option(
      '--home <FOLDER>',
      `where the agent keeps its key and what was delegated to it (env: ${HOME_VARIABLE}, default: ~/.config/bluesky-backups)`
    )
    .option(
      '--service <URL>',
      `backup service to work with (env: ${SERVICE_VARIABLE})`
    )
    .optionsGroup('Network:')
  return addSettings(command, NETWORK_SETTINGS)
}

/** @throws {@link ConfigError} */
export function readAgentConfig(
  flags: Flags,
  environment: Record<string, string | undefined>
): AgentConfig {
  const serviceUrl =
    (flags['service'] as string | undefined) ?? environment[SERVICE_VARIABLE]
  if (
    serviceUrl !== undefined &&
    !/^https?:$/.test(URL.parse(serviceUrl)?.protocol ?? '')
  ) {
    const source =
      flags['service'] === undefined ? SERVICE_VARIABLE : '--service'
    throw new ConfigError([`${source}: must be an http or https URL`])
  }
  return {
    ...readSettings(NETWORK_SETTINGS, settingFlags(flags), environment),
    home: readHome(flags, environment),
    ...(serviceUrl === undefined ? {} : { serviceUrl: new URL(serviceUrl) }),
  }
}

/** Settings among the options, as text. */
export function settingFlags(
  flags: Flags
): Partial<Record<SettingName, string>> {
  return Object.fromEntries(
    Object.keys(SETTINGS)
      .filter((name) => flags[name] !== undefined)
      .map((name) => [name, String(flags[name])])
  )
}

/** @throws {@link UsageError} */
export function readLimit(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) {
    throw new UsageError('--limit: must be a whole number from 1')
  }
  return Number(text)
}

/**
 * Reads `--expires-in`: from now on.
 *
 * @returns Unix seconds, or `Infinity`
 * @throws {@link UsageError}
 */
export function readExpiration(text: string): number {
  if (text === 'never') return Infinity
  const seconds = parseDuration(text)
  if (!seconds) {
    throw new UsageError(
      '--expires-in: give a number and a unit, as in 24h or 365d, or never'
    )
  }
  return Math.floor(Date.now() / 1000) + seconds
}

function readHome(
  flags: Flags,
  environment: Record<string, string | undefined>
): string {
  const named =
    (flags['home'] as string | undefined) ?? environment[HOME_VARIABLE]
  if (named) return resolve(named)
  const configuration =
    environment['XDG_CONFIG_HOME'] ||
    join(environment['HOME'] || homedir(), '.config')
  return join(configuration, 'bluesky-backups')
}

function defaultText(value: unknown): string | undefined {
  if (value === undefined || value === false) return undefined
  if (!Array.isArray(value)) return String(value)
  return value.length === 0 ? undefined : value.join(',')
}
