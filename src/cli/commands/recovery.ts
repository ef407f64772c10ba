import { open } from 'node:fs/promises'
import type { Command } from 'commander'
import { recordChange } from '../../backup/index.ts'
import {
  createRecoveryIdentity,
  InvalidRecipientError,
  parseRecipient,
  setRecovery,
} from '../../space/index.ts'
import { addCommonOptions, agentCommand, printResult } from '../command.ts'
import type { CommandContext } from '../command.ts'
import { UsageError } from '../errors.ts'
import type { Flags } from '../options.ts'
import type { Session } from '../session.ts'
import { findAccount, viewSpace } from '../target.ts'
import { openRecord } from '../writer.ts'

/** `recovery`: opening private parts when all agents are lost. */
export function createRecoveryCommand(
  program: Command,
  context: CommandContext
): void {
  const recovery = program
    .command('recovery')
    .description(
      'a key that you keep, which opens private parts when all agents are lost'
    )
  createCreateCommand(recovery, context)
  agentCommand<[string, string]>(
    recovery
      .command('set')
      .description(
        'seal private parts of an account for a recovery key too, from the next backup on'
      )
      .argument('<account>', 'handle or DID')
      .argument('<recipient>', 'age1…, as `recovery create` prints it'),
    context,
    'bluesky-backups recovery set alice.bsky.social age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p',
    async ({ session, io }, word, text) => {
      const recipient = readRecipient(text)
      const account = await change(session, io.signal, word, recipient)
      return {
        json: { account, recipient },
        text: `private parts of ${account} are sealed for ${recipient} too, from the next backup on; backups from before stay as they are`,
      }
    }
  )
  agentCommand<[string]>(
    recovery
      .command('unset')
      .description('seal private parts of an account for agents alone again')
      .argument('<account>', 'handle or DID'),
    context,
    'bluesky-backups recovery unset alice.bsky.social',
    async ({ session, io }, word) => {
      const account = await change(session, io.signal, word, undefined)
      return {
        json: { account, recipient: null },
        text: `private parts of ${account} are sealed for its agents alone, from the next backup that has new ones; what was sealed for a recovery key stays so`,
      }
    }
  )
}

function createCreateCommand(recovery: Command, { io }: CommandContext): void {
  const command = recovery
    .command('create')
    .description(
      'make a recovery key: a file for you to keep, and what private parts are sealed for'
    )
    .requiredOption('--out <FILE>', 'new file that the key is written to')
  addCommonOptions(
    command,
    'bluesky-backups recovery create --out ./bluesky-recovery.txt'
  )
  command.action(async () => {
    const flags = command.opts<Flags>()
    const file = flags['out'] as string
    const { identity, recipient } = await createRecoveryIdentity()
    await writeNew(
      file,
      `# recovery key of Bluesky Backups, made ${new Date().toISOString()}\n# public key: ${recipient}\n${identity}\n`
    )
    printResult(io, flags, {
      json: { recipient, file },
      text: `${recipient}\nkeep ${file} where you will find it and nobody else does; \`bluesky-backups recovery set ACCOUNT ${recipient}\` uses it`,
    })
  })
}

/** Writes a file for its owner only, and never over another one. */
async function writeNew(path: string, text: string): Promise<void> {
  let file
  try {
    file = await open(path, 'wx', 0o600)
  } catch (cause) {
    throw new UsageError(
      (cause as NodeJS.ErrnoException).code === 'EEXIST'
        ? `--out: there is a file ${path} already; name a new one`
        : `--out: the file ${path} cannot be made; name one in a folder that is there`,
      { cause }
    )
  }
  try {
    await file.writeFile(text)
    await file.sync()
  } finally {
    await file.close()
  }
}

function readRecipient(text: string): string {
  try {
    return parseRecipient(text)
  } catch (error) {
    if (!(error instanceof InvalidRecipientError)) throw error
    throw new UsageError(error.message, { cause: error })
  }
}

async function change(
  session: Session,
  signal: AbortSignal,
  word: string,
  recipient: string | undefined
): Promise<string> {
  const account = await findAccount(session, await viewSpace(session), word)
  await recordChange(
    await openRecord(session, signal),
    (fetcher, state) =>
      setRecovery(fetcher, state, {
        account,
        ...(recipient === undefined ? {} : { recipient }),
      }),
    { signal }
  )
  return account
}
