import assert from 'node:assert/strict'
import { advance } from '@web3-storage/pail/clock'
import fc from 'fast-check'
import type * as Link from 'multiformats/link'
import { createEvent } from '../../src/space/index.ts'
import type { Block, EventLink, State } from '../../src/space/interface.ts'
import { openStores, type ClockEvent } from '../../src/stores/index.ts'
import { blockOf } from '../service/harness.ts'

/** Histories, and the events of each that are delivered. */
const HISTORIES = 500
const DELIVERIES = 20

/** For each event, which of the earlier ones it replaces, as numbers. */
const history = fc.array(fc.array(fc.nat(), { maxLength: 3 }), {
  minLength: DELIVERIES,
  maxLength: DELIVERIES,
})

describe('the clock, beside the published one', () => {
  it(`has the same head after ${HISTORIES * DELIVERIES} deliveries in any order`, async function () {
    this.timeout(120_000)
    await using stores = await openStores({ path: ':memory:' })
    let histories = 0
    await fc.assert(
      fc.asyncProperty(
        history,
        fc.array(fc.nat({ max: DELIVERIES - 1 }), {
          minLength: DELIVERIES,
          maxLength: DELIVERIES,
        }),
        async (parentsOf, deliveries) => {
          const events = await createEvents(parentsOf, ++histories)
          const space = `did:key:space${histories}`
          const blocks = new Map(
            events.map(({ block }) => [block.cid.toString(), block])
          )
          const fetcher = {
            get: async (link: { toString(): string }) =>
              blocks.get(link.toString()),
          }
          let published: unknown[] = []
          for (const number of deliveries) {
            const { event, ancestors } = events[number]!
            const head = await stores.clock.advance(space, [
              ...ancestors.map((index) => events[index]!.event),
              event,
            ])
            published = await advance(
              fetcher as never,
              published as never,
              events[number]!.block.cid as never
            )
            assert.deepEqual(
              head,
              [...new Set(published.map(String))].sort(),
              `after the event ${number}`
            )
          }
        }
      ),
      { numRuns: HISTORIES }
    )
  })
})

/** @returns events with the numbers of all their ancestors, parents first */
async function createEvents(parentsOf: number[][], salt: number) {
  const events: {
    block: Block & { cid: EventLink }
    event: ClockEvent
    ancestors: number[]
  }[] = []
  for (const [index, numbers] of parentsOf.entries()) {
    const parents = [
      ...new Set(index === 0 ? [] : numbers.map((number) => number % index)),
    ]
    const links = parents.map((parent) => events[parent]!.block.cid)
    const state = await blockOf({ salt, index })
    const block = await createEvent(state.cid as Link.Link<State>, links)
    const ancestors = new Set(
      parents.flatMap((parent) => [...events[parent]!.ancestors, parent])
    )
    events.push({
      block,
      event: {
        event: block.cid.toString(),
        parents: links.map(String),
        bytes: block.bytes,
      },
      ancestors: [...ancestors].sort((a, b) => a - b),
    })
  }
  return events
}
