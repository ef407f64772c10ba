import type { Command } from 'commander'
import { printLine, type Io, type Result } from './io.ts'
import { addAgentOptions, type Flags } from './options.ts'
import { openSession, type Session } from './session.ts'

/** What each command is made with. */
export interface CommandContext {
  io: Io
  /** Called when a command is done and the answer is no. */
  onFailed: () => void
}

/** Options that every command has. */
export function addCommonOptions(command: Command, example: string): Command {
  return command
    .optionsGroup('Output:')
    .option('--json', 'print one JSON object')
    .option('--verbose', 'print where an error comes from')
    .addHelpText('after', `\nExample:\n${indented(example)}`)
}

/** What a command of the agent does. */
export type AgentAction<Words extends (string | undefined)[]> = (
  given: { session: Session; flags: Flags; io: Io },
  ...words: Words
) => Promise<Result>

/**
 * Makes a command of the agent: opens its session, and prints what comes of it.
 *
 * @param example - command lines that work
 */
export function agentCommand<Words extends (string | undefined)[]>(
  command: Command,
  { io, onFailed }: CommandContext,
  example: string,
  act: AgentAction<Words>
): void {
  addAgentOptions(command)
  addCommonOptions(command, example)
  command.action(async (...given: unknown[]) => {
    const words = given.slice(0, command.registeredArguments.length) as Words
    const flags = command.opts<Flags>()
    await using session = await openSession(io, flags)
    const result = await act({ session, flags, io }, ...words)
    printResult(io, flags, result)
    if (result.failed) onFailed()
  })
}

/** Prints one object, or text for people. */
export function printResult(
  io: Io,
  flags: Flags,
  { json, text }: Result
): void {
  if (flags['json']) {
    if (json !== undefined) printLine(io.stdout, JSON.stringify(json))
  } else if (text !== undefined) printLine(io.stdout, text)
}

function indented(text: string): string {
  return text
    .split('\n')
    .map((line) => `  $ ${line}`)
    .join('\n')
}
