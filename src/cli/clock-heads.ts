import { CID } from 'multiformats/cid'
import {
  DEFAULT_LIMITS,
  mergeEvents,
  type Clock,
  type EventLink,
} from '../backup/index.ts'
import { createNativeSha256 } from '../node/index.ts'
import {
  DecodeError,
  MissingBlockError,
  UnreadableStateError,
} from '../space/index.ts'
import { unknownEvents } from './clock-transfer.ts'
import { MissingEventError } from './errors.ts'
import { printable } from './format.ts'
import { createLastHead } from './last-head.ts'
import type { Io } from './io.ts'
import { openWriter } from './writer.ts'
import type { Session } from './session.ts'

/** Merges of a head that others keep moving, before leaving it as it is. */
const MAX_MERGES = 8

/** One merge of heads, by CIDs. */
export interface Merge {
  merged: string[]
  event: string
  state: string
}

/** How the clocks of two places stand to each other. */
export interface Comparison {
  /** `ahead`: this one knows all that the other does, and more. */
  relation: 'same' | 'ahead' | 'behind' | 'diverged'
  head: string[]
  otherHead: string[]
}

/**
 * Merges the heads of a clock until there is one, and writes it into the Space.
 *
 * @throws {@link MissingEventError} when a head cannot be read
 */
export async function mergeHead(
  session: Session,
  io: Io,
  clock: Clock
): Promise<{ merges: Merge[]; head: string[] }> {
  const merges: Merge[] = []
  let heads = await clock.head()
  while (heads.length > 1 && merges.length < MAX_MERGES) {
    const merged = await mergeEvents(
      {
        writer: openWriter(session, io.signal),
        reader: session.reader,
        createSha256: createNativeSha256,
        limits: DEFAULT_LIMITS,
        clock,
      },
      heads,
      { signal: io.signal }
    ).catch(explainUnreadable)
    if (!merged) {
      session.warn(
        'heads that cannot be read are left in place; `bluesky-backups clock log` shows them'
      )
      break
    }
    merges.push({
      merged: sorted(heads),
      event: merged.event.cid.toString(),
      state: merged.state.toString(),
    })
    heads = merged.heads
  }
  return { merges, head: sorted(heads) }
}

/**
 * Heads that this agent can find out: its own, the one it was told last, and
 * that of the service.
 */
export async function findHeads(session: Session): Promise<EventLink[]> {
  const { clock } = await session.stores()
  const heads = (await clock.head(session.space())).map(
    (cid) => CID.parse(cid) as EventLink
  )
  const { config } = session
  heads.push(...(await createLastHead(config.home, session.space()).read()))
  if (!config.serviceUrl) return heads
  try {
    const service = session.clockAt(await session.service())
    heads.push(...(await service.head()))
  } catch (error) {
    session.warn(
      `the head at ${config.serviceUrl.href} is not known: ${printable(error instanceof Error ? error.message : String(error))}`
    )
  }
  return heads
}

/** Compares the heads of two clocks; changes neither. */
export async function compare(here: Clock, there: Clock): Promise<Comparison> {
  const [ours, theirs] = await Promise.all([here.head(), there.head()])
  const head = sorted(ours)
  const otherHead = sorted(theirs)
  if (head.join() === otherHead.join()) {
    return { relation: 'same', head, otherHead }
  }
  const [newThere, newHere] = await Promise.all([
    unknownEvents(there, ours),
    unknownEvents(here, theirs),
  ])
  return {
    relation:
      newHere.length === 0
        ? 'ahead'
        : newThere.length === 0
          ? 'behind'
          : 'diverged',
    head,
    otherHead,
  }
}

/** CIDs as text, each once. */
export function sorted(links: EventLink[]): string[] {
  return [...new Set(links.map(String))].sort()
}

/** Says what to look at when a head cannot be merged. */
function explainUnreadable(cause: unknown): never {
  if (
    cause instanceof MissingBlockError ||
    cause instanceof UnreadableStateError ||
    cause instanceof DecodeError
  ) {
    throw new MissingEventError(
      `the heads cannot be merged: ${cause.message}; \`bluesky-backups clock log\` shows what cannot be read`,
      { cause }
    )
  }
  throw cause as Error
}
