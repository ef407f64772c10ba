import type { Command } from 'commander'
import { verifyBackup } from '../../backup/index.ts'
import { signingKeysIn } from '../../atproto/index.ts'
import type { Backup as Protocol } from '../../capabilities/index.ts'
import {
  entries,
  isPlain,
  isSealed,
  listBackups,
  PRIVATE_PARTS,
  readBackup,
  type Backup,
  type BlockFetcher,
  type PrivateParts,
} from '../../space/index.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { UsageError } from '../errors.ts'
import { exportBackup } from '../export.ts'
import {
  formatBytes,
  formatCount,
  formatFields,
  formatSeconds,
  formatTable,
  printable,
} from '../format.ts'
import { printLine } from '../io.ts'
import { addSettings, LIMIT_SETTINGS, readLimit } from '../options.ts'
import { INCLUDE_HELP, readParts } from '../parts.ts'
import {
  createPartOpener,
  describeParts,
  nameOutcome,
  readIdentityFile,
} from '../private-parts.ts'
import { countSeen, createProgress, describeProgress } from '../progress.ts'
import { followRun, runHere, startRun } from '../run.ts'
import {
  findAccount,
  handleIn,
  normalizeAccount,
  openTarget,
  viewSpace,
} from '../target.ts'

const TIME_HELP =
  'time as `backup ls` shows it, or as much of it as tells one backup from the others; or latest'

/** `backup`: makes backups, and reads them back out of the Space. */
export function createBackupCommand(
  program: Command,
  context: CommandContext
): void {
  const backup = program
    .command('backup')
    .description('make backups, and read them back out of the Space')
  createRunCommand(backup, context)
  createListCommand(backup, context)
  createShowCommand(backup, context)
  createExportCommand(backup, context)
  createVerifyCommand(backup, context)
}

function createRunCommand(backup: Command, context: CommandContext): void {
  const command = backup
    .command('run')
    .description('back an account up, by the service or by this agent itself')
    .argument('<account>', 'handle or DID')
    .option('--here', 'do it in this process, without asking the service')
    .option('--detach', 'do not wait until the service is done')
    .option('--include <PARTS>', INCLUDE_HELP)
    .option(
      '--plain',
      'with --here: do not seal private parts; everybody who knows the Space can read them'
    )
    .optionsGroup('Limits, with --here:')
  addSettings(command, LIMIT_SETTINGS)
  agentCommand(
    command,
    context,
    'bluesky-backups backup run alice.bsky.social --service https://backups.example\nbluesky-backups backup run alice.bsky.social --here\nbluesky-backups backup run alice.bsky.social --include blobs,preferences,conversations',
    async ({ session, flags, io }, word: string) => {
      const account = normalizeAccount(word)
      if (flags['here'] && flags['detach']) {
        throw new UsageError(
          '--detach is for backups by the service; leave out --here or --detach'
        )
      }
      if (!flags['here'] && !session.config.serviceUrl) {
        throw new UsageError(
          'no backup service is set; name one with --service URL, or back up in this process with --here'
        )
      }
      if (flags['plain'] && !flags['here']) {
        throw new UsageError(
          '--plain is for backups with --here: the service always seals private parts'
        )
      }
      if (flags['plain']) {
        session.warn(
          'PRIVATE PARTS ARE NOT SEALED: everybody who knows the Space can read your preferences, mutes, drafts and whatever else is included, now and for as long as the Space has them'
        )
      }
      const include = readParts(flags['include'] as string | undefined)
      const options = { io, flags, account, include }
      const display = createProgress(io)
      const onProgress = (progress: Readonly<Protocol.RunProgress>) => {
        display.update(
          describeProgress(progress),
          countSeen(progress),
          progress.blobs
        )
      }
      let advice =
        'what was uploaded is kept; the same command goes on from there'
      try {
        if (flags['here']) {
          const outcome = await runHere(session, { ...options, onProgress })
          return { json: { outcome }, text: describeOutcome(outcome) }
        }
        const run = await startRun(session, options)
        advice = `the run goes on at the service; look at it with \`bluesky-backups status --service ${session.config.serviceUrl?.href}\``
        if (flags['detach']) {
          return {
            json: { run: run.toString() },
            text: `${run.toString()}\n${advice}`,
          }
        }
        const outcome = await followRun(session, run, { io, onProgress })
        return {
          json: { run: run.toString(), outcome },
          text: describeOutcome(outcome),
        }
      } catch (error) {
        display.end()
        if (io.signal.aborted) printLine(io.stderr, advice)
        throw error
      } finally {
        display.end()
      }
    }
  )
}

