import { PACKAGE } from '../../node/index.ts'
import type { Command } from 'commander'
import {
  addCommonOptions,
  printResult,
  type CommandContext,
} from '../command.ts'
import { MissingPackagesError, UsageError } from '../errors.ts'
import { printLine } from '../io.ts'
import type { Flags } from '../options.ts'
import { interrupted } from './serve.ts'

/** What the network is made of; who only backs accounts up does without. */
const PACKAGES = [
  '@atproto/pds',
  '@did-plc/server',
  '@storacha/upload-api',
  '@web3-storage/sigv4',
] as const

/** `network`: a PLC directory, a PDS and an upload service on this machine. */
export function createNetworkCommand(
  program: Command,
  { io }: CommandContext
): void {
  const command = program
    .command('network')
    .description(
      'run a PLC directory, a PDS and an upload service on this machine, for tests, and print the environment that leads to them'
    )
    .option('--plc-port <NUMBER>', 'port of the PLC directory (default: any)')
    .option('--pds-port <NUMBER>', 'port of the PDS (default: any)')
    .option(
      '--storacha-port <NUMBER>',
      'port of the upload service (default: any)'
    )
    .option(
      '--account <HANDLE:PASSWORD>',
      'account to create at the PDS, as often as need be; handles end in .test',
      (account: string, accounts: string[] = []) => [...accounts, account]
    )
  addCommonOptions(
    command,
    'bluesky-backups network --account alice.test:secret > network.env'
  )
  command.action(async () => {
    const flags = command.opts<Flags>()
    const accounts = ((flags['account'] as string[]) ?? []).map(readAccount)
    const options = {
      plc: readPort(flags, 'plcPort', '--plc-port'),
      pds: readPort(flags, 'pdsPort', '--pds-port'),
      storacha: readPort(flags, 'storachaPort', '--storacha-port'),
    }
    const startNetwork = await loadNetwork()
    await using network = await startNetwork(options)
    const created: { handle: string; did: string }[] = []
    for (const { handle, password } of accounts) {
      const { did } = await network.pds.createAccount({ handle, password })
      created.push({ handle, did })
    }
    const { environment } = network
    printResult(io, flags, {
      json: { environment, accounts: created },
      text: [
        ...Object.entries(environment).map(
          ([name, value]) => `export ${name}=${quoted(value)}`
        ),
        ...created.map(({ handle, did }) => `# ${handle} is ${did}`),
      ].join('\n'),
    })
    printLine(io.stderr, 'the network runs until Ctrl-C')
    await interrupted(io.signal)
  })
}

async function loadNetwork() {
  try {
    const { startNetwork } = await import('../../../test/network/index.ts')
    return startNetwork
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') {
      throw cause
    }
    const versions = PACKAGE.devDependencies
    throw new MissingPackagesError(
      `the network is made of packages that are not installed; run: npm install ${PACKAGES.map((name) => `${name}@${versions[name]}`).join(' ')}`,
      { cause }
    )
  }
}

function readPort(flags: Flags, name: string, flag: string): { port?: number } {
  const text = flags[name] as string | undefined
  if (text === undefined) return {}
  const port = Number(text)
  if (!/^\d+$/.test(text) || port < 1 || port > 65535) {
    throw new UsageError(`${flag}: must be a port, from 1 to 65535`)
  }
  return { port }
}

function readAccount(text: string): { handle: string; password: string } {
  const [, handle, password] = /^([a-z0-9-]+\.test):(.+)$/.exec(text) ?? []
  if (handle === undefined || password === undefined) {
    throw new UsageError(
      '--account: give a handle that ends in .test, a colon and a password, as in alice.test:secret'
    )
  }
  return { handle, password }
}

function quoted(value: string): string {
  return /^[\w:/.,=%-]*$/.test(value)
    ? value
    : `'${value.replaceAll("'", "'\\''")}'`
}
