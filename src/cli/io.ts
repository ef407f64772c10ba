import type { Writable } from 'node:stream'

/** A place that text goes to; a terminal, if `isTTY`. */
export type TextStream = Pick<Writable, 'write'> & {
  isTTY?: boolean
  columns?: number
}

/** All that a command sees of the process it runs in. */
export interface Io {
  /** Words after the name of the command. */
  argv: string[]
  env: Record<string, string | undefined>
  /** Results. */
  stdout: TextStream
  /** Progress, advice and errors. */
  stderr: TextStream
  /** Aborted when the user interrupts the command. */
  signal: AbortSignal
}

/** What a command came to. */
export interface Result {
  /** For `--json`: one object; nothing, where the command has printed it. */
  json: unknown
  /** For people. Without it, the command has printed what there is to see. */
  text?: string
  /** Whether what was asked for is not so, as with a check that found faults. */
  failed?: boolean
}

/** Prints lines, each ended. */
export function printLine(stream: TextStream, text: string): void {
  stream.write(`${text}\n`)
}
