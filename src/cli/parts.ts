import { Backup } from '../capabilities/index.ts'
import { UsageError } from './errors.ts'

/** What help says of `--include`. */
export const INCLUDE_HELP = `what to back up beside the repository, separated by commas: ${Backup.PARTS.join(', ')}; or none (default: all but conversations)`

/**
 * Reads `--include`.
 *
 * @returns nothing for what is backed up where nothing is said
 * @throws {@link UsageError}
 */
export function readParts(text: string | undefined): Backup.Part[] | undefined {
  if (text === undefined) return undefined
  if (text === 'none') return []
  const parts = text.split(',').map((part) => part.trim())
  const isPart = (part: string): part is Backup.Part =>
    (Backup.PARTS as readonly string[]).includes(part)
  if (!parts.every(isPart)) {
    throw new UsageError(
      `--include: "${text}" is not among what can be backed up; give ${Backup.PARTS.join(', ')}, or none`
    )
  }
  return [...new Set(parts)]
}
