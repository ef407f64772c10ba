import assert from 'node:assert/strict'
import type {
  Authorization,
  Backup,
  Link,
  State,
} from '../../src/space/index.ts'
import {
  AccountNotFoundError,
  AgentNotFoundError,
  BackupNotFoundError,
  DecodeError,
  MissingBlockError,
  PrunedError,
  RemovedError,
  TOMBSTONE,
  accounts,
  addBackup,
  getEntry,
  isInForce,
  latestBackup,
  letGo,
  listAuthorizations,
  listBackups,
  mergeStates,
  prune,
  readAccount,
  readAuthorization,
  readAuthorizations,
  readState,
  removeBackup,
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

const [low, high] = (
  await Promise.all([linkOf<Backup>(1), linkOf<Backup>(2)])
).sort((a, b) => Buffer.compare(a.bytes, b.bytes))

describe('changes of the state', () => {
  let blocks: MemoryBlocks
  let state: Link<State>

  beforeEach(async () => {
    blocks = new MemoryBlocks()
    state = blocks.keep(await addBackup(blocks, undefined, backupOf(1)))
    state = blocks.keep(await addBackup(blocks, state, backupOf(2)))
    state = blocks.keep(await addBackup(blocks, state, backupOf(3)))
  })

  describe('addBackup', () => {
    it('makes the state and the account with the first backup', async () => {
      assert.deepEqual(await accounts(blocks, state), [alice])
      assert.deepEqual(await listed(), [hour(1), hour(2), hour(3)])
      const account = await accountOf(state)
      assert.deepEqual(
        await readAuthorizations(blocks, account.authorizations),
        {}
      )
    })

    it('keeps the accounts apart', async () => {
      const added = { ...backupOf(9), account: bob }
      state = blocks.keep(await addBackup(blocks, state, added))
      assert.deepEqual(await accounts(blocks, state), [alice, bob])
      assert.deepEqual(await listed(), [hour(1), hour(2), hour(3)])
    })

    it('records the authorization in the same step', async () => {
      const authorization = grant({ seq: 1 })
      state = blocks.keep(
        await addBackup(blocks, state, {
          ...backupOf(4),
          authorization: { agent: phone, authorization },
        })
      )
      assert.deepEqual(await grantOf(state), authorization)
    })

    it('changes nothing when the backup is there', async () => {
      const same = await addBackup(blocks, state, backupOf(2))
      assert.equal(same.root.toString(), state.toString())
      assert.deepEqual(same.additions, [])
    })

    it('keeps the greater CID of two backups of the same time', async () => {
      for (const order of [
        [low, high],
        [high, low],
      ]) {
        let state: Link<State> | undefined
        for (const backup of order) {
          const added = { ...backupOf(1), backup }
          state = blocks.keep(await addBackup(blocks, state, added))
        }
        const latest = await latestBackup(blocks, state, alice)
        assert.equal(latest?.backup.toString(), high.toString())
      }
    })

    it('refuses the time of a removed backup by name', async () => {
      const removal = { account: alice, timestamp: hour(2) }
      state = blocks.keep(await removeBackup(blocks, state, removal))
      await assert.rejects(addBackup(blocks, state, backupOf(2)), RemovedError)
    })

    it('refuses what is older than the pruning by name', async () => {
      const pruning = { account: alice, before: hour(2) }
      state = blocks.keep(await prune(blocks, state, pruning))
      await assert.rejects(addBackup(blocks, state, backupOf(1)), PrunedError)
      await addBackup(blocks, state, backupOf(2))
    })

    it('refuses accounts and times that are none', async () => {
      for (const wrong of [
        { account: 'alice.test' as never },
        { timestamp: '2025-03-12' },
        { authorization: { agent: 'me', authorization: grant({}) } as never },
      ]) {
        await assert.rejects(
          addBackup(blocks, state, { ...backupOf(4), ...wrong }),
          DecodeError
        )
      }
    })

    it('says which block of the state is missing', async () => {
      const account = (await readState(blocks, state))[alice]!
      for (const link of [account, state]) {
        blocks.delete(link)
        await assert.rejects(addBackup(blocks, state, backupOf(4)), (error) => {
          assert.ok(error instanceof MissingBlockError)
          assert.match(error.message, new RegExp(link.toString()))
          return true
        })
      }
    })
  })

  describe('removeBackup', () => {
    it('leaves a tombstone that lists do not show', async () => {
      const removal = { account: alice, timestamp: hour(2) }
      state = blocks.keep(await removeBackup(blocks, state, removal))
      assert.deepEqual(await listed(), [hour(1), hour(3)])
      const { backups } = await accountOf(state)
      const entry = await getEntry(blocks, backups, hour(2))
      assert.equal(entry?.toString(), TOMBSTONE.toString())
    })

    it('changes nothing the second time', async () => {
      const removal = { account: alice, timestamp: hour(2) }
      state = blocks.keep(await removeBackup(blocks, state, removal))
      const again = await removeBackup(blocks, state, removal)
      assert.equal(again.root.toString(), state.toString())
      assert.deepEqual(again.additions, [])
    })

    it('says so when there is no such backup or account', async () => {
      await assert.rejects(
        removeBackup(blocks, state, { account: alice, timestamp: hour(9) }),
        BackupNotFoundError
      )
      for (const root of [state, undefined]) {
        await assert.rejects(
          removeBackup(blocks, root, { account: bob, timestamp: hour(1) }),
          AccountNotFoundError
        )
      }
    })
  })

  describe('prune', () => {
    it('drops what is older and nothing else', async () => {
      const pruning = { account: alice, before: hour(2) }
      state = blocks.keep(await prune(blocks, state, pruning))
      assert.deepEqual(await listed(), [hour(2), hour(3)])
      assert.equal((await accountOf(state)).prunedBefore, hour(2))
    })

    it('drops tombstones too', async () => {
      const removal = { account: alice, timestamp: hour(1) }
      state = blocks.keep(await removeBackup(blocks, state, removal))
      const pruning = { account: alice, before: hour(2) }
      state = blocks.keep(await prune(blocks, state, pruning))
      const { backups } = await accountOf(state)
      assert.equal(await getEntry(blocks, backups, hour(1)), undefined)
    })

    it('never goes back', async () => {
      const pruning = { account: alice, before: hour(2) }
      state = blocks.keep(await prune(blocks, state, pruning))
      for (const before of [hour(1), hour(2)]) {
        const same = await prune(blocks, state, { account: alice, before })
        assert.equal(same.root.toString(), state.toString())
        assert.deepEqual(same.additions, [])
      }
    })

    it('may drop all', async () => {
      const pruning = { account: alice, before: hour(9) }
      state = blocks.keep(await prune(blocks, state, pruning))
      assert.deepEqual(await listed(), [])
      assert.equal(await latestBackup(blocks, state, alice), undefined)
    })

    it('refuses unknown accounts and times that are none', async () => {
      await assert.rejects(
        prune(blocks, state, { account: bob, before: hour(1) }),
        AccountNotFoundError
      )
      await assert.rejects(
        prune(blocks, state, { account: alice, before: 'yesterday' }),
        DecodeError
      )
    })
  })

  describe('letGo', () => {
    const now = Date.parse(hour(1))
    const authorization = {
      sealed: Uint8Array.of(1),
      expiration: now / 1000 + 1,
      seq: 1,
      recipient: `age1${'q'.repeat(58)}`,
    }
    const authorize = async (agent: typeof phone, seq: number) => {
      const change = {
        account: alice,
        agent,
        authorization: { ...authorization, seq },
      }
      state = blocks.keep(await setAuthorization(blocks, state, change))
    }
    const holding = async () =>
      (await listAuthorizations(blocks, state, alice))
        .filter(({ authorization }) => isInForce(authorization, now))
        .map(({ agent }) => agent)

    beforeEach(async () => {
      await authorize(phone, 1)
      await authorize(laptop, 1)
    })

    it('leaves nothing of the agent’s, and the others as they are', async () => {
      state = blocks.keep(
        await letGo(blocks, state, { account: alice, agent: laptop })
      )
      assert.deepEqual(await holding(), [phone])
      const [own] = await listAuthorizations(blocks, state, alice, {
        agent: laptop,
      })
      assert.deepEqual(own?.authorization, {
        sealed: new Uint8Array(),
        expiration: 0,
        seq: 1001,
      })
      assert.deepEqual(await listed(), [hour(1), hour(2), hour(3)])
      const again = await letGo(blocks, state, {
        account: alice,
        agent: laptop,
      })
      assert.deepEqual(again, { root: state, additions: [] })
    })

    it('is not undone by what the agent had under way, but by what comes later', async () => {
      const before = state
      await authorize(laptop, 3)
      const refreshed = state
      const gone = await letGo(blocks, before, {
        account: alice,
        agent: laptop,
      })
      blocks.keep(gone)
      for (const states of [
        [refreshed, gone.root],
        [gone.root, refreshed],
      ]) {
        state = blocks.keep(await mergeStates(blocks, states))
        assert.deepEqual(await holding(), [phone])
      }
      await authorize(laptop, 1002)
      assert.deepEqual((await holding()).sort(), [laptop, phone].sort())
    })

    it('says so when there is no such agent or account', async () => {
      await assert.rejects(
        letGo(blocks, state, {
          account: alice,
          agent: 'did:key:z6MkgGwb4xuUuddp6KsJqKNstgHUzkup95CyebHLDZZka9eU',
        }),
        AgentNotFoundError
      )
      await assert.rejects(
        letGo(blocks, state, { account: bob, agent: laptop }),
        AccountNotFoundError
      )
    })
  })

  describe('setAuthorization', () => {
    it('makes the account if there is none', async () => {
      const authorization = grant({ seq: 3 })
      const root = blocks.keep(await set(undefined, authorization))
      assert.deepEqual(await grantOf(root), authorization)
      assert.deepEqual(
        await Array.fromAsync(listBackups(blocks, root, alice)),
        []
      )
    })

    it('keeps the backups and the other agents', async () => {
      state = blocks.keep(await set(state, grant({ seq: 1 })))
      const revision = await setAuthorization(blocks, state, {
        account: alice,
        agent: laptop,
        authorization: grant({ seq: 2 }),
      })
      state = blocks.keep(revision)
      assert.equal((await grantOf(state)).seq, 1)
      assert.deepEqual(await listed(), [hour(1), hour(2), hour(3)])
    })

    it('keeps the greater: by seq, then expiration, then bytes', async () => {
      const ascending = [
        grant({ seq: 1, expiration: 9, sealed: 9 }),
        grant({ seq: 2, expiration: 1, sealed: 9 }),
        grant({ seq: 2, expiration: 2, sealed: 1 }),
        grant({ seq: 2, expiration: 2, sealed: 2 }),
      ]
      for (const [i, authorization] of ascending.entries()) {
        state = blocks.keep(await set(state, authorization))
        assert.deepEqual(await grantOf(state), authorization)
        for (const lesser of ascending.slice(0, i + 1)) {
          const same = await set(state, lesser)
          assert.equal(same.root.toString(), state.toString())
          assert.deepEqual(same.additions, [])
        }
      }
    })
  })

  async function listed(): Promise<string[]> {
    const list = await Array.fromAsync(listBackups(blocks, state, alice))
    return list.map(({ timestamp }) => timestamp)
  }

  async function accountOf(root: Link<State>) {
    return readAccount(blocks, (await readState(blocks, root))[alice]!)
  }

  async function grantOf(root: Link<State>): Promise<Authorization> {
    const { authorizations } = await accountOf(root)
    const agents = await readAuthorizations(blocks, authorizations)
    return readAuthorization(blocks, agents[phone]!)
  }

  function set(root: Link<State> | undefined, authorization: Authorization) {
    const change = { account: alice, agent: phone, authorization }
    return setAuthorization(blocks, root, change)
  }
})

function backupOf(n: number) {
  return { account: alice, timestamp: hour(n), backup: low }
}

function grant({ seq = 0, expiration = 0, sealed = 0 }): Authorization {
  return { sealed: Uint8Array.of(sealed), expiration, seq }
}
