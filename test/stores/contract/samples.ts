import type {
  ClockEvent,
  RunRequest,
  ScheduleDecision,
} from '../../../src/stores/index.ts'

export const alice = 'did:key:alice'
export const bob = 'did:key:bob'
export const account = 'did:plc:account'

/** Bytes that differ for each text. */
export function bytesOf(text: string): Uint8Array {
  return new TextEncoder().encode(text)
}

export function eventOf(event: string, ...parents: string[]): ClockEvent {
  return { event, parents, bytes: bytesOf(event) }
}

/** Events whose parents come before them, `width` at most for each. */
export function randomEvents(count: number, width: number): ClockEvent[] {
  return Array.from({ length: count }, (_, index) => {
    const parents = new Set<string>()
    for (let n = 0; n < Math.min(index, width); n += 1) {
      parents.add(`event-${Math.floor(Math.random() * index)}`)
    }
    return eventOf(`event-${index}`, ...parents)
  })
}

/** What the head has to be: the events that no event names as a parent. */
export function headOf(events: ClockEvent[]): string[] {
  const parents = new Set(events.flatMap((event) => event.parents))
  const heads = events.filter(({ event }) => !parents.has(event))
  return [...new Set(heads.map(({ event }) => event))].sort()
}

/** The event and what it needs to be accepted, parents before children. */
export function withAncestors(
  events: ClockEvent[],
  { event }: ClockEvent
): ClockEvent[] {
  const needed = new Set([event])
  for (const candidate of events.toReversed()) {
    if (!needed.has(candidate.event)) continue
    for (const parent of candidate.parents) needed.add(parent)
  }
  return events.filter((candidate) => needed.has(candidate.event))
}

export function requestOf(
  id: string,
  changes: Partial<RunRequest> = {}
): RunRequest {
  return {
    id,
    space: alice,
    account,
    agent: 'did:key:agent',
    include: ['repo', 'blobs'],
    authority: bytesOf(`authority of ${id}`),
    created: 1_742_140_799_958,
    ...changes,
  }
}

/** A schedule that is due. */
export function decisionOf(
  changes: Partial<ScheduleDecision> = {}
): ScheduleDecision {
  return {
    rhythm: { every: 3600 },
    anchor: 1_742_100_000_000,
    include: ['blobs'],
    delegation: {
      cid: 'bafydelegation',
      bytes: bytesOf('delegation'),
      expiration: 1_800_000_000_000,
    },
    host: 'pds.test',
    state: 'active',
    next: 1_742_140_799_958,
    ...changes,
  }
}
