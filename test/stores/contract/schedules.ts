import type { ScheduleDecision, Stores } from '../../../src/stores/index.ts'
import type { Contract } from './contract.ts'
import { account, alice, bob, bytesOf, decisionOf } from './samples.ts'

const now = 1_742_140_800_000
const lease = 30_000
const HOUR = 3_600_000

const claim = { now, limit: 10, owner: 'one', lease }

function put(
  { schedules }: Pick<Stores, 'schedules'>,
  changes: Partial<ScheduleDecision> = {},
  { space = alice, of = account, at = now } = {}
) {
  return schedules.decide(space, of, () => decisionOf(changes), at)
}

export const scheduleStoreContract: Contract = {
  'a schedule is kept with all that was decided': async (assert, stores) => {
    const { schedules } = stores
    assert.equal(await schedules.get(alice, account), undefined)
    assert.equal(await schedules.delegation(alice, account), undefined)
    const { delegation, ...decision } = decisionOf()
    const schedule = await put(stores)
    assert.deepEqual(schedule, {
      ...decision,
      space: alice,
      account,
      delegation: {
        cid: delegation?.cid,
        expiration: delegation?.expiration,
      },
      reason: undefined,
      pausedUntil: undefined,
      lastRun: undefined,
      created: now,
      updated: now,
      owner: undefined,
      leaseExpiration: undefined,
      begun: undefined,
    })
    assert.deepEqual(await schedules.get(alice, account), schedule)
    assert.deepEqual(await schedules.delegation(alice, account), delegation)
  },

  'what may be left out is left out': async (assert, stores) => {
    const decision: ScheduleDecision = {
      rhythm: { cron: '0 4 * * *', timezone: 'Europe/Berlin' },
      anchor: 0,
      delegation: { cid: 'bafy', bytes: new Uint8Array() },
      state: 'active',
    }
    const schedule = await stores.schedules.decide(
      alice,
      account,
      () => decision,
      now
    )
    assert.deepEqual(schedule?.rhythm, decision.rhythm)
    assert.equal(schedule?.include, undefined)
    assert.equal(schedule?.next, undefined)
    assert.equal(schedule?.host, undefined)
    assert.deepEqual(schedule?.delegation, {
      cid: 'bafy',
      expiration: undefined,
    })
  },

  'there is one for each account in each Space': async (assert, stores) => {
    const { schedules } = stores
    await put(stores)
    await put(stores, { rhythm: { every: 60 } }, { at: now + 1 })
    await put(stores, {}, { of: 'did:plc:B' })
    await put(stores, {}, { of: 'did:plc:a' })
    await put(stores, {}, { space: bob })
    const listed = await schedules.list(alice)
    assert.deepEqual(
      listed.map((schedule) => schedule.account),
      ['did:plc:B', 'did:plc:a', account]
    )
    assert.deepEqual(listed[2]?.rhythm, { every: 60 })
    assert.equal(listed[2]?.created, now)
    assert.equal(listed[2]?.updated, now + 1)
    assert.equal(await schedules.count(alice), 3)
    assert.equal(await schedules.count(bob), 1)
    assert.equal(await schedules.count('did:key:nobody'), 0)
  },

  'a decision sees what there is, and may leave it': async (assert, stores) => {
    const { schedules } = stores
    const seen: unknown[] = []
    const look = (present: unknown) => {
      seen.push(present)
      return undefined
    }
    assert.equal(await schedules.decide(alice, account, look, now), undefined)
    const schedule = await put(stores)
    assert.deepEqual(
      await schedules.decide(alice, account, look, now + 1),
      schedule
    )
    assert.deepEqual(seen, [undefined, schedule])
    assert.deepEqual(await schedules.get(alice, account), schedule)
  },

  'a decision that fails changes nothing': async (assert, stores) => {
    const { schedules } = stores
    const fail = () => {
      throw new RangeError('no')
    }
    await assert.rejects(schedules.decide(alice, account, fail, now), {
      name: 'RangeError',
    })
    const { delegation: _, ...without } = decisionOf()
    await assert.rejects(
      schedules.decide(alice, account, () => without, now),
      { name: 'TypeError' }
    )
    assert.equal(await schedules.get(alice, account), undefined)
  },

  'a delegation stays unless there is another': async (assert, stores) => {
    const { schedules } = stores
    const { delegation, ...decision } = decisionOf()
    await put(stores)
    await schedules.decide(
      alice,
      account,
      () => ({ ...decision, state: 'paused', next: undefined }),
      now
    )
    assert.deepEqual(await schedules.delegation(alice, account), delegation)
    const renewed = { cid: 'renewed', bytes: bytesOf('renewed') }
    const schedule = await put(stores, { delegation: renewed })
    assert.deepEqual(schedule?.delegation, {
      cid: 'renewed',
      expiration: undefined,
    })
    assert.deepEqual(await schedules.delegation(alice, account), {
      ...renewed,
      expiration: undefined,
    })
  },

  'what is removed is gone': async (assert, stores) => {
    const { schedules } = stores
    const schedule = await put(stores)
    await put(stores, {}, { space: bob })
    assert.deepEqual(await schedules.remove(alice, account), schedule)
    assert.equal(await schedules.remove(alice, account), undefined)
    assert.equal(await schedules.get(alice, account), undefined)
    assert.equal(await schedules.delegation(alice, account), undefined)
    assert.deepEqual(await schedules.claimDue({ ...claim, now: 2 * now }), [
      await schedules.get(bob, account),
    ])
  },

  'those that are due the longest are claimed first': async (
    assert,
    stores
  ) => {
    const { schedules } = stores
    await put(stores, { next: now - 1 }, { of: 'second' })
    await put(stores, { next: now - 2 }, { of: 'first' })
    await put(stores, { next: now }, { of: 'third' })
    await put(stores, { next: now + 1 }, { of: 'later' })
    const batch = await schedules.claimDue({ ...claim, limit: 2 })
    assert.deepEqual(
      batch.map((schedule) => schedule.account),
      ['first', 'second']
    )
    for (const schedule of batch) {
      assert.equal(schedule.owner, 'one')
      assert.equal(schedule.leaseExpiration, now + lease)
      assert.deepEqual(await schedules.get(alice, schedule.account), schedule)
    }
    const rest = await schedules.claimDue(claim)
    assert.deepEqual(
      rest.map((schedule) => schedule.account),
      ['third']
    )
    assert.deepEqual(await schedules.claimDue(claim), [])
  },

  'neither stopped nor paused schedules are due': async (assert, stores) => {
    const { schedules } = stores
    const stopped = await put(
      stores,
      { state: 'stopped', next: now },
      { of: 'stopped' }
    )
    assert.equal(stopped?.next, undefined)
    await put(stores, { state: 'paused', next: undefined }, { of: 'paused' })
    await put(
      stores,
      { state: 'paused', pausedUntil: now + 1, next: now + HOUR },
      { of: 'paused for some time' }
    )
    assert.deepEqual(await schedules.claimDue(claim), [])
    const later = { ...claim, now: now + HOUR }
    const [schedule, ...others] = await schedules.claimDue(later)
    assert.deepEqual(others, [])
    assert.equal(schedule?.account, 'paused for some time')
    assert.equal(schedule?.state, 'active')
    assert.equal(schedule?.pausedUntil, undefined)
  },

  'what belongs to a claim is written with it': async (assert, stores) => {
    const { schedules, spaces } = stores
    await put(stores)
    const batch = await schedules.claimDue(
      claim,
      async (claimed, transaction) => {
        await transaction
          .insertInto('spaces')
          .values({
            space: claimed[0]?.account ?? '',
            provisioned: 1,
            checked: 7,
          })
          .execute()
        const rows = await transaction
          .selectFrom('spaces')
          .select(['space as name', 'checked'])
          .execute()
        assert.deepEqual(
          rows.map((row) => ({ ...row })),
          [{ name: account, checked: 7 }]
        )
      }
    )
    assert.equal(batch.length, 1)
    assert.deepEqual(await spaces.get(account), {
      provisioned: true,
      checked: 7,
    })
  },

  'nothing is claimed if what belongs to it cannot be written': async (
    assert,
    stores
  ) => {
    const { schedules, spaces } = stores
    const schedule = await put(stores)
    await assert.rejects(
      schedules.claimDue(claim, async (_, transaction) => {
        await transaction
          .insertInto('spaces')
          .values({ space: 'x', provisioned: 1, checked: 7 })
          .execute()
        throw new RangeError('no')
      }),
      { name: 'RangeError' }
    )
    assert.equal(await spaces.get('x'), undefined)
    assert.deepEqual(await schedules.get(alice, account), schedule)
  },

  'nothing is written where nothing is claimed': async (assert, stores) => {
    let calls = 0
    const { schedules } = stores
    const count = async () => void calls++
    await schedules.claimDue(claim, count)
    assert.equal(calls, 0)
    await put(stores)
    await schedules.claimDue(claim, count)
    assert.equal(calls, 1)
  },

  'a settled schedule goes on at its next time': async (assert, stores) => {
    const { schedules } = stores
    await put(stores)
    await schedules.claimDue(claim)
    const lastRun = {
      run: 'bafyrun',
      finished: now + 5,
      outcome: 'incremental',
    } as const
    const settled = await schedules.settle(alice, account, 'one', {
      state: 'active',
      next: now + HOUR,
      lastRun,
      host: 'pds.example',
      now: now + 6,
    })
    assert.equal(settled, true)
    const schedule = await schedules.get(alice, account)
    assert.equal(schedule?.state, 'active')
    assert.equal(schedule?.next, now + HOUR)
    assert.equal(schedule?.host, 'pds.example')
    assert.equal(schedule?.owner, undefined)
    assert.equal(schedule?.leaseExpiration, undefined)
    assert.equal(schedule?.updated, now + 6)
    assert.deepEqual(schedule?.lastRun, lastRun)
    assert.deepEqual(await schedules.claimDue(claim), [])
    const later = { ...claim, now: now + HOUR, owner: 'two' }
    assert.equal((await schedules.claimDue(later))[0]?.owner, 'two')
    await schedules.settle(alice, account, 'two', {
      state: 'active',
      next: now + 2 * HOUR,
      now: now + HOUR,
    })
    const again = await schedules.get(alice, account)
    assert.deepEqual(again?.lastRun, lastRun)
    assert.equal(again?.host, 'pds.example')
  },

  'a schedule that stops says why, and is never due': async (
    assert,
    stores
  ) => {
    const { schedules } = stores
    await put(stores)
    await schedules.claimDue(claim)
    const reason = { name: 'DelegationExpired', message: 'é\0' }
    await schedules.settle(alice, account, 'one', {
      state: 'stopped',
      reason,
      next: now,
      now,
    })
    const schedule = await schedules.get(alice, account)
    assert.equal(schedule?.state, 'stopped')
    assert.deepEqual(schedule?.reason, reason)
    assert.equal(schedule?.next, undefined)
    assert.deepEqual(await schedules.claimDue({ ...claim, now: 2 * now }), [])
    const renewed = await put(stores)
    assert.equal(renewed?.state, 'active')
    assert.equal(renewed?.reason, undefined)
    assert.equal((await schedules.claimDue(claim)).length, 1)
  },

  'one that pauses by itself looks again at its next time': async (
    assert,
    stores
  ) => {
    const { schedules } = stores
    await put(stores)
    await schedules.claimDue(claim)
    const reason = { name: 'AccountDeactivated', message: 'deactivated' }
    const next = now + HOUR
    const settlement = { state: 'paused', reason, next, now } as const
    await schedules.settle(alice, account, 'one', settlement)
    assert.equal((await schedules.get(alice, account))?.state, 'paused')
    const [schedule] = await schedules.claimDue({ ...claim, now: next })
    assert.equal(schedule?.state, 'active')
    assert.equal(schedule?.reason, undefined)
  },

  'what was decided while it was claimed stands': async (assert, stores) => {
    const { schedules } = stores
    await put(stores)
    await schedules.claimDue(claim)
    const { delegation: _, ...decision } = decisionOf({
      state: 'paused',
      pausedUntil: now + 5,
      next: now + 7,
    })
    const paused = await schedules.decide(alice, account, () => decision, now)
    assert.equal(paused?.owner, 'one')
    const lastRun = {
      run: 'bafyrun',
      finished: now,
      outcome: 'failed',
      error: { name: 'HostError', message: 'no answer' },
    } as const
    assert.equal(
      await schedules.settle(alice, account, 'one', {
        state: 'stopped',
        reason: { name: 'Expired', message: 'expired' },
        lastRun,
        now,
      }),
      true
    )
    const schedule = await schedules.get(alice, account)
    assert.equal(schedule?.state, 'paused')
    assert.equal(schedule?.reason, undefined)
    assert.equal(schedule?.next, now + 7)
    assert.equal(schedule?.pausedUntil, now + 5)
    assert.equal(schedule?.owner, undefined)
    assert.deepEqual(schedule?.lastRun, lastRun)
    await schedules.claimDue({ ...claim, now: now + 7 })
    await schedules.settle(alice, account, 'one', {
      state: 'active',
      next: now + HOUR,
      now,
    })
    assert.equal((await schedules.get(alice, account))?.next, now + HOUR)
  },

  'who has no claim can change nothing': async (assert, stores) => {
    const { schedules } = stores
    const attempts = async (owner: string) => [
      await schedules.renewLease(alice, account, owner, now * 2),
      await schedules.settle(alice, account, owner, {
        state: 'stopped',
        now,
      }),
    ]
    assert.deepEqual(await attempts('one'), [false, false])
    await put(stores)
    assert.deepEqual(await attempts('one'), [false, false])
    await schedules.claimDue(claim)
    const before = await schedules.get(alice, account)
    assert.deepEqual(await attempts('two'), [false, false])
    assert.deepEqual(await schedules.get(alice, account), before)
    assert.deepEqual(await attempts('one'), [true, true])
    assert.deepEqual(await attempts('one'), [false, false])
  },

  'a claim is released when its lease has expired': async (assert, stores) => {
    const { schedules } = stores
    await put(stores)
    await put(stores, { next: now + HOUR }, { space: bob })
    await schedules.claimDue(claim)
    const at = (time: number) => schedules.expired({ now: time, limit: 10 })
    const release = (owner: string, time: number) =>
      schedules.release(alice, account, owner, time)
    assert.deepEqual(await at(now + lease - 1), [])
    await schedules.renewLease(alice, account, 'one', now + 2 * lease)
    assert.deepEqual(await at(now + lease), [])
    assert.equal(await release('one', now + lease), false)
    // Nobody else takes it before it is released.
    const late = { ...claim, now: now + 3 * lease, owner: 'two' }
    assert.deepEqual(await schedules.claimDue(late), [])
    assert.deepEqual(await at(now + 2 * lease), [
      { space: alice, account, owner: 'one' },
    ])
    assert.equal(await release('two', now + 2 * lease), false)
    assert.equal(await release('one', now + 2 * lease), true)
    assert.equal(await release('one', now + 2 * lease), false)
    assert.deepEqual(await at(now + 2 * lease), [])
    const [schedule] = await schedules.claimDue(late)
    assert.equal(schedule?.owner, 'two')
    assert.equal(schedule?.next, decisionOf().next)
  },

  'claims are found those first that expired first': async (assert, stores) => {
    const { schedules } = stores
    for (const [index, of] of ['a', 'b', 'c'].entries()) {
      await put(stores, {}, { of })
      await schedules.claimDue({ ...claim, lease: lease - index })
    }
    const expired = await schedules.expired({ now: now + lease, limit: 2 })
    assert.deepEqual(
      expired.map(({ account }) => account),
      ['c', 'b']
    )
  },

  'some of what is due may be due later instead': async (assert, stores) => {
    const { schedules } = stores
    const names = ['a', 'b', 'c']
    for (const name of names) await put(stores, {}, { of: name })
    const at = { a: now + 7, c: 2 ** 41 } as Record<string, number>
    await schedules.claimDue(claim, async (due) =>
      due.flatMap(({ space, account }) => {
        const next = at[account]
        return next === undefined ? [] : [{ space, account, next }]
      })
    )
    for (const name of names) {
      const schedule = await schedules.get(alice, name)
      assert.equal(schedule?.owner, name === 'b' ? 'one' : undefined)
      assert.equal(schedule?.next, at[name] ?? decisionOf().next)
      assert.equal(schedule?.state, 'active')
    }
    const again = await schedules.claimDue({ ...claim, now: now + 7 })
    assert.deepEqual(
      again.map(({ account }) => account),
      ['a']
    )
    // Of a claim that is somebody else's nothing is put off.
    await schedules.claimDue(
      { ...claim, now: 2 ** 41, owner: 'two' },
      async () => [{ space: alice, account: 'b', next: 1 }]
    )
    assert.equal((await schedules.get(alice, 'b'))?.owner, 'one')
  },

  'who has the claim may begin, and go on': async (assert, stores) => {
    const { schedules } = stores
    const begin = (owner: string, now: number) =>
      schedules.begin(alice, account, owner, { leaseExpiration: now + 1, now })
    assert.equal(await begin('one', now), undefined)
    await put(stores)
    assert.equal(await begin('one', now), undefined)
    await schedules.claimDue(claim)
    assert.equal(await begin('two', now), undefined)
    const begun = await begin('one', now)
    assert.equal(begun?.begun, now)
    assert.equal(begun?.leaseExpiration, now + 1)
    assert.deepEqual(await schedules.get(alice, account), begun)
    assert.equal((await begin('one', now + 5))?.begun, now)
    const settlement = { state: 'active', next: now, now } as const
    await schedules.settle(alice, account, 'one', settlement)
    assert.equal(await begin('one', now), undefined)
    const [claimed] = await schedules.claimDue({ ...claim, owner: 'two' })
    assert.equal(claimed?.begun, undefined)
  },

  'a decision may take a claim away': async (assert, stores) => {
    const { schedules } = stores
    await put(stores)
    await schedules.claimDue(claim)
    await schedules.begin(alice, account, 'one', { leaseExpiration: now, now })
    const next = now + HOUR
    const decided = await put(stores, { next, unclaims: true })
    assert.equal(decided?.owner, undefined)
    assert.equal(decided?.begun, undefined)
    const settlement = { state: 'active', next: now, now } as const
    assert.equal(
      await schedules.settle(alice, account, 'one', settlement),
      false
    )
    assert.equal((await schedules.get(alice, account))?.next, next)
    assert.deepEqual(await schedules.claimDue(claim), [])
  },

  'figures count what is due and what is about to end, up to a limit': async (
    assert,
    stores
  ) => {
    const { schedules } = stores
    const none = { now, ending: [now + HOUR], limit: 10 }
    assert.deepEqual(await schedules.figures(none), { due: 0, ending: [0] })
    const DAY = 24 * HOUR
    const wanted: [string, Partial<ScheduleDecision>, number | undefined][] = [
      ['due', { next: now - 5 }, now + HOUR],
      ['due-now', { next: now }, now + 3 * DAY],
      ['later', { next: now + 1 }, now],
      ['paused', { next: undefined, state: 'paused' }, now + DAY],
      ['stopped', { next: undefined, state: 'stopped' }, now + HOUR],
      ['forever', { next: now + 1 }, undefined],
    ]
    for (const [of, changes, expiration] of wanted) {
      const delegation = { cid: of, bytes: bytesOf(of), expiration }
      await put(stores, { ...changes, delegation }, { of })
    }
    const ending = [now + DAY, now + 7 * DAY]
    assert.deepEqual(await schedules.figures({ now, ending, limit: 10 }), {
      due: 2,
      oldest: now - 5,
      ending: [2, 3],
    })
    assert.deepEqual(await schedules.figures({ now, ending, limit: 1 }), {
      due: 1,
      oldest: now - 5,
      ending: [1, 1],
    })
    const waiting = async () => {
      const { due, oldest } = await schedules.figures({
        now,
        ending: [],
        limit: 10,
      })
      return { due, oldest }
    }
    // What is claimed waits until somebody begins with it.
    const [first] = await schedules.claimDue({ ...claim, limit: 1 })
    assert.deepEqual(await waiting(), { due: 2, oldest: now - 5 })
    const options = { leaseExpiration: now + 1, now }
    await schedules.begin(alice, first!.account, 'one', options)
    assert.deepEqual(await waiting(), { due: 1, oldest: now })
  },
}
