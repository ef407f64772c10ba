const MAX_LENGTH = 256

/**
 * Makes text from outside fit for an error message or a log: one line, no
 * control or direction characters, at most 256 characters.
 */
export function printable(text: string): string {
  const line = text.replace(/[\p{C}\p{Z}]+/gu, ' ').trim()
  return line.length > MAX_LENGTH ? `${line.slice(0, MAX_LENGTH - 1)}…` : line
}

/** What an error says about data from outside, without most of the data. */
export function printableError(error: unknown): Error {
  return new Error(printable(String(error)))
}
