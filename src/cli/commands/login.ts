import type { Command } from 'commander'
import type { EmailAddress } from '@storacha/client/types'
import { agentCommand, type CommandContext } from '../command.ts'
import { NotLoggedInError, UsageError } from '../errors.ts'
import { formatFields, parseDuration } from '../format.ts'
import { printLine } from '../io.ts'
import { askUploadService } from '../upload-service.ts'

/** `login`: lets an account's owner confirm that this agent acts for it. */
export function createLoginCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('login')
    .description(
      'log in to an account at the upload service, by a link in a mail; again to renew what the agent may do'
    )
    .argument('<email>', 'address of the account')
    .option(
      '--timeout <DURATION>',
      'how long to wait for the link to be clicked',
      '15m'
    )
  agentCommand(
    command,
    context,
    'bluesky-backups login alice@example.com',
    async ({ session, flags, io }, email: string) => {
      if (!isEmail(email)) {
        throw new UsageError(`"${email}" is not an email address`)
      }
      const seconds = parseDuration(flags['timeout'] as string)
      if (seconds === undefined) {
        throw new UsageError(
          '--timeout: give a number and a unit, as in 90s or 15m'
        )
      }
      const { client } = session
      const timeout = AbortSignal.timeout(seconds * 1000)
      const known = Object.values(client.accounts()).some(
        (account) => account.toEmail() === email
      )
      if (!known) {
        printLine(
          io.stderr,
          `waiting for ${email} to click the link in the mail that ${session.config.uploadServiceUrl.origin} sends`
        )
      }
      const account = await askUploadService(
        session,
        'logging in',
        io.signal,
        async () => {
          try {
            return await client.login(email, {
              signal: AbortSignal.any([timeout, io.signal]),
            })
          } catch (error) {
            if (!timeout.aborted) throw error
            return undefined
          }
        }
      )
      if (!account) {
        throw new NotLoggedInError(
          `nobody clicked the link in time; run \`bluesky-backups login ${email}\` again for a new one`
        )
      }
      // Spaces that were shared with the account since.
      await askUploadService(session, 'fetching Spaces', io.signal, () =>
        client.capability.access.claim()
      )
      const spaces = client.spaces().length
      return {
        json: { agent: client.did(), account: account.did(), email, spaces },
        text: `logged in as ${email}`,
      }
    }
  )
}

/** `whoami`: the agent, its accounts and its Space. */
export function createWhoamiCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('whoami')
    .description(
      'show the agent, the accounts it is logged in to and its Space'
    )
  agentCommand(
    command,
    context,
    'bluesky-backups whoami --json',
    async ({ session: { client, config } }) => {
      const accounts = Object.values(client.accounts()).map((account) => ({
        did: account.did(),
        email: account.toEmail(),
      }))
      const current = client.currentSpace()
      const space = current && { did: current.did(), name: current.name }
      return {
        json: {
          agent: client.did(),
          home: config.home,
          accounts,
          space: space ?? null,
        },
        text: formatFields([
          ['agent', client.did()],
          ['home', config.home],
          [
            'accounts',
            accounts.map(({ email }) => email).join(', ') ||
              'none; log in with `bluesky-backups login EMAIL`',
          ],
          ['space', space ? `${space.name}  ${space.did}`.trim() : 'none'],
        ]),
      }
    }
  )
}

function isEmail(text: string): text is EmailAddress {
  return /^[^\s@]+@[^\s@]+$/.test(text)
}
