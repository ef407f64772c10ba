import type { GrantUpdate } from '../../../src/stores/index.ts'
import type { Contract } from './contract.ts'
import { account, alice, bob, bytesOf } from './samples.ts'

const now = 1_742_140_800_000
const lease = 30_000

function updateOf(changes: Partial<GrantUpdate> = {}): GrantUpdate {
  return {
    space: alice,
    account,
    seq: 1,
    sealed: bytesOf('sealed'),
    expiration: 1_742_140_900,
    recipient: 'age1',
    scope: 'atproto',
    parts: ['preferences'],
    state: 'active',
    delegation: bytesOf('delegation'),
    created: now - 1,
    refreshed: now,
    ...changes,
  }
}

const reason = { name: 'GrantEndedError', message: 'it has ended' }

export const grantStoreContract: Contract = {
  'a request is given out once': async (assert, { grants }) => {
    const request = {
      state: 'state',
      space: alice,
      account,
      sealed: bytesOf('sealed'),
      delegation: bytesOf('delegation'),
      expires: now + 1,
    }
    await grants.addRequest(request, now)
    assert.equal(await grants.countRequests(alice, now), 1)
    assert.equal(await grants.countRequests(alice, now + 1), 0)
    assert.equal(await grants.countRequests(bob, now), 0)
    assert.equal(await grants.takeRequest('other'), undefined)
    const taken = await Promise.all([
      grants.takeRequest('state'),
      grants.takeRequest('state'),
    ])
    assert.deepEqual(
      taken.filter((each) => each !== undefined),
      [request]
    )
    assert.equal(await grants.takeRequest('state'), undefined)
  },

  'requests that have expired are forgotten': async (assert, { grants }) => {
    const request = (state: string, expires: number) => ({
      state,
      space: alice,
      account,
      sealed: bytesOf('sealed'),
      delegation: bytesOf('delegation'),
      expires,
    })
    await grants.addRequest(request('early', now), now - 1)
    await grants.addRequest(request('late', now + 2), now)
    assert.equal(await grants.takeRequest('early'), undefined)
    assert.equal((await grants.takeRequest('late'))?.state, 'late')
  },

  'a grant is as it was put': async (assert, { grants }) => {
    assert.equal(await grants.get(alice, account), undefined)
    assert.equal(await grants.put(updateOf(), now), true)
    assert.deepEqual(await grants.get(alice, account), {
      ...updateOf(),
      reason: undefined,
      refreshing: undefined,
      published: 0,
      updated: now,
    })
    assert.equal(await grants.get(bob, account), undefined)
    assert.deepEqual(await grants.list(bob), [])
    const [listed] = await grants.list(alice)
    assert.deepEqual(listed, await grants.get(alice, account))
  },

  'a grant never goes back': async (assert, { grants }) => {
    await grants.put(updateOf({ seq: 2 }), now)
    for (const seq of [1, 2]) {
      const update = updateOf({ seq, sealed: bytesOf('older') })
      assert.equal(await grants.put(update, now + 1), false)
    }
    const kept = await grants.get(alice, account)
    assert.deepEqual(kept?.sealed, bytesOf('sealed'))
    assert.equal(await grants.put(updateOf({ seq: 3 }), now + 1), true)
  },

  'of two who put at once one is first': async (assert, { grants }) => {
    const puts = await Promise.all(
      ['one', 'two', 'three'].map((name) =>
        grants.put(updateOf({ sealed: bytesOf(name) }), now)
      )
    )
    assert.equal(puts.filter((isNewest) => isNewest).length, 1)
  },

  'a lease keeps others away until it ends': async (assert, { grants }) => {
    const take = (owner: string, at: number) =>
      grants.lease(alice, account, { owner, now: at, lease })
    assert.equal(await take('one', now), false)
    await grants.put(updateOf(), now)
    assert.equal(await take('one', now), true)
    assert.equal(await take('two', now + lease - 1), false)
    assert.equal(await take('one', now + 1), true)
    assert.equal(await take('two', now + 1 + lease), true)
    await grants.release(alice, account, 'one')
    assert.equal(await take('one', now + 2 + lease), false)
    await grants.release(alice, account, 'two')
    assert.equal(await take('one', now + 2 + lease), true)
  },

  'a refresh is noted by who has the lease, until its end is known': async (
    assert,
    { grants }
  ) => {
    await grants.put(updateOf(), now)
    const take = (owner: string, at = now) =>
      grants.lease(alice, account, { owner, now: at, lease })
    const begin = (owner: string, at = now) =>
      grants.refreshing(alice, account, { owner, now: at, lease })
    const begun = async () => (await grants.get(alice, account))?.refreshing
    assert.equal(await begin('one'), false)
    await take('one')
    assert.equal(await begin('two'), false)
    assert.equal(await begin('one', now + lease), false)
    assert.equal(await begun(), undefined)
    assert.equal(await begin('one', now + 1), true)
    assert.equal(await begun(), now + 1)
    // It has the lease for as long as if it had taken it now.
    assert.equal(await take('two', now + lease), false)
    assert.equal(await take('two', now + 1 + lease), true)
    assert.equal(await begun(), now + 1)
    await grants.release(alice, account, 'one')
    assert.equal(await begun(), now + 1)
    await grants.release(alice, account, 'two')
    assert.equal(await begun(), undefined)

    await take('one')
    await begin('one')
    await grants.put(updateOf({ seq: 2 }), now + 2)
    assert.equal(await begun(), undefined)
  },

  'a grant ends, unless there is a newer one': async (assert, { grants }) => {
    await grants.put(updateOf({ seq: 2 }), now)
    await grants.end(alice, account, { seq: 1, reason, now: now + 1 })
    assert.equal((await grants.get(alice, account))?.state, 'active')
    await grants.end(alice, account, { seq: 2, reason, now: now + 1 })
    const ended = await grants.get(alice, account)
    assert.equal(ended?.state, 'ended')
    assert.deepEqual(ended?.reason, reason)
    await grants.put(updateOf({ seq: 3 }), now + 2)
    const renewed = await grants.get(alice, account)
    assert.equal(renewed?.state, 'active')
    assert.equal(renewed?.reason, undefined)
  },

  'what the clock has leaves, and what it has not stays': async (
    assert,
    { grants }
  ) => {
    await grants.put(updateOf(), now)
    await grants.put(updateOf({ space: bob }), now + 1)
    const pending = (before: number, limit = 10) =>
      grants.pending({ before, limit })
    assert.deepEqual(await pending(now - 1), [])
    assert.deepEqual(await pending(now), [{ space: alice, account }])
    assert.equal((await pending(now + 1)).length, 2)
    assert.equal((await pending(now + 1, 1)).length, 1)

    await grants.put(updateOf({ seq: 2 }), now + 2)
    await grants.published(alice, account, 1)
    assert.equal((await grants.get(alice, account))?.published, 0)
    await grants.published(alice, account, 2)
    const published = await grants.get(alice, account)
    assert.equal(published?.published, 2)
    assert.equal(published?.sealed, undefined)
    assert.deepEqual(await pending(now + 9), [{ space: bob, account }])
  },
}
