import { join } from 'node:path'
import { Verifier } from '@ucanto/principal'
import { z } from 'zod'
import { LEAST_RATE, REPO_TIMEOUT } from '../atproto/safe-fetch.ts'
import { DEFAULT_LIMITS } from '../backup/index.ts'
import { RHYTHM_LIMITS } from '../scheduler/index.ts'

const httpUrl = z.string().transform((text, context) => {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url && /^https?:$/.test(url.protocol) && !url.username) return url
  context.addIssue('must be an http or https URL without a user name')
  return z.NEVER
})

const originUrl = httpUrl.refine(
  (url) => url.pathname === '/' && !url.search && !url.hash,
  'must be a URL without a path: the did:web of the service has none'
)

const directoryUrl = httpUrl.transform((url) =>
  url.pathname.endsWith('/') ? url : new URL(`${url.href}/`)
)

const list = z.string().transform((text) =>
  text
    .split(/[,\s]+/)
    .map((part) => part.trim())
    .filter((part) => part !== '')
)

const integer = (minimum: number, maximum: number) =>
  z
    .string()
    .regex(/^\d+$/, 'must be a whole number')
    .transform(Number)
    .pipe(z.number().int().min(minimum).max(maximum))

const flag = z
  .enum(['true', 'false', '1', '0', ''])
  .transform((text) => text === 'true' || text === '1')

const authority = z
  .string()
  .regex(
    /^did:web:[^=]+=did:key:z[1-9A-HJ-NP-Za-km-z]+$/,
    'must be did:web:…=did:key:…'
  )
  .transform((text, context) => {
    const [did, key] = text.split('=') as [
      `did:web:${string}`,
      `did:key:${string}`,
    ]
    try {
      Verifier.parse(key)
      return { did, key }
    } catch {
      context.addIssue(`${key} is not a key that can be used`)
      return z.NEVER
    }
  })

/** What a process of the service does. */
export const ROLES = ['all', 'api', 'scheduler', 'worker'] as const

/**
 * Every setting: how its text is read, what it is when not given, and what
 * help says of it. The name gives the flag (`--public-url`) and the variable
 * (`BLUESKY_BACKUPS_PUBLIC_URL`).
 */