function createListCommand(backup: Command, context: CommandContext): void {
  const command = backup
    .command('ls')
    .description('list backups, the latest first')
    .argument('[account]', 'handle or DID; all accounts, if left out')
    .option('--limit <NUMBER>', 'backups of each account, at most', '20')
  agentCommand(
    command,
    context,
    'bluesky-backups backup ls alice.bsky.social --limit 5',
    async ({ session, flags }, account: string | undefined) => {
      const limit = readLimit(flags['limit'] as string)
      const view = await viewSpace(session)
      const accounts =
        account === undefined
          ? view.accounts
          : [await findAccount(session, view, account)]
      const backups: {
        account: string
        timestamp: string
        backup: string
        rev: string
        parts: string[]
        missing: number
      }[] = []
      for (const did of accounts) {
        const listed = listBackups(view.blocks, view.state, did, {
          reverse: true,
          limit,
        })
        for await (const { timestamp, backup } of listed) {
          const value = await readBackup(view.blocks, backup)
          backups.push({
            account: did,
            timestamp,
            backup: backup.toString(),
            rev: value.rev,
            parts: partsOf(value),
            missing: await countMissing(view.blocks, value),
          })
        }
      }
      return {
        json: { space: session.space(), backups },
        text:
          backups.length === 0
            ? 'no backups yet; make one with `bluesky-backups backup run HANDLE`'
            : formatTable(
                ['TIME', 'ACCOUNT', 'REVISION', 'PARTS', 'MISSING BLOBS'],
                backups.map((each) => [
                  each.timestamp,
                  each.account,
                  each.rev,
                  each.parts.join(', '),
                  each.missing === 0 ? '' : String(each.missing),
                ])
              ),
      }
    }
  )
}

function createShowCommand(backup: Command, context: CommandContext): void {
  const command = backup
    .command('show')
    .description('show what one backup has')
    .argument('[account]', 'handle or DID; the only one, if left out')
    .argument('[time]', TIME_HELP)
  agentCommand(
    command,
    context,
    'bluesky-backups backup show alice.bsky.social latest',
    async ({ session }, ...words: (string | undefined)[]) => {
      const { backup, timestamp } = await openTarget(session, words)
      const { value } = backup
      const handle = handleIn(await backup.document())
      const missing: {
        cid: string
        reason: string
        detail: string
        tried: string
      }[] = []
      for await (const [cid, { reason, detail, tried }] of backup.missing()) {
        missing.push({
          cid,
          reason,
          detail,
          tried: new Date(tried).toISOString(),
        })
      }
      let blobs = 0
      for await (const _ of backup.blobs()) blobs++
      const json = {
        account: value.account,
        handle: handle ?? null,
        timestamp,
        backup: backup.link.toString(),
        rev: value.rev,
        commit: value.repo.toString(),
        signature: value.signature,
        parts: partsOf(value),
        private: value.private ? privateJSON(value.private) : null,
        blobs,
        missing,
      }
      const fields = formatFields([
        ['account', value.account],
        ['handle', handle === undefined ? undefined : printable(handle)],
        ['time', timestamp],
        ['backup', json.backup],
        ['revision', value.rev],
        ['commit', json.commit],
        [
          'signature',
          value.signature === 'current'
            ? "by the account's key"
            : 'by a key that the account used before',
        ],
        ['parts', json.parts.join(', ')],
        ['blobs', blobs.toLocaleString('en-US')],
        ['missing blobs', missing.length.toLocaleString('en-US')],
        ...describeParts(value.private, value.account),
      ])
      return {
        json,
        text:
          missing.length === 0
            ? fields
            : `${fields}\n\n${formatTable(
                ['MISSING BLOB', 'REASON', 'LAST TRIED', 'THE HOST SAID'],
                missing.map(({ cid, reason, tried, detail }) => [
                  cid,
                  reason,
                  tried,
                  printable(detail),
                ])
              )}`,
      }
    }
  )
}

function createExportCommand(backup: Command, context: CommandContext): void {
  const command = backup
    .command('export')
    .description(
      'write a backup into a folder: the repository as a CAR, blobs, DID document, private parts that this agent can open, and a manifest'
    )
    .argument('[account]', 'handle or DID; the only one, if left out')
    .argument('[time]', TIME_HELP)
    .requiredOption('--out <FOLDER>', 'folder to write to')
    .option('--force', 'write into a folder that is not empty')
    .option(
      '--identity-file <FILE>',
      'recovery key to open private parts with, where this agent cannot'
    )
  agentCommand(
    command,
    context,
    'bluesky-backups backup export alice.bsky.social latest --out ./alice',
    async ({ session, flags, io }, ...words: (string | undefined)[]) => {
      const folder = flags['out'] as string
      const identities = await readIdentityFile(
        flags['identityFile'] as string | undefined
      )
      const { backup, timestamp, view } = await openTarget(session, words)
      const display = createProgress(io)
      try {
        const manifest = await exportBackup(backup, folder, {
          timestamp,
          parts: createPartOpener(session, backup, {
            view,
            timestamp,
            identities,
          }),
          force: flags['force'] === true,
          signal: io.signal,
          onProgress: ({ records, repoBytes, blobs, blobBytes }) =>
            display.update(
              `writing ${formatCount(records, 'record')}, ${formatCount(blobs, 'blob')}, ${formatBytes(repoBytes + blobBytes)}`,
              0,
              0
            ),
        })
        const {
          repo,
          records,
          blobs,
          missing,
          unreadable,
          private: parts,
        } = manifest
        const size = blobs.reduce((sum, blob) => sum + blob.size, 0)
        return {
          failed: unreadable.length > 0,
          json: {
            folder,
            account: manifest.account,
            timestamp,
            repo,
            records,
            blobs: blobs.length,
            blobBytes: size,
            missing: missing.length,
            private: parts,
            unreadable,
          },
          text: [
            `exported the backup of ${manifest.account} from ${timestamp} to ${folder}`,
            `${formatCount(records, 'record')} in ${repo.file} (${formatBytes(repo.bytes)}), ${formatCount(blobs.length, 'blob')} (${formatBytes(size)}), ${formatCount(missing.length, 'blob')} missing from the backup`,
            ...parts.map(({ part, file, bytes, message, outcome }) =>
              file
                ? `${part} in ${file} (${formatBytes(bytes ?? 0)})`
                : `${part} is not written: ${printable(message ?? nameOutcome(outcome))}`
            ),
            ...unreadable.map(
              ({ cid, message }) => `unreadable: ${cid}: ${printable(message)}`
            ),
          ].join('\n'),
        }
      } finally {
        display.end()
      }
    }
  )
}

