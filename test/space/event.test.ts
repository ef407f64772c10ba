import assert from 'node:assert/strict'
import type { Backup, EventLink, Link, State } from '../../src/space/index.ts'
import {
  MAX_PARENTS,
  MissingBlockError,
  addBackup,
  createEvent,
  decodeEvent,
  listBackups,
  mergeHeads,
  mergeStates,
} from '../../src/space/index.ts'
import { MemoryBlocks, alice, hour, linkOf } from './helpers.ts'

const backup = await linkOf<Backup>('backup')

describe('mergeHeads', () => {
  let blocks: MemoryBlocks

  beforeEach(() => {
    blocks = new MemoryBlocks()
  })

  it('of a new clock has no state', async () => {
    assert.deepEqual(await mergeHeads(blocks, []), {
      state: undefined,
      additions: [],
      heads: [],
      unreadable: [],
    })
  })

  it('of one event is its state, unread', async () => {
    const state = await linkOf<State>('state')
    const head = await eventOf(state)
    const merged = await mergeHeads(blocks, [head, head])
    assert.equal(merged.state?.toString(), state.toString())
    assert.deepEqual(merged.additions, [])
    assert.deepEqual(merged.heads, [head])
  })

  it('of several events is the same in any order', async () => {
    const heads = await headsOf(3)
    const merged = await mergeHeads(blocks, heads)
    const reversed = await mergeHeads(blocks, heads.toReversed())
    assert.deepEqual(text(reversed.heads), text(merged.heads))
    const root = blocks.keep({ ...merged, root: merged.state! })
    assert.equal(reversed.state?.toString(), root.toString())
    const list = await Array.fromAsync(listBackups(blocks, root, alice))
    assert.equal(list.length, 3)

    const event = await createEvent(root, merged.heads)
    assert.deepEqual(
      text(decodeEvent(event).parents),
      text(merged.heads),
      'the next event has the heads as its parents'
    )
    assert.deepEqual(await createEvent(root, heads), event)
  })

  it('includes more heads than an event can have parents', async () => {
    const heads = await headsOf(MAX_PARENTS + 8)
    const merged = await mergeHeads(blocks, heads)
    const root = blocks.keep({ ...merged, root: merged.state! })
    const list = await Array.fromAsync(listBackups(blocks, root, alice))
    assert.equal(list.length, heads.length)
    assert.equal(merged.heads.length, MAX_PARENTS)

    // The next event replaces the others, and its state is the same.
    const event = await createEvent(root, merged.heads)
    blocks.put(event)
    const rest = text(heads).filter(
      (head) => !text(merged.heads).includes(head)
    )
    const next = await mergeHeads(blocks, [
      event.cid,
      ...heads.filter((head) => rest.includes(head.toString())),
    ])
    assert.equal(next.state?.toString(), root.toString())
    assert.equal(next.heads.length, 9)
  })

  it('says which event is missing', async () => {
    const missing = await linkOf<never>('event')
    await assert.rejects(mergeHeads(blocks, [missing]), (error) => {
      assert.ok(error instanceof MissingBlockError)
      assert.match(error.message, new RegExp(`Event ${missing.toString()}`))
      return true
    })
  })

  it('leaves heads in place that cannot be read, and merges the others', async () => {
    const heads = await headsOf(3)
    const good = await mergeHeads(blocks, heads)
    const missing = await linkOf<never>('event')
    const nonsense = await eventOf(await linkOf<State>('state'))
    for (const order of [
      [missing, ...heads, nonsense],
      [nonsense, ...heads.toReversed(), missing],
    ]) {
      const merged = await mergeHeads(blocks, order)
      assert.equal(merged.state?.toString(), good.state?.toString())
      assert.deepEqual(text(merged.heads), text(good.heads))
      assert.deepEqual(
        text(merged.unreadable.map(({ head }) => head)),
        text([missing, nonsense]).sort()
      )
      assert.deepEqual(
        new Set(merged.unreadable.map(({ error }) => error.name)),
        new Set(['MissingBlockError', 'UnreadableStateError'])
      )
    }
    const alone = await mergeHeads(blocks, [heads[0]!, missing])
    assert.deepEqual(text(alone.heads), text([heads[0]!]))
  })

  it('agrees with mergeStates', async () => {
    const heads = await headsOf(2)
    const states = heads.map(
      (head) => decodeEvent(blocks.blocks.get(head.toString())!).data
    )
    const { state } = await mergeHeads(blocks, heads)
    const { root } = await mergeStates(blocks, states)
    assert.equal(state?.toString(), root.toString())
  })

  async function eventOf(state: Link<State>): Promise<EventLink> {
    const event = await createEvent(state, [])
    blocks.put(event)
    return event.cid
  }

  /** Events of agents that each made one backup and knew nothing else. */
  async function headsOf(count: number): Promise<EventLink[]> {
    const heads: EventLink[] = []
    for (let i = 0; i < count; i++) {
      const addition = { account: alice, timestamp: hour(i), backup }
      const added = await addBackup(blocks, undefined, addition)
      heads.push(await eventOf(blocks.keep(added)))
    }
    return heads
  }
})

function text(links: EventLink[]): string[] {
  return links.map((link) => link.toString())
}
