import assert from 'node:assert/strict'
import fc from 'fast-check'
import type { SchedulerPolicy } from '../../src/scheduler/index.ts'
import type { RunError } from '../../src/stores/index.ts'
import {
  accountOf,
  DAY,
  DELAY,
  HOUR,
  JOB_DELAY,
  MINUTE,
  POLICY,
  SECOND,
  World,
  type Course,
  type MadeRun,
} from './world.ts'

const START = Date.UTC(2026, 0, 1, 0, 0, 17)
const ALICE = accountOf('alice')
const BOB = accountOf('bob')
const HOURLY = { every: 3600 }
const HOST_DOWN: RunError = { name: 'HostError', message: 'the host is down' }

describe('scheduler, in fake time', function () {
  this.timeout(60_000)

  it('backs up every hour for thirty days', async () => {
    await using world = await startWorld()
    const { next = 0 } = await world.schedule(ALICE, HOURLY)
    await world.time.pass(30 * DAY)
    const runs = world.runsOf(ALICE)
    assert.equal(runs.length, 720)
    assertOnTime(runs, next)
    assertNeverTwiceAtOnce(runs)
  })

  const CHANGES = [
    {
      season: 'spring',
      from: '2026-03-05',
      days: 28,
      changes: {
        'Europe/Berlin': '2026-03-29',
        'America/New_York': '2026-03-08',
      },
    },
    {
      season: 'autumn',
      from: '2026-10-20',
      days: 15,
      changes: {
        'Europe/Berlin': '2026-10-25',
        'America/New_York': '2026-11-01',
      },
    },
  ]
  for (const { season, from, days, changes } of CHANGES) {
    it(`keeps the clocks of the timezones when they change in ${season}`, async () => {
      await using world = await startWorld(Date.parse(`${from}T12:00:00Z`))
      const made = []
      for (const [timezone, change] of Object.entries(changes)) {
        for (const hour of [2, 4]) {
          const account = accountOf(`${timezone}${hour === 2 ? 'two' : 'four'}`)
          await world.schedule(account, { cron: `30 ${hour} * * *`, timezone })
          made.push({ account, timezone, change, hour })
        }
      }
      await world.time.pass(days * DAY)
      for (const { account, timezone, change, hour } of made) {
        const format = new Intl.DateTimeFormat('sv', {
          timeZone: timezone,
          dateStyle: 'short',
          timeStyle: 'short',
        })
        const local = world
          .runsOf(account)
          .map(({ began }) => format.format(began - DELAY).split(' '))
        assert.equal(local.length, days)
        assert.equal(new Set(local.map(([day]) => day)).size, days)
        for (const [day, clock = ''] of local) {
          // In spring there is no half past two: it is any time near it.
          const isLeftOut = season === 'spring' && day === change && hour === 2
          const near = new RegExp(`^0${hour}:(2|3)`)
          assert.match(clock, isLeftOut ? /^0[123]:/ : near)
        }
      }
    })
  }

  it('waits for the end of a pause, and does not begin at once', async () => {
    await using world = await startWorld()
    const { next = 0 } = await world.schedule(ALICE, HOURLY)
    await world.time.pass(5 * HOUR)
    const before = world.runsOf(ALICE).length
    const end = world.time.now() + 8 * HOUR
    const paused = await world.pause(ALICE, end)
    assert.equal(paused.state, 'paused')
    await world.time.pass(8 * HOUR)
    assert.equal(world.runsOf(ALICE).length, before)
    assert.equal((await world.present(ALICE)).state, 'active')
    await world.time.pass(DAY)
    const runs = world.runsOf(ALICE)
    assert.equal(runs.length, before + 24)
    assertOnTime(runs.slice(before), next + 13 * HOUR)
  })

  it('goes on at the next regular time when it is resumed', async () => {
    await using world = await startWorld()
    const { next = 0 } = await world.schedule(ALICE, HOURLY)
    await world.pause(ALICE)
    await world.time.pass(2 * DAY + 7 * MINUTE)
    assert.deepEqual(world.runs, [])
    const resumed = await world.resume(ALICE)
    assert.ok((resumed.next ?? 0) > world.time.now())
    await world.time.pass(DAY)
    assert.equal(world.runs.length, 24)
    assert.equal(((resumed.next ?? 0) - next) % HOUR, 0)
    assertOnTime(world.runs, resumed.next ?? 0)
  })

  it('makes up once for three days in which the service was down', async () => {
    await using world = await startWorld()
    const { next = 0 } = await world.schedule(ALICE, HOURLY)
    await world.time.pass(10 * HOUR)
    const before = world.runsOf(ALICE).length
    await world.kill()
    await world.time.pass(3 * DAY)
    assert.equal(world.runsOf(ALICE).length, before)
    const back = world.time.now()
    world.start()
    await world.time.pass(10 * HOUR)
    const [made, ...regular] = world.runsOf(ALICE).slice(before)
    assert.ok(made && made.began - back <= DELAY)
    assert.equal(regular.length, 10)
    assertOnTime(regular, next + 82 * HOUR)
  })

  it('makes a backup up in which the service was killed', async () => {
    await using world = await startWorld()
    world.backUp = () => ({ takes: 20 * MINUTE })
    const { next = 0 } = await world.schedule(ALICE, HOURLY)
    await world.time.pass(next - world.time.now() + 10 * MINUTE)
    assert.equal(world.runs.length, 1)
    await world.kill()
    world.start()
    await world.time.pass(next + 59 * MINUTE - world.time.now())
    const [killed, again, ...others] = world.runs
    assert.deepEqual(others, [])
    assert.equal(killed?.ended, undefined)
    assert.ok(again?.ended)
    await world.time.pass(10 * HOUR)
    assert.equal(world.runs.length, 12)
  })

  it('does not make a backup again that was made before a kill', async () => {
    await using world = await startWorld()
    const { next = 0 } = await world.schedule(ALICE, { every: DAY / SECOND })
    const { schedules } = world.stores
    const settle = schedules.settle.bind(schedules)
    let isKilled = false
    // Killed when the run has ended, and nobody has noted that.
    schedules.settle = (...input) =>
      isKilled || !input[3].lastRun
        ? settle(...input)
        : new Promise(() => (isKilled = true))
    await world.time.pass(next - world.time.now() + HOUR)
    assert.ok(isKilled)
    await world.kill()
    world.start()
    await world.time.pass(2 * HOUR)
    assert.equal(world.runs.length, 1)
    const { lastRun, next: then } = await world.present(ALICE)
    assert.equal(lastRun?.outcome, 'incremental')
    assert.equal(then, next + DAY)
  })

  it('does nothing with a job whose schedule was settled before a kill', async () => {
    await using world = await startWorld()
    const { next = 0 } = await world.schedule(ALICE, { every: DAY / SECOND })
    const { schedules } = world.stores
    const settle = schedules.settle.bind(schedules)
    let isKilled = false
    schedules.settle = async (...input) => {
      const isOurs = await settle(...input)
      if (isKilled || !input[3].lastRun) return isOurs
      isKilled = true
      return new Promise(() => {})
    }
    await world.time.pass(next - world.time.now() + HOUR)
    assert.ok(isKilled)
    await world.kill()
    world.start()
    await world.time.pass(2 * HOUR)
    assert.equal(world.runs.length, 1)
    assert.equal((await world.present(ALICE)).next, next + DAY)
  })

  it('makes nothing up that waited to be tried again when it was paused', async () => {
    await using world = await startWorld()
    world.backUp = () => ({ takes: 20 * SECOND, error: HOST_DOWN })
    const { next = 0 } = await world.schedule(ALICE, { every: DAY / SECOND })
    await world.time.pass(next - world.time.now() + DELAY + 2 * MINUTE)
    assert.equal(world.runs.length, 1)
    await world.pause(ALICE)
    await world.time.pass(SECOND)
    const resumed = await world.resume(ALICE)
    assert.equal(resumed.next, next + DAY)
    await world.time.pass(12 * HOUR)
    assert.equal(world.runs.length, 1)
    assert.equal((await world.present(ALICE)).next, next + DAY)
  })

  it('keeps the times of a schedule that is made anew during a run of the old', async () => {
    await using world = await startWorld()
    world.backUp = () => ({ takes: 3 * HOUR })
    const { next = 0 } = await world.schedule(ALICE, {
      every: (30 * DAY) / SECOND,
    })
    await world.time.pass(next - world.time.now() + DELAY)
    assert.equal(world.runs.length, 1)
    await world.unschedule(ALICE)
    await world.schedule(ALICE, HOURLY)
    await world.time.pass(2 * HOUR)
    world.backUp = () => ({ takes: 20 * SECOND })
    await world.time.pass(DAY)
    assert.ok(world.runs.length >= 22, `${world.runs.length} runs`)
    const present = await world.present(ALICE)
    assert.ok((present.next ?? 0) - world.time.now() <= HOUR)
    assertNeverTwiceAtOnce(world.runs)
  })

  it('does not stop for a run that somebody else had made', async () => {
    await using world = await startWorld()
    const error = {
      name: 'Unauthorized',
      message: 'that of the other has ended',
    }
    world.backUp = () =>
      world.runs.length === 1
        ? { takes: 30 * MINUTE, error }
        : { takes: 20 * SECOND }
    const { next = 0 } = await world.schedule(ALICE, HOURLY)
    await world.time.pass(next - world.time.now() - MINUTE)
    await world.runNow(ALICE)
    await world.time.pass(HOUR)
    assert.equal(world.runs.length, 2)
    const { state, lastRun } = await world.present(ALICE)
    assert.equal(state, 'active')
    assert.equal(lastRun?.outcome, 'incremental')
  })

  it('makes its own run after one of another that had less', async () => {
    await using world = await startWorld()
    world.backUp = () => ({ takes: 30 * MINUTE })
    const { next = 0 } = await world.schedule(ALICE, HOURLY)
    await world.time.pass(next - world.time.now() - MINUTE)
    await world.runNow(ALICE, [])
    await world.time.pass(50 * MINUTE)
    assert.equal(world.runs.length, 2)
    assertNeverTwiceAtOnce(world.runs)
  })

  it('makes each backup once that waits for longer than a claim lasts', async () => {
    await using world = await startWorld(START, {
      perHost: 1,
      outstandingPerHost: 4,
      sweep: 5 * SECOND,
    })
    const accounts = Array.from({ length: 12 }, (_, at) =>
      accountOf('abcdefghijkl'[at]!)
    )
    world.backUp = () => ({ takes: 3 * MINUTE })
    const daily = { every: DAY / SECOND }
    for (const account of accounts) await world.schedule(account, daily)
    await world.time.pass(2 * DAY)
    await world.kill()
    // All are due at once, and one after the other takes longer than a lease.
    await world.time.pass(26 * HOUR)
    const before = world.runs.length
    world.start()
    await world.time.pass(3 * HOUR)
    const made = world.runs.slice(before)
    assert.equal(new Set(made.map(({ account }) => account)).size, 12)
    assert.ok(made.length <= 13, `${made.length} runs`)
    for (const account of accounts) {
      const { lastRun } = await world.present(account)
      assert.ok(lastRun && lastRun.finished > world.time.now() - 3 * HOUR)
    }
  })

  it('makes a run again that could not reach the Space', async () => {
    await using world = await startWorld()
    const error = { name: 'SpaceUnavailableError', message: 'status 503' }
    world.backUp = () =>
      world.runs.length === 1
        ? { takes: 20 * SECOND, error }
        : { takes: 20 * SECOND }
    const { next = 0 } = await world.schedule(ALICE, {
      every: (30 * DAY) / SECOND,
    })
    await world.time.pass(next - world.time.now() + HOUR)
    assert.equal(world.runs.length, 2)
    assert.equal((await world.present(ALICE)).lastRun?.outcome, 'incremental')
  })

  it('goes on at the next time after a job was given up', async () => {
    await using world = await startWorld()
    const { runs } = world.stores
    const { next = 0 } = await world.schedule(ALICE, { every: DAY / SECOND })
    const before = { ...runs }
    let failures = 0
    runs.list = async () => []
    runs.get = async () => {
      failures++
      throw new TypeError('a bug')
    }
    await world.time.pass(next - world.time.now() + 3 * HOUR)
    assert.equal(failures, POLICY.attempts)
    Object.assign(runs, before)
    const present = await world.present(ALICE)
    assert.equal(present.state, 'active')
    assert.equal(present.next, next + DAY)
    await world.time.pass(DAY)
    assert.equal((await world.present(ALICE)).lastRun?.outcome, 'incremental')
  })

  it('stops when the delegation ends, and goes on when it is renewed', async () => {
    await using world = await startWorld()
    const ending = await world.allow({
      expiration: Math.floor((START + 3 * DAY) / SECOND),
    })
    const { next = 0 } = await world.schedule(ALICE, HOURLY, ending)
    await world.time.pass(5 * DAY)
    const before = world.runsOf(ALICE)
    assert.equal(before.length, 72)
    const stopped = await world.present(ALICE)
    assert.equal(stopped.state, 'stopped')
    assert.equal(stopped.next, undefined)
    assert.match(stopped.reason?.message ?? '', /expired/)

    const renewed = await world.schedule(ALICE, HOURLY, await world.allow())
    assert.equal(renewed.state, 'active')
    assert.equal(renewed.reason, undefined)
    assert.equal(((renewed.next ?? 0) - next) % HOUR, 0)
    await world.time.pass(DAY)
    const after = world.runsOf(ALICE).slice(before.length)
    assert.equal(after.length, 24)
    assertOnTime(after, renewed.next ?? 0)
  })

  it('does not miss a run when the delegation is renewed in time', async () => {
    await using world = await startWorld()
    const ending = await world.allow({
      expiration: Math.floor((START + DAY) / SECOND),
    })
    const { next = 0 } = await world.schedule(ALICE, HOURLY, ending)
    await world.time.pass(20 * HOUR)
    await world.schedule(ALICE, HOURLY, await world.allow())
    await world.time.pass(28 * HOUR)
    assert.equal(world.runs.length, 48)
    assertOnTime(world.runs, next)
  })

  it('stops when the delegation is revoked', async () => {
    await using world = await startWorld()
    const delegation = await world.allow()
    await world.schedule(ALICE, HOURLY, delegation)
    await world.schedule(BOB, HOURLY, await world.allow({ expiration: 1e10 }))
    await world.time.pass(2 * HOUR)
    assert.equal(world.runsOf(ALICE).length, 2)
    await world.revoke(delegation)
    await world.time.pass(DAY)
    assert.equal(world.runsOf(ALICE).length, 2)
    const stopped = await world.present(ALICE)
    assert.equal(stopped.state, 'stopped')
    assert.match(stopped.reason?.message ?? '', /revoked/)
    assert.equal(world.runsOf(BOB).length, 26)
  })

  it('spreads the accounts that say every hour over the hour', async () => {
    await using world = await startWorld()
    const accounts = Array.from({ length: 120 }, (_, at) =>
      accountOf(`a${at.toString(5)}`.replaceAll('1', 'q').replaceAll('0', 'z'))
    )
    assert.equal(new Set(accounts).size, accounts.length)
    const delegation = await world.allow()
    const due: number[] = []
    for (const account of accounts) {
      due.push((await world.schedule(account, HOURLY, delegation)).next ?? 0)
    }
    await world.time.pass(HOUR + DELAY + 5 * MINUTE)
    const tenths = Map.groupBy(due, (next) =>
      Math.floor(((next - START) % HOUR) / (6 * MINUTE))
    )
    assert.equal(tenths.size, 10)
    for (const [, { length }] of tenths) {
      assert.ok(length >= 3 && length <= 27, `${length} in six minutes`)
    }
    for (const [at, account] of accounts.entries()) {
      const late = (world.runsOf(account)[0]?.began ?? 0) - (due[at] ?? 0)
      // Those of a host that is not known yet wait for one another.
      assert.ok(late >= 0 && late <= DELAY + 5 * MINUTE, `${late} ms late`)
    }
  })

  it('makes a run that failed again, later each time, and not for ever', async () => {
    await using world = await startWorld()
    const took = 20 * SECOND
    world.backUp = () => ({ takes: took, error: HOST_DOWN })
    const { next = 0 } = await world.schedule(ALICE, HOURLY)
    await world.time.pass(next - START + HOUR - MINUTE)
    assert.equal(world.runs.length, POLICY.attempts)
    for (const [at, { began }] of world.runs.entries()) {
      const before = world.runs[at - 1]
      if (!before) continue
      const wait = began - (before.ended ?? Infinity)
      const least = POLICY.backoff * 2 ** (at - 1)
      assert.ok(wait >= least, `attempt ${at + 1} came after ${wait} ms`)
      assert.ok(wait <= 2 * least + POLICY.poll + JOB_DELAY)
    }
    const failed = await world.present(ALICE)
    assert.equal(failed.state, 'active')
    assert.equal(failed.lastRun?.outcome, 'failed')
    assert.deepEqual(failed.lastRun.error, HOST_DOWN)
    assert.equal(failed.next, next + HOUR)
    world.backUp = () => ({ takes: took })
    await world.time.pass(3 * HOUR)
    assert.equal(world.runs.length, POLICY.attempts + 3)
  })

  it('leaves the others their times while a host is down for a day', async () => {
    await using world = await startWorld()
    world.hostOf = (account) =>
      account === BOB ? 'down.example' : 'up.example'
    let down = false
    world.backUp = (account): Course =>
      account === BOB && down
        ? { takes: 2 * MINUTE, error: HOST_DOWN }
        : { takes: 20 * SECOND }
    const { next = 0 } = await world.schedule(ALICE, HOURLY)
    await world.schedule(BOB, HOURLY)
    await world.time.pass(DAY)
    down = true
    await world.time.pass(DAY)
    down = false
    const seen = world.runsOf(BOB).length
    await world.time.pass(DAY)

    assert.equal(world.runsOf(ALICE).length, 72)
    assertOnTime(world.runsOf(ALICE), next)
    const failed = world.runsOf(BOB).filter(({ error }) => error)
    assert.ok(failed.length >= 24 && failed.length <= 24 * POLICY.attempts)
    assertNeverTwiceAtOnce(world.runsOf(BOB))
    const after = world.runsOf(BOB).slice(seen)
    assert.ok(after.length >= 24 && after.length <= 25)
    assert.ok(after.every(({ error }) => !error))
    assert.equal((await world.present(BOB)).state, 'active')
  })

  it('looks seldom after an account that is deactivated, until it is back', async () => {
    await using world = await startWorld()
    const gone = { name: 'AccountUnavailableError', message: 'deactivated' }
    world.backUp = () => ({ takes: SECOND, error: gone })
    await world.schedule(ALICE, HOURLY)
    await world.time.pass(2 * DAY)
    const looks = world.runsOf(ALICE)
    const most = Math.ceil((2 * DAY) / POLICY.absence)
    assert.ok(looks.length >= most / 2 && looks.length <= most)
    for (const [at, { began }] of looks.entries()) {
      const before = looks[at - 1]
      assert.ok(!before || began - before.began >= POLICY.absence)
    }
    const waiting = await world.present(ALICE)
    assert.equal(waiting.state, 'paused')
    assert.deepEqual(waiting.reason, gone)
    world.backUp = () => ({ takes: SECOND })
    await world.time.pass(POLICY.absence + 2 * HOUR)
    const back = await world.present(ALICE)
    assert.equal(back.state, 'active')
    assert.equal(back.reason, undefined)
    const seen = world.runsOf(ALICE).length
    await world.time.pass(DAY)
    assert.equal(world.runsOf(ALICE).length, seen + 24)
  })

  it('neither overlaps nor hurries, whatever happens', async () => {
    const minutes = (max: number) => fc.integer({ min: 0, max })
    const step = fc.oneof(
      fc.record({ do: fc.constant('pass' as const), minutes: minutes(200) }),
      fc.record({ do: fc.constant('pause' as const), minutes: minutes(300) }),
      fc.record({ do: fc.constant('pause for ever' as const) }),
      fc.record({ do: fc.constant('resume' as const) }),
      fc.record({
        do: fc.constant('schedule' as const),
        every: fc.constantFrom(900, 3600, 7200),
      }),
      fc.record({ do: fc.constant('down' as const), minutes: minutes(400) })
    )
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 1, maxLength: 12 }),
        fc.constantFrom(20 * SECOND, 7 * MINUTE, 40 * MINUTE),
        async (steps, takes) => {
          await using world = await startWorld()
          world.backUp = () => ({ takes })
          const rhythms: KeptRhythm[] = []
          const excuses: number[] = []
          const schedule = async (every: number) => {
            await world.schedule(ALICE, { every })
            const kept = await world.stores.schedules.get(
              world.space.did(),
              ALICE
            )
            const { anchor = 0 } = kept ?? {}
            const interval = every * SECOND
            const last = rhythms.at(-1)
            if (last?.anchor === anchor && last.interval === interval) return
            const from = world.time.now()
            if (last) excuses.push(from)
            rhythms.push({ from, interval, anchor })
          }
          await schedule(3600)
          for (const each of steps) {
            if (each.do === 'schedule') await schedule(each.every)
            else if (each.do === 'resume') await world.resume(ALICE)
            else if (each.do === 'pause for ever') await world.pause(ALICE)
            else if (each.do === 'pass') {
              await world.time.pass(each.minutes * MINUTE)
            } else if (each.do === 'pause') {
              const end = world.time.now() + (each.minutes + 1) * MINUTE
              await world.pause(ALICE, end)
            } else {
              excuses.push(world.time.now())
              await world.kill()
              await world.time.pass(each.minutes * MINUTE)
              world.start()
            }
          }
          await world.resume(ALICE)
          const before = world.runs.length
          await world.time.pass(5 * HOUR)
          assert.ok(world.runs.length > before, 'it goes on')
          assertNeverTwiceAtOnce(world.runs)
          assert.deepEqual(findHurried(world.runs, rhythms, excuses), [])
        }
      ),
      {
        numRuns: 30,
        // Two rhythms may have the same anchor.
        examples: [
          [
            [
              { do: 'pass', minutes: 1 },
              { do: 'schedule', every: 7200 },
              { do: 'schedule', every: 3600 },
            ],
            20 * SECOND,
          ],
        ],
      }
    )
  })
})