function createVerifyCommand(backup: Command, context: CommandContext): void {
  const command = backup
    .command('verify')
    .description(
      'read all of a backup and check it: signature, tree, records and blobs'
    )
    .argument('[account]', 'handle or DID; the only one, if left out')
    .argument('[time]', TIME_HELP)
  agentCommand(
    command,
    context,
    'bluesky-backups backup verify alice.bsky.social latest',
    async ({ session, io }, ...words: (string | undefined)[]) => {
      const { backup, timestamp } = await openTarget(session, words)
      const display = createProgress(io)
      try {
        const result = await verifyBackup(backup, {
          keys: signingKeysIn,
          onProgress: ({ records, blobs, repoBytes, blobBytes }) =>
            display.update(
              `checked ${formatCount(records, 'record')}, ${formatCount(blobs, 'blob')}, ${formatBytes(repoBytes + blobBytes)}`,
              0,
              0
            ),
          signal: io.signal,
        })
        const { problems, account, records, blobs, missing } = result
        return {
          failed: problems.length > 0,
          json: { timestamp, verified: problems.length === 0, ...result },
          text: [
            ...problems.map(
              ({ subject, message }) => `${subject}: ${printable(message)}`
            ),
            `${account} ${timestamp}: ${formatCount(records, 'record')}, ${formatCount(blobs, 'blob')}, ${missing} missing; ${problems.length === 0 ? 'all is as it should be' : formatCount(problems.length, 'problem')}`,
          ].join('\n'),
        }
      } finally {
        display.end()
      }
    }
  )
}

function describeOutcome(outcome: Protocol.RunOutcome): string {
  if (outcome.kind === 'unchanged') {
    const parts = describeParts(outcome.private, outcome.account)
    return [
      `nothing is new since the backup of ${outcome.timestamp}`,
      ...(parts.length === 0 ? [] : [formatFields(parts)]),
    ].join('\n')
  }
  const missing = outcome.blobsMissing + outcome.blobsFailed
  return formatFields([
    ['backup', `${outcome.timestamp} (${outcome.kind})`],
    ['account', outcome.account],
    ['records', outcome.records.toLocaleString('en-US')],
    [
      'uploaded',
      `${formatCount(outcome.blocksUploaded, 'block')}, ${formatBytes(outcome.bytesUploaded)}, ${formatCount(outcome.blobsUploaded, 'blob')}, in ${formatCount(outcome.requests, 'request')}`,
    ],
    [
      'missing blobs',
      missing === 0
        ? 'none'
        : `${missing}; \`bluesky-backups backup show ${outcome.account} latest\` says why`,
    ],
    ...describeParts(outcome.private, outcome.account),
    ['took', formatSeconds(outcome.ms)],
  ])
}

function partsOf({ parts, private: sealed = {} }: Backup): string[] {
  const there = PRIVATE_PARTS.filter((part) => sealed[part]?.outcome === 'ok')
  return ['repo', ...parts, ...there]
}

function privateJSON(parts: PrivateParts) {
  return PRIVATE_PARTS.flatMap((part) => {
    const record = parts[part]
    if (!record) return []
    const { outcome, detail } = record
    return {
      part,
      outcome,
      detail: detail ?? null,
      ...(isSealed(record)
        ? { size: record.size, recipients: record.recipients }
        : {}),
      ...(isPlain(record) ? { size: record.size, plain: true } : {}),
    }
  })
}

async function countMissing(
  blocks: BlockFetcher,
  { missing }: Backup
): Promise<number> {
  let count = 0
  if (missing) for await (const _ of entries(blocks, missing)) count++
  return count
}
