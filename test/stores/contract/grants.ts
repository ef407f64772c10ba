import type { GrantReturn, GrantUpdate } from '../../../src/stores/index.ts'
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
    scopeVersion: 1,
    asked: ['preferences', 'mutes'],
    parts: ['preferences'],
    state: 'active',
    delegation: bytesOf('delegation'),
    created: now - 1,
    refreshed: now,
    ...changes,
  }
}

function returnOf(changes: Partial<GrantReturn> = {}): GrantReturn {
  return {
    id: 'one',
    space: alice,
    account,
    seq: 1,
    sealed: bytesOf('session'),
    expiration: 1_742_140_900,
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
    assert.equal(await grants.getRequest('other'), undefined)
    assert.deepEqual(await grants.getRequest('state'), request)
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
      answer: undefined,
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

  'a grant is put in the place of one state, if that is wanted': async (
    assert,
    { grants }
  ) => {
    const put = (seq: number, after: number) =>
      grants.put(updateOf({ seq }), now, { after })
    assert.equal(await put(2, 0), true)
    assert.equal(await put(3, 0), false)
    assert.equal(await put(4, 3), false)
    assert.equal(await put(2, 2), false)
    assert.equal((await grants.get(alice, account))?.seq, 2)
    assert.equal(await put(5, 2), true)
    assert.equal((await grants.get(alice, account))?.seq, 5)
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

  'an answer is kept until the grant is at its next state': async (
    assert,
    { grants }
  ) => {
    const answer = (seq: number, text = 'answer') =>
      grants.answered(alice, account, { seq, sealed: bytesOf(text) })
    const kept = async () => (await grants.get(alice, account))?.answer
    assert.equal(await answer(1), false)
    await grants.put(updateOf(), now)
    assert.equal(await answer(2), false)
    assert.equal(await kept(), undefined)
    assert.equal(await answer(1), true)
    assert.equal(await answer(1, 'the same again'), true)
    // Who only looks, or comes in vain, does not lose it.
    await grants.lease(alice, account, { owner: 'one', now, lease })
    await grants.release(alice, account, 'one')
    await grants.put(updateOf(), now + 1)
    assert.deepEqual(await kept(), bytesOf('the same again'))
    await grants.put(updateOf({ seq: 2 }), now + 2)
    assert.equal(await kept(), undefined)
    assert.equal(await answer(1), false)
    assert.equal(await answer(2), true)
    await grants.end(alice, account, { seq: 2, reason, now: now + 3 })
    assert.equal(await kept(), undefined)
    assert.equal(await answer(2), false)
  },

  'a grant ends, unless there is a newer one': async (assert, { grants }) => {
    await grants.put(updateOf({ seq: 2 }), now)
    await grants.end(alice, account, { seq: 1, reason, now: now + 1 })
    assert.equal((await grants.get(alice, account))?.state, 'active')
    await grants.end(alice, account, { seq: 2, reason, now: now + 1 })
    const ended = await grants.get(alice, account)
    assert.equal(ended?.state, 'ended')
    assert.deepEqual(ended?.reason, reason)
    await grants.resume(alice, account, { seq: 1, now: now + 1 })
    assert.equal((await grants.get(alice, account))?.state, 'ended')
    await grants.resume(alice, account, { seq: 2, now: now + 1 })
    const resumed = await grants.get(alice, account)
    assert.equal(resumed?.state, 'active')
    assert.equal(resumed?.reason, undefined)
    await grants.end(alice, account, { seq: 2, reason, now: now + 1 })
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

  'a grant that cannot be published is in the way of no other': async (
    assert,
    { grants }
  ) => {
    const third = `${account}2`
    await grants.put(updateOf(), now)
    await grants.put(updateOf({ space: bob }), now + 1)
    await grants.put(updateOf({ account: third }), now + 2)
    const next = async (before: number) => {
      const [first] = await grants.pending({ before, limit: 1 })
      return first
    }
    assert.deepEqual(await next(now + 5), { space: alice, account })
    await grants.attempted(alice, account, now + 5)
    assert.deepEqual(await next(now + 5), { space: bob, account })
    await grants.attempted(bob, account, now + 6)
    assert.deepEqual(await next(now + 5), { space: alice, account: third })
    await grants.attempted(alice, third, now + 7)
    assert.equal(await next(now + 4), undefined)
    assert.deepEqual(await next(now + 9), { space: alice, account })
    // What is new is not held up by what became of the one before.
    await grants.put(updateOf({ account: third, seq: 2 }), now + 8)
    assert.deepEqual(await next(now + 9), { space: alice, account: third })
  },

  'what is to be given back is kept along with what is in its place': async (
    assert,
    { grants }
  ) => {
    const giveBack = returnOf()
    assert.equal(
      await grants.put(updateOf({ seq: 2 }), now, { giveBack }),
      true
    )
    assert.deepEqual(await grants.returnsOf(alice, account), [giveBack])
    assert.deepEqual(await grants.returnsOf(bob, account), [])
    const late = { giveBack: returnOf({ id: 'two' }) }
    assert.equal(await grants.put(updateOf({ seq: 2 }), now, late), false)
    assert.deepEqual(await grants.returnsOf(alice, account), [giveBack])
    // Again, by who has not heard of the first time.
    await grants.addReturn(giveBack)
    await grants.addReturn(returnOf({ id: 'two' }))
    assert.equal((await grants.returnsOf(alice, account)).length, 2)
    await grants.removeReturn('one')
    await grants.removeReturn('one')
    const left = await grants.returnsOf(alice, account)
    assert.deepEqual(
      left.map(({ id }) => id),
      ['two']
    )
  },

  'what is to be given back is tried in turns, until it has expired': async (
    assert,
    { grants }
  ) => {
    const expires = now / 1000 + 10
    const late = returnOf({ id: 'two', expiration: expires + 1 })
    await grants.addReturn(returnOf({ expiration: expires }))
    await grants.addReturn(late)
    const due = async (before: number, at = now, limit = 10) => {
      const returns = await grants.returns({ before, now: at, limit })
      return returns.map(({ id }) => id)
    }
    assert.equal((await due(now)).length, 2)
    assert.equal((await due(now, now, 1)).length, 1)
    await grants.attemptedReturn('one', now + 5)
    assert.deepEqual(await due(now + 4), ['two'])
    await grants.attemptedReturn('two', now + 6)
    assert.deepEqual(await due(now + 6), ['one', 'two'])
    assert.deepEqual(await due(now + 6, expires * 1000 - 1), ['one', 'two'])
    assert.deepEqual(await due(now + 6, expires * 1000), ['two'])
    assert.deepEqual(await grants.returnsOf(alice, account), [late])
  },
}
