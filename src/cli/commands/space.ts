import { authorizeContentServe, type Client } from '@storacha/client'
import type { Account } from '@storacha/client/account'
import { gatewayServiceConnection } from '@storacha/client/service'
import type {
  ConnectionView,
  ContentServeService,
} from '@storacha/client/types'
import type { Command } from 'commander'
import { agentCommand, type CommandContext } from '../command.ts'
import { NoSpaceError, NotLoggedInError, UsageError } from '../errors.ts'
import { formatTable, printable } from '../format.ts'
import type { Session, SpaceDID } from '../session.ts'
import { askUploadService } from '../upload-service.ts'

/** The upload service whose gateway serves only Spaces that it may. */
const HOSTED = 'did:web:up.storacha.network'

/** `space`: makes and chooses the Space that backups go to. */
export function createSpaceCommand(
  program: Command,
  context: CommandContext
): void {
  const space = program
    .command('space')
    .description('make and choose the Space that backups go to')

  agentCommand(
    space
      .command('create')
      .description('make a Space, have an account pay for it, and choose it')
      .argument('<name>', 'what to call it')
      .option(
        '--account <EMAIL>',
        'account that owns it and pays for it, if the agent is logged in to several'
      ),
    context,
    'bluesky-backups space create bluesky',
    async ({ session, flags, io }, name: string) => {
      const account = chooseAccount(
        session.client,
        flags['account'] as string | undefined
      )
      const did = await createSpace(session, account, name, io.signal)
      return {
        json: { did, name, account: account.did() },
        text: [
          `made the Space ${name}  ${did}`,
          `Its own key is not kept. The account ${account.toEmail()} has all power over it: whoever logs in to that account has the Space.`,
        ].join('\n'),
      }
    }
  )

  agentCommand(
    space
      .command('use')
      .description('choose the Space that backups go to')
      .argument('<space>', 'DID or name'),
    context,
    'bluesky-backups space use bluesky',
    async ({ session: { client } }, wanted: string) => {
      const found = client
        .spaces()
        .filter((space) => space.did() === wanted || space.name === wanted)
      const [chosen, ...others] = found
      if (!chosen) {
        throw new NoSpaceError(
          `this agent has no Space "${wanted}"; \`bluesky-backups space ls\` shows those it has, and \`bluesky-backups login EMAIL\` fetches new ones`
        )
      }
      if (others.length > 0) {
        throw new UsageError(
          `several Spaces are called "${wanted}"; choose by DID: ${found.map((space) => space.did()).join(', ')}`
        )
      }
      await client.setCurrentSpace(chosen.did())
      return {
        json: { did: chosen.did(), name: chosen.name },
        text: `chose the Space ${printable(chosen.name)}  ${chosen.did()}`,
      }
    }
  )

  agentCommand(
    space.command('ls').description('list the Spaces of this agent'),
    context,
    'bluesky-backups space ls',
    async ({ session: { client } }) => {
      const current = client.currentSpace()?.did()
      const spaces = client.spaces().map((space) => ({
        did: space.did(),
        name: space.name,
        current: space.did() === current,
      }))
      return {
        json: { spaces },
        text:
          spaces.length === 0
            ? 'no Spaces yet; make one with `bluesky-backups space create NAME`'
            : formatTable(
                ['', 'NAME', 'SPACE'],
                spaces.map(({ did, name, current }) => [
                  current ? '*' : '',
                  printable(name),
                  did,
                ])
              ),
      }
    }
  )
}

function chooseAccount(client: Client, wanted: string | undefined): Account {
  const accounts = Object.values(client.accounts())
  const named = accounts.filter(
    (account) =>
      wanted === undefined ||
      account.did() === wanted ||
      account.toEmail() === wanted
  )
  const [chosen, ...others] = named
  if (!chosen) {
    throw new NotLoggedInError(
      `the agent is not logged in${wanted === undefined ? '' : ` to ${wanted}`}; run \`bluesky-backups login ${wanted ?? 'EMAIL'}\``
    )
  }
  if (others.length > 0) {
    throw new UsageError(
      `the agent is logged in to several accounts; say which pays with --account: ${named.map((account) => account.toEmail()).join(', ')}`
    )
  }
  return chosen
}

/**
 * Makes a Space. All or nothing: it is saved when the account pays for it and
 * has all power over it, which the Space's own key gave away before it is gone.
 */
async function createSpace(
  session: Session,
  account: Account,
  name: string,
  signal: AbortSignal
): Promise<SpaceDID> {
  const { client, config } = session
  const space = await client.agent.createSpace(name)
  // The client's own list of abilities lacks those of the clock and of backups.
  const authority = await space.createAuthorization(client.agent, {
    access: { '*': {} },
  })
  const recovery = await space.createRecovery(account.did())
  await askUploadService(
    session,
    `having ${account.toEmail()} pay for the Space`,
    signal,
    () => account.provision(space.did())
  )
  await askUploadService(
    session,
    `giving the Space to ${account.toEmail()}`,
    signal,
    () =>
      client.capability.access.delegate({
        space: space.did(),
        delegations: [recovery],
        proofs: [authority],
      })
  )
  await client.addSpace(authority)
  await client.setCurrentSpace(space.did())
  if (config.uploadServiceDid === HOSTED) {
    try {
      await authorizeContentServe(
        client,
        space,
        gatewayServiceConnection() as ConnectionView<ContentServeService>
      )
    } catch (error) {
      session.warn(
        `the gateway of ${HOSTED} was not allowed to serve the Space: ${error instanceof Error ? error.message : String(error)}`
      )
    }
  }
  return space.did()
}