export const SETTINGS = {
  publicUrl: setting(
    originUrl.optional(),
    'URL',
    'where agents reach the service; gives it its did:web (http://localhost:PORT if left out)'
  ),
  host: setting(
    z.string().min(1).default('127.0.0.1'),
    'ADDRESS',
    'address to listen on'
  ),
  port: setting(
    integer(0, 65535).default(8787),
    'NUMBER',
    'port to listen on; 0 for any'
  ),
  metricsHost: setting(
    z.string().min(1).default('127.0.0.1'),
    'ADDRESS',
    'address to listen on for those who run the service'
  ),
  metricsPort: setting(
    integer(0, 65535).optional(),
    'NUMBER',
    'port for those who run the service: /metrics, /health/alive, /health/ready; 0 for any (none, if left out)'
  ),
  dataFolder: setting(
    z.string().min(1).default('./bluesky-backups-data'),
    'FOLDER',
    'where the embedded store and the key are kept'
  ),
  keyFile: setting(
    z.string().min(1).optional(),
    'FILE',
    "the service's private key; made if it is not there (service.key in the data folder if left out). All processes on one PostgreSQL have the same"
  ),
  clientKeyFile: setting(
    z.string().min(1).optional(),
    'FILE',
    'private keys by which the service proves to hosts of accounts who it is; made if it is not there (client-keys.json in the data folder if left out). All processes on one PostgreSQL have the same'
  ),
  replaceKey: setting(
    z
      .string()
      .regex(/^did:key:z\w+$/, 'must be a did:key')
      .optional(),
    'DID',
    'agent that the database belongs to, whose key is lost: gives the database to the key there is. Nothing that was delegated or granted before holds any more; stop all other processes first'
  ),
  databaseUrl: setting(
    z
      .string()
      .regex(/^postgres(ql)?:\/\//, 'must be a postgres:// URL')
      .optional(),
    'URL',
    'PostgreSQL to use instead of the embedded store; also read from DATABASE_URL'
  ),
  uploadServiceUrl: setting(
    httpUrl.default(new URL('https://up.storacha.network')),
    'URL',
    'upload service of the Spaces'
  ),
  uploadServiceDid: setting(
    z
      .string()
      .regex(/^did:(web|key):\S+$/, 'must be a did:web or a did:key')
      .default('did:web:up.storacha.network'),
    'DID',
    'DID of the upload service'
  ),
  receiptsUrl: setting(
    directoryUrl.default(new URL('https://up.storacha.network/receipt/')),
    'URL',
    'where the upload service answers receipts'
  ),
  revocationsUrl: setting(
    directoryUrl.optional(),
    'URL',
    'where the upload service tells what was revoked (/revocations/ there, if left out)'
  ),
  revocationsPolicy: setting(
    z.enum(['open', 'closed', 'off']).default('open'),
    'POLICY',
    'while the upload service does not tell what was revoked, proofs hold (open) or not (closed); off never asks it'
  ),
  revocationsMaxAge: setting(
    integer(1, 86_400).default(300),
    'SECONDS',
    'how long an answer of the upload service about a proof holds'
  ),
  provisioningPolicy: setting(
    z.enum(['require', 'warn', 'off']).default('require'),
    'POLICY',
    'clocks of Spaces without a storage provider are refused (require), logged (warn) or not looked at (off)'
  ),
  provisioningMaxAge: setting(
    integer(1, 31_536_000).default(86_400),
    'SECONDS',
    'how long the upload service is believed that a Space has a provider'
  ),
  gatewayUrls: setting(
    list
      .pipe(z.array(directoryUrl).min(1, 'must name at least one gateway'))
      .default([new URL('https://w3s.link/')]),
    'URLS',
    'trustless gateways to read Spaces through, in the order to try them'
  ),
  plcUrl: setting(
    httpUrl.default(new URL('https://plc.directory')),
    'URL',
    'PLC directory'
  ),
  handleResolverUrl: setting(
    httpUrl.optional(),
    'URL',
    "host to ask for handles instead of DNS and the handle's own host"
  ),
  trustedAuthorities: setting(
    list.pipe(z.array(authority)).default([]),
    'LIST',
    'did:web:…=did:key:… of upload services whose logins by email are accepted'
  ),
  allowPrivateNetwork: setting(
    flag.default(false),
    '',
    'go to private and loopback addresses that others name; for local networks only'
  ),
  maxBodySize: setting(
    integer(1024, 64 * 1024 * 1024).default(4 * 1024 * 1024),
    'BYTES',
    'largest request body'
  ),
  spaceRate: setting(
    integer(0, 1_000_000).default(6_000),
    'NUMBER',
    'invocations a minute in one Space; 0 for any number'
  ),
  issuerRate: setting(
    integer(0, 1_000_000).default(1_200),
    'NUMBER',
    'invocations a minute by one agent; 0 for any number'
  ),
  hostRate: setting(
    integer(0, 1_000_000).default(480),
    'NUMBER',
    'requests a minute to one host of accounts, of all processes together; 0 for any number'
  ),
  repoTimeout: setting(
    integer(1, 86_400).default(REPO_TIMEOUT / 1000),
    'SECONDS',
    'how long a host of accounts may take to begin with a repository; some put it together first'
  ),
  leastRate: setting(
    integer(0, 1_000_000_000).default(LEAST_RATE),
    'BYTES',
    'bytes a second, over two minutes, that a host of accounts must send of a repository or a blob: below, the repository is read again later, and the blob is recorded as missing; 0 for any rate'
  ),
  role: setting(
    z.enum(ROLES).default('all'),
    'ROLE',
    'what this process does: api answers requests, scheduler looks for what is due, worker makes backups, all does all; the others share one PostgreSQL'
  ),
  minScheduleInterval: setting(
    integer(1, 86_400).default(RHYTHM_LIMITS.minimum),
    'SECONDS',
    'shortest time between two backups of a schedule'
  ),
  schedulesPerSpace: setting(
    integer(1, 1_000_000).default(1000),
    'NUMBER',
    'schedules that one Space may have'
  ),
  maxBlobSize: setting(
    integer(1, 8 * 1024 ** 3).default(DEFAULT_LIMITS.maxBlobSize),
    'BYTES',
    'largest blob that is backed up'
  ),
  concurrentRuns: setting(
    integer(1, 1000).default(4),
    'NUMBER',
    'backups at the same time; of one host half of them at most, so that others need not wait'
  ),
  concurrentBlobs: setting(
    integer(1, 100).default(DEFAULT_LIMITS.concurrentBlobs),
    'NUMBER',
    'blobs that one backup fetches at the same time'
  ),
  keepRuns: setting(
    integer(1, 36_500).default(90),
    'DAYS',
    'how long runs and their receipts are kept; the last run of each account stays, and the last that made a backup'
  ),
  drainTimeout: setting(
    integer(0, 3600).default(20),
    'SECONDS',
    'how long backups may finish when the service is stopped; the rest is resumed later'
  ),
  logLevel: setting(
    z
      .enum(['fatal', 'error', 'warn', 'info', 'debug', 'silent'])
      .default('info'),
    'LEVEL',
    'fatal, error, warn, info, debug or silent'
  ),
}

export type SettingName = keyof typeof SETTINGS

type Parsed = {
  [Name in SettingName]: z.output<(typeof SETTINGS)[Name]['schema']>
}

/** A service's configuration, checked and complete. */
export interface ServiceConfig extends Omit<
  Parsed,
  'keyFile' | 'clientKeyFile' | 'revocationsUrl'
> {
  keyFile: string
  clientKeyFile: string
  revocationsUrl: URL
}

/** Some values cannot be used; the message has a line for each. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError'
  readonly problems: string[]

  constructor(problems: string[]) {
    super(`the configuration cannot be used:\n  ${problems.join('\n  ')}`)
    this.problems = problems
  }
}

/** Name of the environment variable of a setting. */
export function variableOf(name: SettingName): string {
  return `BLUESKY_BACKUPS_${separated(name, '_').toUpperCase()}`
}

/** Name of the flag of a setting, without dashes before it. */
export function flagOf(name: SettingName): string {
  return separated(name, '-').toLowerCase()
}

/**
 * Reads some of the settings from flags and, where they say nothing, from the
 * environment.
 *
 * @throws {@link ConfigError} with a line for each value that cannot be used
 */
export function readSettings<Name extends SettingName>(
  names: readonly Name[],
  flags: Partial<Record<SettingName, string>>,
  environment: Record<string, string | undefined>
): Pick<Parsed, Name> {
  const problems: string[] = []
  const parsed: Record<string, unknown> = {}
  for (const name of names) {
    const [source, given] = sourcesOf(name, flags, environment).find(
      ([, value]) => value !== undefined
    ) ?? [name, undefined]
    const result = SETTINGS[name].schema.safeParse(given)
    if (result.success) {
      parsed[name] = result.data
      continue
    }
    for (const issue of result.error.issues) {
      problems.push(`${source}: ${issue.message}`)
    }
  }
  if (problems.length > 0) throw new ConfigError(problems)
  return parsed as Pick<Parsed, Name>
}

/**
 * Reads the configuration of a service from flags and the environment.
 *
 * @throws {@link ConfigError} with a line for each value that cannot be used
 */
export function readConfig(
  flags: Partial<Record<SettingName, string>>,
  environment: Record<string, string | undefined>
): ServiceConfig {
  const config = readSettings(
    Object.keys(SETTINGS) as SettingName[],
    flags,
    environment
  )
  if (config.role !== 'all' && config.databaseUrl === undefined) {
    throw new ConfigError([
      `--role: ${config.role} is a part of a service whose processes share one PostgreSQL; give its URL by --database-url`,
    ])
  }
  return {
    ...config,
    keyFile: config.keyFile ?? join(config.dataFolder, 'service.key'),
    clientKeyFile:
      config.clientKeyFile ?? join(config.dataFolder, 'client-keys.json'),
    revocationsUrl:
      config.revocationsUrl ??
      new URL('/revocations/', config.uploadServiceUrl),
  }
}

/** Where a setting may come from, the first that gives it first. */
function sourcesOf(
  name: SettingName,
  flags: Partial<Record<SettingName, string>>,
  environment: Record<string, string | undefined>
): [source: string, value: string | undefined][] {
  const variables = [
    variableOf(name),
    ...(name === 'databaseUrl' ? ['DATABASE_URL'] : []),
  ]
  return [
    [`--${flagOf(name)}`, flags[name]],
    // Files of variables leave empty what is not set.
    ...variables.map((variable): [string, string | undefined] => [
      variable,
      environment[variable] || undefined,
    ]),
  ]
}

function setting<T extends z.ZodType>(
  schema: T,
  value: string,
  description: string
) {
  return { schema, value, description }
}

function separated(name: string, separator: string): string {
  return name.replace(/[A-Z]/g, (letter) => `${separator}${letter}`)
}
