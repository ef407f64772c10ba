import type { GraphRow } from './clock-graph.ts'
import type { Comparison, Merge } from './clock-heads.ts'
import type { AccountDetails, AccountSummary } from './clock-state.ts'
import {
  formatCount,
  formatExpiration,
  formatFields,
  formatTable,
  printable,
} from './format.ts'

/** An event as the log shows it. */
export interface LoggedEvent {
  event: string
  parents: string[]
  /** CID of its state. */
  state: string | null
  isHead: boolean
  accounts: AccountSummary[] | null
  /** Why it, or its state, could not be read. */
  error: Error | undefined
}

/** An event of the log, in full. */
export function describeEvent(logged: LoggedEvent): string {
  return [
    titleOf(logged),
    formatFields([
      [
        '  parents',
        logged.state === null ? undefined : logged.parents.join(', ') || 'none',
      ],
      ['  state', logged.state ?? undefined],
      ...accountLines(logged).map((line): [string, string] => ['  ', line]),
    ]),
  ].join('\n')
}

/** A line with the event, and one for each account. */
export function shortLines(logged: LoggedEvent): string[] {
  return [titleOf(logged), ...accountLines(logged).map((line) => `  ${line}`)]
}

/** An event of the log as it is drawn. */
export function rowOf(
  { event, parents, state }: LoggedEvent,
  lines: string[]
): GraphRow {
  return { id: event, parents, lines, missing: state === null }
}

/** An account of a state, with who is authorized. */
export function describeAccount(details: AccountDetails): string {
  const { account, backups, lastBackup, authorizations, error } = details
  return [
    formatFields([
      ['account', account],
      ['backups', backups.toLocaleString('en-US')],
      ['last backup', lastBackup ?? 'none'],
      ['error', error && oneLine(error)],
    ]),
    ...(authorizations.length === 0
      ? []
      : [
          formatTable(
            ['AUTHORIZED AGENT', 'SEQ', 'EXPIRES'],
            authorizations.map(({ agent, seq, expiration }) => [
              agent,
              String(seq),
              formatExpiration(expiration),
            ])
          ),
        ]),
  ].join('\n')
}

/** Which heads were merged into what. */
export function describeMerge({ merged, event, state }: Merge): string {
  return `merged ${formatCount(merged.length, 'head')}\n${formatFields([
    ...merged.map((head): [string, string] => ['  merged', head]),
    ['  into', event],
    ['  state', state],
  ])}`
}

/** How two clocks stand to each other. */
export function describeComparison(
  { relation, head, otherHead }: Comparison,
  here: string,
  there: string
): string {
  if (relation === 'same') return `the clocks agree:\n${describeHead(head)}`
  const said = {
    ahead: `${there} is behind ${here}`,
    behind: `${here} is behind ${there}`,
    diverged: 'the clocks differ: each has events that the other lacks',
  }[relation]
  return [
    `${said}; --merge brings them together`,
    `head at ${here}:`,
    describeHead(head),
    `head at ${there}:`,
    describeHead(otherHead),
  ].join('\n')
}

/** The head of a clock, and what to do if there are several. */
export function describeHead(head: string[]): string {
  return [
    head.join('\n') || 'no events yet',
    ...(head.length > 1
      ? [
          `${head.length} heads; \`bluesky-backups clock merge\` makes one of them`,
        ]
      : []),
  ].join('\n')
}

function titleOf({ event, isHead, state }: LoggedEvent): string {
  return `${event}${isHead ? ' (head)' : ''}${state === null ? ' (missing)' : ''}`
}

function accountLines({ accounts, error }: LoggedEvent): string[] {
  return [
    ...(accounts ?? []).map(
      ({ account, lastBackup }) =>
        `${account}  ${lastBackup === null ? 'no backups' : `last backup ${lastBackup}`}`
    ),
    ...(error ? [oneLine(error)] : []),
  ]
}

/** A message that others may have written, safe for a terminal. */
export function oneLine({ message }: Error): string {
  return printable(message.replace(/\s+/g, ' '))
}