async function startWorld(
  start = START,
  policy: Partial<SchedulerPolicy> = {}
): Promise<World> {
  const world = await World.create(start, policy)
  world.start()
  return world
}

/** Each run began when it was due, one after another from the first on. */
function assertOnTime(runs: MadeRun[], first: number, interval = HOUR): void {
  for (const [at, { began }] of runs.entries()) {
    const late = began - (first + at * interval)
    assert.ok(late >= 0 && late <= DELAY, `run ${at} was ${late} ms late`)
  }
}

/** @param runs - of one account */
function assertNeverTwiceAtOnce(runs: MadeRun[]): void {
  for (const [at, { began }] of runs.entries()) {
    const before = runs[at - 1]
    if (!before) continue
    assert.ok((before.ended ?? before.killed ?? Infinity) <= began)
  }
}

/** A rhythm, and when somebody asked for it. Times in milliseconds. */
interface KeptRhythm {
  from: number
  interval: number
  anchor: number
}

/**
 * What was begun is made once more after a kill, and what was due by another
 * rhythm may still come: for as long as the leases of what was begun then.
 */
const EXCUSED = 90 * MINUTE

/**
 * @param excuses - Unix milliseconds at which the service was killed, or the
 *   rhythm changed
 * @returns runs that began in the same interval as the run before them
 */
function findHurried(
  runs: MadeRun[],
  rhythms: KeptRhythm[],
  excuses: number[]
): MadeRun[] {
  let last: { rhythm: KeptRhythm; interval: number } | undefined
  return runs.filter(({ began }) => {
    const rhythm = rhythms.findLast(({ from }) => from <= began)
    assert.ok(rhythm)
    const interval = Math.floor((began - rhythm.anchor) / rhythm.interval)
    const again = last?.rhythm === rhythm && last.interval === interval
    last = { rhythm, interval }
    return (
      again &&
      !excuses.some((event) => event <= began && event > began - EXCUSED)
    )
  })
}
