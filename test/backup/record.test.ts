import assert from 'node:assert/strict'
import { recordAuthorization, recordChange } from '../../src/backup/index.ts'
import {
  AccountNotFoundError,
  listAuthorizations,
  listBackups,
  prune,
  setAuthorization,
  type Authorization,
  type DID,
} from '../../src/space/index.ts'
import { seedAccount, startNetwork, type Network } from '../network/index.ts'
import { laptop, phone } from '../space/helpers.ts'
import { createOwner, readState, type Owner } from './harness.ts'

const GRANT: Authorization = {
  sealed: Uint8Array.of(1, 2, 3),
  expiration: 1_800_000_000,
  seq: 1,
}

describe('changes of the state in a Space', () => {
  let network: Network
  let alice: DID
  let owner: Owner

  before(async () => {
    network = await startNetwork()
    const account = await network.pds.createAccount({ handle: 'alice.test' })
    await seedAccount(account.agent, { posts: 2 })
    alice = account.did as DID
  })

  after(async () => {
    await network[Symbol.asyncDispose]()
  })

  beforeEach(async () => {
    owner = await createOwner(network)
  })

  const grant = (agent: DID, authorization = GRANT) =>
    recordChange(owner.context, (fetcher, state) =>
      setAuthorization(fetcher, state, { account: alice, agent, authorization })
    )

  async function granted() {
    const { reader, state } = await readState(network, owner)
    return listAuthorizations(reader, state, alice)
  }

  it('begin a state, and can be read back from the Space', async () => {
    const { event, state } = await grant(phone)
    assert.deepEqual(owner.clock.heads.map(String), [event?.cid.toString()])
    const read = await readState(network, owner)
    assert.equal(read.state?.toString(), state.toString())
    assert.deepEqual(await granted(), [{ agent: phone, authorization: GRANT }])
  })

  it('that change nothing make no event', async () => {
    await grant(phone)
    const before = await owner.state()
    const again = await grant(phone)
    assert.equal(again.event, undefined)
    assert.deepEqual(await owner.state(), before)
  })

  it('that are refused change nothing', async () => {
    const before = await owner.state()
    const pruning = { account: alice, before: '2025-01-01T00:00:00.000Z' }
    await assert.rejects(
      recordChange(owner.context, (fetcher, state) =>
        prune(fetcher, state, pruning)
      ),
      AccountNotFoundError
    )
    assert.deepEqual(await owner.state(), before)
  })

  it('of two agents at once are both there after it', async () => {
    await Promise.all([grant(phone), grant(laptop)])
    const agents = (await granted()).map(({ agent }) => agent)
    assert.deepEqual(agents, [phone, laptop].sort())
    assert.equal(owner.clock.heads.length, 1)
  })

  it('go along with a backup where the agent has a newer grant', async () => {
    const recorded: unknown[] = []
    const { clock } = owner
    const authorizations = {
      pending: async () => ({ agent: phone, authorization: GRANT }),
      recorded: async (account: DID, found: unknown) => {
        recorded.push({ account, found, head: clock.heads.map(String) })
      },
    }
    const outcome = await owner.backUp(alice, { with: { authorizations } })
    assert.deepEqual(recorded, [
      {
        account: alice,
        found: GRANT,
        head: [outcome.event],
      },
    ])
    assert.equal(clock.advances, 1)
    assert.deepEqual(await granted(), [{ agent: phone, authorization: GRANT }])
    const { reader, state } = await readState(network, owner)
    const backups = await Array.fromAsync(listBackups(reader, state, alice))
    assert.equal(backups.length, 1)
  })

  it('tell what the Space has where that is greater', async () => {
    const greater = { ...GRANT, seq: GRANT.seq + 2 }
    await grant(phone, greater)
    const recorded: unknown[] = []
    const authorizations = {
      pending: async () => ({ agent: phone, authorization: GRANT }),
      recorded: async (_account: DID, found: unknown) => {
        recorded.push(found)
      },
    }
    await owner.backUp(alice, { with: { authorizations } })
    assert.deepEqual(recorded, [greater])
    const addition = { account: alice, agent: phone, authorization: GRANT }
    assert.deepEqual(
      await recordAuthorization(owner.context, addition),
      greater
    )
    assert.deepEqual(await granted(), [
      { agent: phone, authorization: greater },
    ])
    const newest = { ...GRANT, seq: greater.seq + 1 }
    assert.deepEqual(
      await recordAuthorization(owner.context, {
        ...addition,
        authorization: newest,
      }),
      newest
    )
  })
})
