import { readFile } from 'node:fs/promises'
import {
  chunksOf,
  streamOf,
  type BackupReader,
  type PrivatePart,
} from '../backup/index.ts'
import {
  deriveIdentity,
  findShare,
  isPlain,
  isSealed,
  openFileKey,
  openPart,
  PRIVATE_PARTS,
  recipientOf,
  type FileKey,
  type SealedPart,
} from '../space/index.ts'
import { NotSealedForUsError, UsageError } from './errors.ts'
import { printable } from './format.ts'
import type { Session } from './session.ts'
import type { SpaceView } from './target.ts'

/** An identity that the user keeps, one in a file, as `age-keygen` writes it. */
const IDENTITY = /^AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}$/
const MAX_IDENTITY_FILE_SIZE = 64 * 1024

/** Opens private parts of one backup. */
export interface PartOpener {
  /**
   * The content of a part.
   *
   * @throws {@link NotSealedForUsError} {@link UnsealError}
   *   {@link GatewayError}
   */
  open(part: PrivatePart): Promise<AsyncIterable<Uint8Array>>
}

/**
 * Opens private parts with the agent's own key, with what other agents have
 * shared with it, and with identities that the user keeps.
 *
 * @param options.identities - of {@link readIdentityFile}
 */
export function createPartOpener(
  session: Session,
  backup: BackupReader,
  {
    view,
    timestamp,
    identities,
  }: { view: SpaceView; timestamp: string; identities: string[] }
): PartOpener {
  const { account } = backup.value
  const space = session.space()
  const agent = session.client.agent.issuer
  let own: Promise<CryptoKey> | undefined
  const ownIdentity = () => (own ??= deriveIdentity(agent, { space, account }))
  const findKey = async (
    part: PrivatePart,
    { recipients }: SealedPart
  ): Promise<CryptoKey | string | FileKey | undefined> => {
    for (const identity of identities) {
      if (recipients.includes(await recipientOf(identity))) return identity
    }
    const identity = await ownIdentity()
    if (recipients.includes(await recipientOf(identity))) return identity
    const share = await findShare(view.blocks, view.state, {
      account,
      timestamp,
      agent: agent.did(),
    })
    const sealed = share[part]
    return sealed && openFileKey(identity, sealed)
  }
  return {
    async open(part) {
      const record = backup.value.private?.[part]
      if (isPlain(record)) return backup.privateFile(record)
      if (!isSealed(record)) throw new TypeError(`${part} is not there`)
      const key = await findKey(part, record)
      if (key === undefined) {
        throw new NotSealedForUsError(
          `${part} is sealed for others; name the file of your recovery identity with --identity-file, or have who can open it share it: the service, by \`bluesky-backups authorizations share ${account} --by-service\`, or another agent, by \`bluesky-backups authorizations share ${account} ${agent.did()}\` run there`
        )
      }
      return chunksOf(await openPart(key, streamOf(backup.privateFile(record))))
    },
  }
}

/**
 * Reads identities that the user keeps.
 *
 * @throws {@link UsageError}
 */
export async function readIdentityFile(
  path: string | undefined
): Promise<string[]> {
  if (path === undefined) return []
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (cause) {
    throw new UsageError(`--identity-file: ${path} cannot be read`, { cause })
  }
  const identities = text
    .slice(0, MAX_IDENTITY_FILE_SIZE)
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'))
  try {
    if (identities.length === 0) throw new TypeError('there are none')
    for (const identity of identities) {
      if (!IDENTITY.test(identity)) throw new TypeError('not an identity')
      await recipientOf(identity)
    }
  } catch {
    // The cause may quote the identity.
    throw new UsageError(
      `--identity-file: ${path} does not hold an identity; it is the file that \`bluesky-backups recovery create\` has written`
    )
  }
  return identities
}

/** What came of each private part, one a line. */
export function describeParts(
  parts:
    | Partial<Record<PrivatePart, { outcome: string; detail?: string }>>
    | undefined,
  account: string
): [name: string, value: string][] {
  if (!parts) return []
  const named = PRIVATE_PARTS.flatMap((part): [string, string][] => {
    const record = parts[part]
    if (!record) return []
    const { outcome, detail } = record
    const said = detail === undefined ? '' : `: ${printable(detail)}`
    return [[part, `${nameOutcome(outcome)}${said}`]]
  })
  const advice = `\`bluesky-backups authorize ${account}\` grants them`
  const lacking = named.filter(([part]) => {
    const { outcome, detail } = parts[part as PrivatePart] ?? {}
    return outcome === 'not-granted' && detail === undefined
  })
  if (lacking.length === 0) return named
  return lacking.length === named.length
    ? [['private parts', `none are granted; ${advice}`]]
    : [...named, ['', advice]]
}

/** An outcome in words. */
export function nameOutcome(outcome: string): string {
  return OUTCOMES[outcome] ?? printable(outcome)
}

const OUTCOMES: Record<string, string> = {
  ok: 'ok',
  'not-granted': 'not granted',
  'not-offered': 'not offered by the host',
  failed: 'failed',
}
