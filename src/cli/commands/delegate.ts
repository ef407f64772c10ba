import { writeFile } from 'node:fs/promises'
import { DID, delegate } from '@ucanto/core'
import type { Delegation, Principal } from '@ucanto/interface'
import type { Command } from 'commander'
import { BACKUP_ABILITIES } from '../../capabilities/index.ts'
import { expirationOf, proofsFor } from '../authority.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { UsageError } from '../errors.ts'
import { formatExpiration, formatFields } from '../format.ts'
import { encodeText } from '../given-delegation.ts'
import { printLine } from '../io.ts'
import { createIssuedDelegations, issuedFolder } from '../issued.ts'
import { readExpiration } from '../options.ts'
import type { Session, SpaceDID } from '../session.ts'

/** What somebody needs to have backups made. */
const RUN_ABILITIES = ['backup/run', 'backup/status']

const ABILITY = /^(\*|[a-z0-9-]+(\/[a-z0-9-]+)*(\/\*)?)$/

/** `delegate`: lets a service, or another agent, act in the Space. */
export function createDelegateCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('delegate')
    .description(
      'let a backup service act in the Space: no more than it needs, and not for ever'
    )
    .argument(
      '[audience]',
      'DID of who may act; the agent of --service, if left out'
    )
    .option(
      '--can <ABILITY>',
      `what to allow, as often as need be (default: ${BACKUP_ABILITIES.join(', ')})`,
      (ability: string, abilities: string[] = []) => [...abilities, ability]
    )
    .option('--run', `also allow ${RUN_ABILITIES.join(' and ')}`)
    .option('--account <DID>', 'limit backup/run to this account')
    .option(
      '--expires-in <DURATION>',
      'for how long, as in 24h or 365d, or never',
      '365d'
    )
    .option('-o, --output <FILE>', 'write the delegation to a file, as a CAR')
    .option(
      '--base64',
      'write it as one line of text; what is printed without --output'
    )
  agentCommand(
    command,
    context,
    'bluesky-backups delegate --service https://backups.example -o backups.ucan\nbluesky-backups delegate did:key:z6Mk… --can clock/head --expires-in 30d',
    async ({ session, flags, io }, audience: string | undefined) => {
      const delegation = await createDelegation(session, {
        audience: audience ?? (await session.service()).info.agent,
        abilities: readAbilities(flags),
        account: flags['account'] as string | undefined,
        expiration: readExpiration(flags['expiresIn'] as string),
      })
      await createIssuedDelegations(issuedFolder(session)).keep(delegation)
      const archive = await delegation.archive()
      if (archive.error) throw archive.error
      const text = encodeText(archive.ok)
      const file = flags['output'] as string | undefined
      if (file !== undefined) {
        await writeFile(file, flags['base64'] ? `${text}\n` : archive.ok)
      }
      const { capabilities } = delegation
      const expiration = expirationOf(delegation)
      const json = {
        cid: delegation.cid.toString(),
        audience: delegation.audience.did(),
        space: session.space(),
        capabilities,
        expiration: Number.isFinite(expiration)
          ? new Date(expiration * 1000).toISOString()
          : null,
        ...(file === undefined ? { delegation: text } : { file }),
      }
      const summary = formatFields([
        ['audience', json.audience],
        ['space', json.space],
        ['can', capabilities.map(({ can }) => can).join(', ')],
        ['account', flags['account'] as string | undefined],
        ['expires', formatExpiration(expiration)],
        ['file', file],
      ])
      if (file !== undefined) return { json, text: summary }
      if (!flags['json']) printLine(io.stderr, summary)
      return { json, text }
    }
  )
}

async function createDelegation(
  session: Session,
  {
    audience,
    abilities,
    account,
    expiration,
  }: {
    audience: string
    abilities: string[]
    account: string | undefined
    expiration: number
  }
): Promise<Delegation> {
  const space: SpaceDID = session.space()
  return delegate({
    issuer: session.client.agent.issuer,
    audience: parseDID(audience),
    capabilities: abilities.map((can) => ({
      can,
      with: space,
      ...(can === 'backup/run' && account !== undefined
        ? { nb: { account } }
        : {}),
    })) as never,
    proofs: proofsFor(session.client, space, abilities),
    expiration,
  })
}

function readAbilities(flags: Record<string, unknown>): string[] {
  const given = flags['can'] as string[] | undefined
  const abilities = new Set([
    ...(given ?? BACKUP_ABILITIES),
    ...(flags['run'] ? RUN_ABILITIES : []),
  ])
  for (const ability of abilities) {
    if (!ABILITY.test(ability)) {
      throw new UsageError(
        `--can: "${ability}" is not an ability; give one as in clock/head`
      )
    }
  }
  const account = flags['account'] as string | undefined
  if (account !== undefined) {
    if (!/^did:(plc|web):\S+$/.test(account)) {
      throw new UsageError(
        '--account: give the DID of the account, a did:plc or did:web'
      )
    }
    if (!abilities.has('backup/run')) {
      throw new UsageError(
        '--account limits backup/run, which is not among what is allowed; add --run'
      )
    }
  }
  return [...abilities]
}

function parseDID(text: string): Principal {
  if (/^did:[a-z0-9]+:\S+$/.test(text)) {
    try {
      return DID.parse(text)
    } catch {
      // A did:key may still be no key.
    }
  }
  throw new UsageError(
    `"${text}" is not a DID; give the did:key of who may act`
  )
}
