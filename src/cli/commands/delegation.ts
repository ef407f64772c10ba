import { readFile } from 'node:fs/promises'
import type { Delegation as DelegationView } from '@ucanto/interface'
import type { Command } from 'commander'
import { revoke } from '../../client/revocation.ts'
import { expirationOf } from '../authority.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { UsageError } from '../errors.ts'
import { formatExpiration, formatTable } from '../format.ts'
import { parseDelegation } from '../given-delegation.ts'
import { createIssuedDelegations, issuedFolder } from '../issued.ts'
import type { Session } from '../session.ts'

/** Characters of a DID or CID in a table. */
const SHORT = 20

/** What came of a revocation at one place. */
interface Told {
  place: string
  url: string
  revoked: boolean
  error?: { name: string; message: string }
}

/** `delegation`: what the agent has allowed others, and taking it back. */
export function createDelegationCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('delegation')
    .description('what this agent has allowed others, and taking it back')
  agentCommand(
    command
      .command('ls')
      .description('list the delegations that this agent has given'),
    context,
    'bluesky-backups delegation ls',
    async ({ session }) => {
      const issued = await createIssuedDelegations(issuedFolder(session)).list()
      const delegations = issued.map(({ delegation, revoked }) => ({
        cid: delegation.cid.toString(),
        audience: delegation.audience.did(),
        space: delegation.capabilities[0].with,
        can: delegation.capabilities.map(({ can }) => can),
        expiration: formatExpiration(expirationOf(delegation)),
        state: revoked
          ? 'revoked'
          : expirationOf(delegation) * 1000 <= Date.now()
            ? 'expired'
            : 'valid',
      }))
      return {
        json: { delegations },
        text:
          delegations.length === 0
            ? 'none yet; `bluesky-backups delegate` gives one'
            : formatTable(
                ['delegation', 'to', 'can', 'until', 'state'],
                delegations.map(({ cid, audience, can, expiration, state }) => [
                  cid,
                  `${audience.slice(0, SHORT)}…`,
                  can.join('\n'),
                  expiration,
                  state,
                ])
              ),
      }
    }
  )
  agentCommand<[string]>(
    command
      .command('revoke')
      .description(
        'take a delegation back, at the upload service and at --service: at once and for ever'
      )
      .argument(
        '<delegation>',
        'its CID, as `delegation ls` shows it, or a file with it'
      ),
    context,
    'bluesky-backups delegation revoke bafyrei… --service https://backups.example',
    async ({ session }, word) => {
      const issued = createIssuedDelegations(issuedFolder(session))
      const delegation = await find(word, await issued.list())
      const told = await revokeEverywhere(session, delegation)
      if (told.some(({ revoked }) => revoked)) {
        await issued.markRevoked(delegation)
      }
      const failed = told.some(({ revoked }) => !revoked)
      return {
        json: { cid: delegation.cid.toString(), told },
        text: told
          .map(({ place, url, error }) =>
            error
              ? `not revoked at the ${place} ${url}: ${error.name}: ${error.message}`
              : `revoked at the ${place} ${url}`
          )
          .join('\n'),
        ...(failed ? { failed } : {}),
      }
    }
  )
}

async function find(
  word: string,
  issued: { delegation: DelegationView }[]
): Promise<DelegationView> {
  const known = issued.find(({ delegation }) => `${delegation.cid}` === word)
  if (known) return known.delegation
  let bytes: Uint8Array
  try {
    bytes = await readFile(word)
  } catch {
    throw new UsageError(
      `"${word}" is neither a delegation that this agent keeps nor a file; \`bluesky-backups delegation ls\` lists those it keeps`
    )
  }
  const delegation = await parseDelegation(bytes)
  if (delegation) return delegation
  throw new UsageError(
    `the file ${word} does not hold a delegation, neither as a CAR nor as text`
  )
}

/** Each place is told, whatever another says. */
async function revokeEverywhere(
  session: Session,
  delegation: DelegationView
): Promise<Told[]> {
  const { config, client } = session
  const issuer = client.agent.issuer
  const places = [
    {
      place: 'upload service',
      url: config.uploadServiceUrl.href,
      connect: async () => client.agent.connection,
    },
    ...(config.serviceUrl
      ? [
          {
            place: 'backup service',
            url: config.serviceUrl.href,
            connect: async () => (await session.service()).connection,
          },
        ]
      : []),
  ]
  return Promise.all(
    places.map(async ({ place, url, connect }): Promise<Told> => {
      try {
        const { error } = await revoke({ issuer }, delegation, {
          connection: (await connect()) as never,
          nonce: crypto.randomUUID(),
        })
        if (!error) return { place, url, revoked: true }
        const { name, message } = error
        return { place, url, revoked: false, error: { name, message } }
      } catch (cause) {
        const { name, message } = cause as Error
        return { place, url, revoked: false, error: { name, message } }
      }
    })
  )
}
