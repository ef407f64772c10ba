import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { ed25519 } from '@ucanto/principal'
import { CID } from 'multiformats/cid'
import {
  Clock,
  ServiceUnreachableError,
  type Connection,
  type InvocationConfig,
} from '../../src/client/index.ts'
import { withNativeSigning } from '../../src/node/index.ts'
import { MAX_PARENTS, decodeEvent } from '../../src/space/index.ts'
import type { Block } from '../../src/space/interface.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import { allow, eventOf, type Space } from './harness.ts'
import { loadServiceProcess } from './service-process.ts'
import {
  createEmbeddedStore,
  createPostgresStore,
  databaseServer,
  type TestStore,
} from './slow-stores.ts'

const ROUNDS = Number(process.env.KILL_ROUNDS ?? 100)
const AGENTS = 6
/** Events of one advance, at most. */
const MAX_EVENTS = 4
/** How long a service lives after its first answer, at most, in ms. */
const LONGEST_WORK = 120
/** In so many rounds, one does not wait for an answer. */
const KILL_UNANSWERED = 4
/** Of so many rounds, one kills the service while it starts. */
const KILL_AT_START = 7
/** How long it starts before it is killed, at most, in ms. */
const LONGEST_START = 60

type Event = Awaited<ReturnType<typeof eventOf>>

/** Events that were sent together, parents before children. */
interface Advance {
  events: Event[]
  isAcknowledged: boolean
}

describe('a service that is killed', () => {
  it('loses no advance that it acknowledged, on SQLite', () =>
    killAgainAndAgain(createEmbeddedStore))

  it('loses no advance that it acknowledged, on PostgreSQL', function () {
    const server = databaseServer
    if (server === undefined) return this.skip()
    return killAgainAndAgain(() => createPostgresStore(server))
  })
})

async function killAgainAndAgain(
  createStore: () => Promise<TestStore>
): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const store = resources.use(await createStore())
  const space: Space = await ed25519.generate()
  const agents = await Promise.all(
    Array.from({ length: AGENTS }, () => createAgent(space))
  )
  const sent: Advance[] = []
  let head: Event[] = []
  let stores: Stores | undefined
  // Processes take longer to load than to be killed: one is always ahead.
  let next = loadServiceProcess(store)
  resources.defer(async () => (await next)[Symbol.asyncDispose]())
  for (let round = 0; round < ROUNDS; round++) {
    await using service = await next
    next = loadServiceProcess(store)
    const starting = service.start()
    const connection = await (round % KILL_AT_START === 0
      ? Promise.race([starting, sleep(Math.random() * LONGEST_START)])
      : starting)
    const advances: Advance[] = []
    if (connection) {
      assert.deepEqual(
        await headAt(connection, agents[0]!),
        namesOf(head),
        `round ${round}: the service answers the head that the last one left`
      )
      const answered = Promise.withResolvers<void>()
      const working = agents.map((agent, at) =>
        advanceUntilKilled(connection, agent, advances, {
          name: `${round} ${at}`,
          // Some merge all of the head, the same as others; some a part of it.
          parents: head.slice(0, at % 2 === 0 ? MAX_PARENTS : 1),
          onAcknowledged: answered.resolve,
        })
      )
      if (round % KILL_UNANSWERED > 0) await answered.promise
      await sleep(Math.random() * LONGEST_WORK)
      await service.kill()
      await Promise.all(working)
    } else {
      await service.kill()
      await starting
    }
    await store.settled()
    stores ??= resources.use(await openStores(store.options))
    head = await checkRound(stores, space, { round, head, advances })
    sent.push(...advances)
  }
  assert.ok(stores)
  const acknowledged = await checkAll(stores, space, sent)
  assert.ok(acknowledged > ROUNDS, `only ${acknowledged} were acknowledged`)
}

async function createAgent(space: Space): Promise<InvocationConfig> {
  const issuer = withNativeSigning(await ed25519.generate())
  const proofs = [await allow(space, issuer, ['clock/*'])]
  return { issuer, with: space.did(), proofs }
}

