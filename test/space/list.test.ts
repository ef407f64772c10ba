import assert from 'node:assert/strict'
import type { Backup, Link, State } from '../../src/space/index.ts'
import {
  TOMBSTONE,
  accounts,
  buildPail,
  encodeAccount,
  encodeAuthorizations,
  encodeState,
  latestBackup,
  listAuthorizations,
  listBackups,
  setAuthorization,
} from '../../src/space/index.ts'
import {
  MemoryBlocks,
  alice,
  bob,
  hour,
  laptop,
  linkOf,
  phone,
} from './helpers.ts'

const backup = await linkOf<Backup>('backup')

describe('lists of backups', () => {
  let blocks: MemoryBlocks

  beforeEach(() => {
    blocks = new MemoryBlocks()
  })

  it('of nothing are empty', async () => {
    const state = await stateOf([])
    assert.deepEqual(await accounts(blocks, undefined), [])
    assert.deepEqual(await times(undefined), [])
    assert.deepEqual(await times(state), [])
    assert.equal(await latestBackup(blocks, undefined, alice), undefined)
    assert.equal(await latestBackup(blocks, state, bob), undefined)
  })

  it('go both ways, as far as wanted', async () => {
    const state = await stateOf(hours(0, 30))
    const all = Array.from({ length: 30 }, (_, i) => hour(i))
    assert.deepEqual(await times(state), all)
    assert.deepEqual(await times(state, { limit: 2 }), [hour(0), hour(1)])
    assert.deepEqual(await times(state, { limit: 0 }), [])
    const reverse = await times(state, { reverse: true, limit: 3 })
    assert.deepEqual(reverse, [hour(29), hour(28), hour(27)])
  })

  it('leave out what was removed', async () => {
    const state = await stateOf([
      ...hours(0, 3),
      [hour(3), TOMBSTONE],
      [hour(4), TOMBSTONE],
    ])
    assert.deepEqual(await times(state), [hour(0), hour(1), hour(2)])
    const latest = await latestBackup(blocks, state, alice)
    assert.equal(latest?.timestamp, hour(2))
    assert.equal(latest.backup.toString(), backup.toString())
  })

  it('leave out what should have been pruned', async () => {
    const state = await stateOf(hours(0, 4), hour(2))
    assert.deepEqual(await times(state), [hour(2), hour(3)])
  })

  it('leave out entries that are no backups', async () => {
    const state = await stateOf([
      ['yesterday', backup],
      [hour(1), await linkOf('raw', 0x55)],
      [hour(2), backup],
    ])
    assert.deepEqual(await times(state), [hour(2)])
  })

  it('find the latest of 10,000 with few reads', async () => {
    const state = await stateOf(hours(0, 10_000))
    const reads = await blocks.readsOf(async () => {
      const latest = await latestBackup(blocks, state, alice)
      assert.equal(latest?.timestamp, hour(9999))
    })
    assert.ok(reads <= 16, `${reads} reads`)
  })

  async function times(
    state: Link<State> | undefined,
    options?: { reverse?: boolean; limit?: number }
  ): Promise<string[]> {
    const list = listBackups(blocks, state, alice, options)
    return (await Array.fromAsync(list)).map(({ timestamp }) => timestamp)
  }

  async function stateOf(
    entries: [string, Link][],
    prunedBefore?: string
  ): Promise<Link<State>> {
    const authorizations = await encodeAuthorizations({})
    const account = await encodeAccount({
      authorizations: authorizations.cid,
      backups: blocks.keep(await buildPail<Backup>(entries)),
      prunedBefore,
    })
    const state = await encodeState({ [alice]: account.cid })
    blocks.put(authorizations, account, state)
    return state.cid
  }
})

describe('lists of authorizations', () => {
  const blocks = new MemoryBlocks()
  const authorization = { sealed: Uint8Array.of(1), expiration: 2, seq: 3 }

  it('of nothing are empty', async () => {
    assert.deepEqual(await listAuthorizations(blocks, undefined, alice), [])
    const { cid } = await encodeState({})
    blocks.put(await encodeState({}))
    assert.deepEqual(await listAuthorizations(blocks, cid, alice), [])
  })

  it('have those of all agents, or of one', async () => {
    let state: Link<State> | undefined
    for (const agent of [phone, laptop]) {
      const addition = { account: alice, agent, authorization }
      state = blocks.keep(await setAuthorization(blocks, state, addition))
    }
    assert.deepEqual(
      await listAuthorizations(blocks, state, alice),
      [phone, laptop].sort().map((agent) => ({ agent, authorization }))
    )
    assert.deepEqual(
      await listAuthorizations(blocks, state, alice, { agent: phone }),
      [{ agent: phone, authorization }]
    )
    assert.deepEqual(await listAuthorizations(blocks, state, bob), [])
  })
})

function hours(from: number, to: number): [string, Link][] {
  return Array.from({ length: to - from }, (_, i) => [hour(from + i), backup])
}
