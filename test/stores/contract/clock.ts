import fc from 'fast-check'
import type { ClockEvent } from '../../../src/stores/index.ts'
import type { Contract } from './contract.ts'
import {
  alice,
  bob,
  bytesOf,
  eventOf,
  headOf,
  randomEvents,
  withAncestors,
} from './samples.ts'

export const clockStoreContract: Contract = {
  'a clock that nobody has advanced has no head': async (assert, { clock }) => {
    assert.deepEqual(await clock.head(alice), [])
  },

  'an event takes the place of its parents': async (assert, { clock }) => {
    assert.deepEqual(await clock.advance(alice, [eventOf('a')]), ['a'])
    assert.deepEqual(await clock.advance(alice, [eventOf('b', 'a')]), ['b'])
    assert.deepEqual(await clock.head(alice), ['b'])
  },

  'events that do not know each other are both the head, sorted': async (
    assert,
    { clock }
  ) => {
    await clock.advance(alice, [eventOf('root')])
    await clock.advance(alice, [eventOf('b', 'root')])
    assert.deepEqual(await clock.advance(alice, [eventOf('B', 'root')]), [
      'B',
      'b',
    ])
    assert.deepEqual(await clock.advance(alice, [eventOf('c', 'B', 'b')]), [
      'c',
    ])
  },

  'a parent that is not in the head stays out of it': async (
    assert,
    { clock }
  ) => {
    await clock.advance(alice, [eventOf('a'), eventOf('b', 'a')])
    assert.deepEqual(await clock.advance(alice, [eventOf('c', 'a')]), [
      'b',
      'c',
    ])
  },

  'a head that is full takes only what makes it smaller': async (
    assert,
    { clock }
  ) => {
    const limit = { maxHeads: 2 }
    for (const name of ['a', 'b']) {
      await clock.advance(alice, [eventOf(name)], limit)
    }
    await assert.rejects(clock.advance(alice, [eventOf('c')], limit), {
      name: 'TooManyHeadsError',
    })
    assert.deepEqual(await clock.unknown(alice, ['c']), ['c'])
    assert.deepEqual(await clock.advance(alice, [eventOf('a')], limit), [
      'a',
      'b',
    ])
    assert.deepEqual(await clock.advance(alice, [eventOf('d', 'a')], limit), [
      'b',
      'd',
    ])
    await clock.advance(alice, [eventOf('e')])
    assert.deepEqual(
      await clock.advance(alice, [eventOf('f', 'e')], { maxHeads: 1 }),
      ['b', 'd', 'f']
    )
    assert.deepEqual(
      await clock.advance(alice, [eventOf('g', 'b', 'd', 'f')], limit),
      ['g']
    )
  },

  'an accepted event changes nothing when it comes again': async (
    assert,
    { clock }
  ) => {
    await clock.advance(alice, [eventOf('a'), eventOf('b', 'a')])
    const again = { ...eventOf('a'), bytes: bytesOf('other bytes') }
    assert.deepEqual(await clock.advance(alice, [again]), ['b'])
    assert.deepEqual(await clock.event(alice, 'a'), bytesOf('a'))
  },

  'an event that comes twice in one advance is accepted once': async (
    assert,
    { clock }
  ) => {
    const events = [eventOf('a'), eventOf('b', 'a'), eventOf('a')]
    assert.deepEqual(await clock.advance(alice, events), ['b'])
  },

  'an advance with no events answers the head': async (assert, { clock }) => {
    await clock.advance(alice, [eventOf('a')])
    assert.deepEqual(await clock.advance(alice, []), ['a'])
  },

  'an event with an unknown parent is refused': async (assert, { clock }) => {
    await assert.rejects(clock.advance(alice, [eventOf('b', 'a')]), {
      name: 'UnknownParentError',
    })
    await assert.rejects(clock.advance(alice, [eventOf('a', 'a')]), {
      name: 'UnknownParentError',
    })
  },

  'a refused advance changes nothing': async (assert, { clock }) => {
    await clock.advance(alice, [eventOf('a')])
    const childFirst = [eventOf('b', 'a'), eventOf('d', 'c'), eventOf('c', 'b')]
    await assert.rejects(clock.advance(alice, childFirst), {
      name: 'UnknownParentError',
    })
    assert.deepEqual(await clock.head(alice), ['a'])
    assert.deepEqual(await clock.unknown(alice, ['b', 'c', 'd']), [
      'b',
      'c',
      'd',
    ])
  },

  'of advances at the same time each is accepted or refused by itself': async (
    assert,
    { clock }
  ) => {
    const answers = await Promise.allSettled([
      clock.advance(alice, [eventOf('a')]),
      clock.advance(bob, [eventOf('a')]),
      clock.advance(alice, [eventOf('b', 'a')]),
      clock.advance(alice, [eventOf('d', 'c')]),
      clock.advance(bob, [eventOf('e'), eventOf('f')], { maxHeads: 2 }),
      clock.advance(alice, [eventOf('a')]),
      clock.advance(bob, [eventOf('b', 'a')]),
    ])
    assert.deepEqual(
      answers.map((answer) =>
        answer.status === 'fulfilled'
          ? answer.value
          : (answer.reason as Error).name
      ),
      [
        ['a'],
        ['a'],
        ['b'],
        'UnknownParentError',
        'TooManyHeadsError',
        ['b'],
        ['b'],
      ]
    )
    assert.deepEqual(await clock.head(alice), ['b'])
    assert.deepEqual(await clock.head(bob), ['b'])
    assert.deepEqual(await clock.unknown(bob, ['a', 'e', 'b', 'f']), ['e', 'f'])
  },

  'many advances at the same time are all accepted': async (
    assert,
    { clock }
  ) => {
    const names = Array.from({ length: 300 }, (_, at) =>
      `event ${at}`.padStart(9, '0')
    )
    await Promise.all(
      names.map((name, at) =>
        clock.advance(at % 3 === 0 ? alice : bob, [eventOf(name)])
      )
    )
    const heads = [...(await clock.head(alice)), ...(await clock.head(bob))]
    assert.deepEqual(heads.sort(), names.sort())
  },

  'clocks know nothing of each other': async (assert, { clock }) => {
    await clock.advance(alice, [eventOf('a')])
    assert.deepEqual(await clock.head(bob), [])
    assert.deepEqual(await clock.unknown(bob, ['a']), ['a'])
    assert.equal(await clock.event(bob, 'a'), undefined)
    await assert.rejects(clock.advance(bob, [eventOf('b', 'a')]), {
      name: 'UnknownParentError',
    })
  },

  'unknown events are answered in the order of the question': async (
    assert,
    { clock }
  ) => {
    await clock.advance(alice, [eventOf('m')])
    assert.deepEqual(await clock.unknown(alice, ['z', 'm', 'a']), ['z', 'a'])
    assert.deepEqual(await clock.unknown(alice, []), [])
  },

  'the bytes of an event are what was given': async (assert, { clock }) => {
    const bytes = Uint8Array.from({ length: 256 }, (_, byte) => byte)
    // A view into something larger.
    const view = new Uint8Array([9, ...bytes, 9]).subarray(1, 257)
    await clock.advance(alice, [{ event: 'a', parents: [], bytes: view }])
    assert.deepEqual(await clock.event(alice, 'a'), bytes)
    assert.equal(await clock.event(alice, 'b'), undefined)
  },

  'one advance brings thousands of events': async (assert, { clock }) => {
    const events = randomEvents(5_000, 3)
    assert.deepEqual(await clock.advance(alice, events), headOf(events))
    const names = events.map(({ event }) => event)
    assert.deepEqual(await clock.unknown(alice, [...names, 'x']), ['x'])
  },

  'it behaves like the definition, whatever is advanced': async (
    assert,
    { clock }
  ) => {
    let spaces = 0
    const step = fc.record({
      event: fc.nat(30),
      parents: fc.uniqueArray(fc.nat(30), { maxLength: 3 }),
    })
    const advances = fc.array(fc.array(step, { maxLength: 6 }), {
      maxLength: 12,
    })
    await fc.assert(
      fc.asyncProperty(advances, async (calls) => {
        const space = `did:key:${(spaces += 1)}`
        const shapes = new Map<number, ClockEvent>()
        let accepted: ClockEvent[] = []
        for (const call of calls) {
          // A CID stands for one set of parents: the first that was drawn.
          const events = call.map(({ event, parents }) => {
            const older = parents.filter((parent) => parent < event)
            const shape =
              shapes.get(event) ?? eventOf(`${event}`, ...older.map(String))
            shapes.set(event, shape)
            return shape
          })
          const next = naiveAdvance(accepted, events)
          if (next) {
            accepted = next
            assert.deepEqual(
              await clock.advance(space, events),
              headOf(accepted)
            )
          } else {
            await assert.rejects(clock.advance(space, events), {
              name: 'UnknownParentError',
            })
          }
          assert.deepEqual(await clock.head(space), headOf(accepted))
          const names = [...shapes.values()].map(({ event }) => event)
          assert.deepEqual(
            await clock.unknown(space, names),
            names.filter(
              (name) => !accepted.some(({ event }) => event === name)
            )
          )
        }
      }),
      { numRuns: 60 }
    )
  },

  'events come in any order that has parents before children': async (
    assert,
    { clock }
  ) => {
    const events = randomEvents(40, 2)
    const shuffled = events
      .map((event) => ({ event, order: Math.random() }))
      .sort((a, b) => a.order - b.order)
    for (const { event } of shuffled) {
      await clock.advance(alice, withAncestors(events, event))
    }
    assert.deepEqual(await clock.head(alice), headOf(events))
  },
}

/** @returns all accepted events, or undefined when the call is refused */
function naiveAdvance(
  accepted: ClockEvent[],
  events: ClockEvent[]
): ClockEvent[] | undefined {
  const next = [...accepted]
  const has = (name: string) => next.some(({ event }) => event === name)
  for (const event of events) {
    if (has(event.event)) continue
    if (!event.parents.every(has)) return undefined
    next.push(event)
  }
  return next
}