/** Advances, each time from the own event before, and notes what was sent. */
async function advanceUntilKilled(
  connection: Connection,
  agent: InvocationConfig,
  sent: Advance[],
  {
    name,
    parents,
    onAcknowledged,
  }: { name: string; parents: Event[]; onAcknowledged: () => void }
): Promise<void> {
  for (let count = 0; ; count++) {
    const events: Event[] = []
    const length = 1 + Math.floor(Math.random() * MAX_EVENTS)
    for (let at = 0; at < length; at++) {
      const event = await eventOf(`${name} ${count} ${at}`, parents)
      events.push(event)
      parents = [event]
    }
    const advance = { events, isAcknowledged: false }
    sent.push(advance)
    let out: Awaited<ReturnType<typeof Clock.advance>>
    try {
      out = await Clock.advance(agent, events.at(-1)!.cid, {
        connection,
        blocks: events,
      })
    } catch (error) {
      if (isBroken(error)) return
      throw error
    }
    assert.equal(out.error, undefined)
    advance.isAcknowledged = true
    onAcknowledged()
  }
}

/** The connection broke before the answer, or in the middle of it. */
function isBroken(error: unknown): boolean {
  return (
    error instanceof ServiceUnreachableError ||
    (error instanceof TypeError && error.message === 'terminated')
  )
}

async function headAt(
  connection: Connection,
  agent: InvocationConfig
): Promise<string[]> {
  const { ok, error } = await Clock.head(agent, {
    connection,
    nonce: crypto.randomUUID(),
  })
  assert.equal(error, undefined)
  return ok.head.map(String)
}

/**
 * Checks what a round left: what was acknowledged is there, everything else is
 * there as a whole or not at all, and the head is what follows from it.
 *
 * @returns the head
 */
async function checkRound(
  stores: Stores,
  space: Space,
  {
    round,
    head,
    advances,
  }: { round: number; head: Event[]; advances: Advance[] }
): Promise<Event[]> {
  const unknown = new Set(
    await stores.clock.unknown(
      space.did(),
      advances.flatMap(({ events }) => namesOf(events))
    )
  )
  const accepted: Event[] = []
  for (const { events, isAcknowledged } of advances) {
    const lost = namesOf(events).filter((name) => unknown.has(name))
    if (lost.length === 0) {
      accepted.push(...events)
      continue
    }
    assert.ok(!isAcknowledged, `round ${round}: ${lost[0]} was acknowledged`)
    assert.equal(
      lost.length,
      events.length,
      `round ${round}: an advance is there in part`
    )
  }
  const replaced = new Set(accepted.flatMap(parentsOf))
  const left = [...head, ...accepted].filter(
    ({ cid }) => !replaced.has(cid.toString())
  )
  assert.deepEqual(
    await stores.clock.head(space.did()),
    namesOf(left),
    `round ${round}: the head is what no event replaced`
  )
  return left
}

/**
 * Reads everything from the head on: each event can be read, and each parent
 * is there. What was acknowledged is at the head or below it.
 *
 * @returns how many advances were acknowledged
 */
async function checkAll(
  stores: Stores,
  space: Space,
  sent: Advance[]
): Promise<number> {
  const open = await stores.clock.head(space.did())
  const seen = new Set(open)
  for (let name = open.pop(); name !== undefined; name = open.pop()) {
    const bytes = await stores.clock.event(space.did(), name)
    assert.ok(bytes, `${name} is at the head or a parent, and is not there`)
    for (const parent of parentsOf({ cid: CID.parse(name), bytes })) {
      if (!seen.has(parent)) open.push(parent)
      seen.add(parent)
    }
  }
  const acknowledged = sent.filter(({ isAcknowledged }) => isAcknowledged)
  for (const name of acknowledged.flatMap(({ events }) => namesOf(events))) {
    assert.ok(seen.has(name), `${name} was acknowledged`)
  }
  return acknowledged.length
}

function namesOf(events: Event[]): string[] {
  return events.map(({ cid }) => cid.toString()).sort()
}

function parentsOf(block: Block): string[] {
  return decodeEvent(block).parents.map(String)
}
