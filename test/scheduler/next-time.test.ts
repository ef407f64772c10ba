import assert from 'node:assert/strict'
import {
  anchorOf,
  CRON_SPREAD,
  nextTime,
  readRhythm,
  RHYTHM_LIMITS,
  type Timed,
} from '../../src/scheduler/next-time.ts'
import type { Rhythm } from '../../src/stores/index.ts'

const MINUTE = 60_000
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

const NOW = Date.parse('2026-03-10T12:34:56.789Z')

function scheduleOf(
  rhythm: Rhythm,
  { account = 'did:plc:account', space = 'did:key:alice', now = NOW } = {}
): Timed {
  const schedule = { space, account, rhythm }
  return { ...schedule, anchor: anchorOf(schedule, now) }
}

/** The times in a span, as a scheduler comes to them that is always there. */
function timesBetween(schedule: Timed, from: number, to: number): number[] {
  const times: number[] = []
  for (
    let time = nextTime(schedule, from);
    time <= to;
    time = nextTime(schedule, time)
  ) {
    times.push(time)
  }
  return times
}

const iso = (time: number) => new Date(time).toISOString()

/** Times by the minute, each in the minute that it belongs to. */
function minutesOf(times: number[]): string[] {
  return times.map((time) => iso(time).slice(0, 16))
}

function gapsOf(times: number[]): number[] {
  return times.slice(1).map((time, at) => time - (times[at] ?? 0))
}

describe('next times', () => {
  describe('of every', () => {
    it('come 720 times in 30 days, for every hour', () => {
      for (let index = 0; index < 50; index += 1) {
        const schedule = scheduleOf(
          { every: 3600 },
          { account: `did:${index}` }
        )
        const times = timesBetween(schedule, NOW, NOW + 30 * DAY)
        assert.ok(Math.abs(times.length - 720) <= 1, `${times.length}`)
        assert.deepEqual(new Set(gapsOf(times)), new Set([HOUR]))
      }
    })

    it('begin within an hour, and within the first interval', () => {
      for (const every of [300, 3600, DAY / 1000, (365 * DAY) / 1000]) {
        for (let index = 0; index < 50; index += 1) {
          const schedule = scheduleOf({ every }, { account: `did:${index}` })
          const wait = nextTime(schedule, NOW) - NOW
          assert.ok(wait > 0 && wait <= Math.min(every * 1000, HOUR))
        }
      }
    })

    it('are spread by the Space and by the account', () => {
      const buckets = Array.from({ length: 60 }, () => 0)
      for (let index = 0; index < 6000; index += 1) {
        const schedule = scheduleOf(
          { every: 3600 },
          { account: `did:plc:${index % 100}`, space: `did:key:${index / 100}` }
        )
        const bucket = Math.floor((nextTime(schedule, NOW) % HOUR) / MINUTE)
        buckets[bucket] = (buckets[bucket] ?? 0) + 1
      }
      for (const count of buckets) assert.ok(count > 50 && count < 150)
    })

    it('are the same for whoever asks, and whenever', () => {
      const schedule = scheduleOf({ every: 3600 })
      const next = nextTime(schedule, NOW)
      for (const moment of [NOW, NOW + 1, next - 1]) {
        assert.equal(nextTime({ ...schedule }, moment), next)
      }
      assert.equal(nextTime(schedule, next), next + HOUR)
    })

    it('are never at the moment that is asked for', () => {
      const schedule = scheduleOf({ every: 300 })
      for (const time of timesBetween(schedule, NOW, NOW + DAY)) {
        assert.ok(nextTime(schedule, time) > time)
        assert.equal(nextTime(schedule, time - 1), time)
      }
    })

    it('make up once for what was missed', () => {
      const schedule = scheduleOf({ every: 3600 })
      const due = nextTime(schedule, NOW)
      // The scheduler was away: the run that was due is late, the next regular.
      const back = due + 7.5 * HOUR
      const runs = [back]
      let next = nextTime(schedule, back)
      while (next < back + 3 * HOUR) {
        runs.push(next)
        next = nextTime(schedule, next)
      }
      assert.deepEqual(runs.slice(1), [
        due + 8 * HOUR,
        due + 9 * HOUR,
        due + 10 * HOUR,
      ])
    })

    it('go on at a regular time after a pause', () => {
      const schedule = scheduleOf({ every: 3600 })
      const resumed = NOW + 8 * HOUR + 5 * MINUTE
      const next = nextTime(schedule, resumed)
      assert.ok(next > resumed && next <= resumed + HOUR)
      assert.equal((next - schedule.anchor) % HOUR, 0)
    })
  })

  describe('of cron', () => {
    const berlin = (cron: string, account?: string) =>
      scheduleOf(
        { cron, timezone: 'Europe/Berlin' },
        account === undefined ? {} : { account }
      )

    it('keep the minute, and are spread within it', () => {
      const seconds = new Set<number>()
      for (let index = 0; index < 500; index += 1) {
        const schedule = berlin('0 4 * * *', `did:plc:${index}`)
        const times = timesBetween(schedule, NOW, NOW + 3 * DAY)
        assert.deepEqual(minutesOf(times), [
          '2026-03-11T03:00',
          '2026-03-12T03:00',
          '2026-03-13T03:00',
        ])
        const delays = new Set(times.map((time) => time % MINUTE))
        assert.equal(delays.size, 1)
        seconds.add(Math.floor(((times[0] ?? 0) % MINUTE) / 1000))
      }
      assert.equal(CRON_SPREAD, MINUTE)
      assert.equal(seconds.size, 60)
    })

    it('are never left out or told twice, wherever in the minute one asks', () => {
      const schedule = berlin('*/15 * * * *')
      const times = timesBetween(schedule, NOW, NOW + DAY)
      assert.equal(times.length, 96)
      for (const time of times) {
        for (const before of [1, 999, 1000, 30_000, 15 * MINUTE]) {
          assert.equal(nextTime(schedule, time - before), time)
        }
        for (const after of [0, 1, 999, 60_000]) {
          assert.equal(nextTime(schedule, time + after), time + 15 * MINUTE)
        }
      }
    })

    it('follow the clocks of Berlin forward and back', () => {
      for (const [from, expected] of [
        [
          '2026-03-27T12:00:00Z',
          ['2026-03-28T03:00', '2026-03-29T02:00', '2026-03-30T02:00'],
        ],
        [
          '2026-10-23T12:00:00Z',
          ['2026-10-24T02:00', '2026-10-25T03:00', '2026-10-26T03:00'],
        ],
      ] as const) {
        const start = Date.parse(from)
        assert.deepEqual(
          minutesOf(timesBetween(berlin('0 4 * * *'), start, start + 3 * DAY)),
          expected
        )
      }
    })

    it('come once on a day whose clocks leave the time out, or have it twice', () => {
      for (const [from, expected] of [
        // From 02:00 to 03:00 in Berlin there is nothing.
        [
          '2026-03-27T12:00:00Z',
          ['2026-03-28T01:30', '2026-03-29T01:00', '2026-03-30T00:30'],
        ],
        // From 02:00 to 03:00 in Berlin comes twice.
        [
          '2026-10-23T12:00:00Z',
          ['2026-10-24T00:30', '2026-10-25T00:30', '2026-10-26T01:30'],
        ],
      ] as const) {
        const start = Date.parse(from)
        assert.deepEqual(
          minutesOf(timesBetween(berlin('30 2 * * *'), start, start + 3 * DAY)),
          expected
        )
      }
    })

    const timesIn = (
      timezone: string,
      cron: string,
      from: string,
      to: string
    ) =>
      minutesOf(
        timesBetween(
          scheduleOf({ cron, timezone }),
          Date.parse(from),
          Date.parse(to)
        )
      )

    it('come once on a day whose clocks skip its last hour, where they are', () => {
      // From 23:00 to 24:00 on 28 March there is nothing in Nuuk.
      for (const [cron, expected] of [
        [
          '30 23 * * *',
          ['2026-03-28T01:30', '2026-03-29T00:59', '2026-03-30T00:30'],
        ],
        // On the Saturday that was asked for, not on Sunday.
        ['30 23 * * 6', ['2026-03-29T00:59']],
        ['0 23,0 * * 0', ['2026-03-29T01:00', '2026-03-30T00:00']],
      ] as const) {
        assert.deepEqual(
          timesIn(
            'America/Nuuk',
            cron,
            '2026-03-27T12:00Z',
            '2026-03-30T12:00Z'
          ),
          expected
        )
      }
    })

    it('come at the first moment after a gap, and once for all that is in it', () => {
      for (const [timezone, cron, from, expected] of [
        [
          'Europe/Berlin',
          '*/20 2,3 * * *',
          '2026-03-29T00:00Z',
          ['2026-03-29T01:00', '2026-03-29T01:20', '2026-03-29T01:40'],
        ],
        // From 00:00 to 01:00 on 6 September there is nothing in Santiago.
        [
          'America/Santiago',
          '30 0 * * *',
          '2026-09-05T12:00Z',
          ['2026-09-06T04:00'],
        ],
        // From 02:00 to 02:30 on 4 October there is nothing on Lord Howe.
        [
          'Australia/Lord_Howe',
          '15 2 * * *',
          '2026-10-03T12:00Z',
          ['2026-10-03T15:30'],
        ],
      ] as const) {
        const to = new Date(Date.parse(from) + 20 * HOUR).toISOString()
        assert.deepEqual(timesIn(timezone, cron, from, to), expected)
      }
    })

    it('come once a day within 26 hours, in every zone that there is', () => {
      const zones = Intl.supportedValuesOf('timeZone')
      let changes = 0
      for (const timezone of zones) {
        const wall = new Intl.DateTimeFormat('sv', {
          timeZone: timezone,
          dateStyle: 'short',
          timeStyle: 'short',
        })
        const clockAt = (time: number) => wall.format(time).slice(11)
        for (const year of [2026, 2031]) {
          const end = Date.UTC(year + 1, 0, 1)
          for (let day = Date.UTC(year, 0, 1); day < end; day += DAY) {
            if (clockAt(day) === clockAt(day + DAY)) continue
            changes += 1
            for (const cron of [
              '59 23 * * *',
              '0 0 * * *',
              `${changes % 60} ${changes % 24} * * *`,
              `${changes % 60} 0-4 * * *`,
            ]) {
              const schedule = scheduleOf({ cron, timezone })
              const times = timesBetween(schedule, day - 3 * DAY, day + 4 * DAY)
              const days = times.map((time) => wall.format(time).slice(0, 10))
              const what = `${timezone} ${cron}: ${days.join(', ')}`
              for (const gap of gapsOf(times)) {
                assert.ok(gap >= MINUTE && gap <= 26 * HOUR, what)
              }
              if (!cron.includes('-')) {
                assert.equal(new Set(days).size, days.length, what)
              }
            }
          }
        }
      }
      assert.ok(zones.length > 400 && changes > 500, `${changes}`)
    })

    it('come every hour that there is, whatever the clocks do', () => {
      for (const from of ['2026-03-28T12:00:30Z', '2026-10-24T12:00:30Z']) {
        const start = Date.parse(from)
        const times = timesBetween(berlin('0 * * * *'), start, start + 30 * DAY)
        assert.ok(Math.abs(times.length - 720) <= 1)
        assert.deepEqual(new Set(gapsOf(times)), new Set([HOUR]))
      }
    })

    it('make up once for what was missed, and go on after a pause', () => {
      const schedule = berlin('0 4 * * *')
      assert.deepEqual(minutesOf([nextTime(schedule, NOW + 10 * DAY)]), [
        '2026-03-21T03:00',
      ])
    })

    it('count the anchor for nothing', () => {
      const schedule = berlin('0 4 * * *')
      assert.equal(
        nextTime({ ...schedule, anchor: NOW + 100 * DAY }, NOW),
        nextTime(schedule, NOW)
      )
    })
  })

  describe('of what somebody gave', () => {
    const read = (
      given: Parameters<typeof readRhythm>[0],
      limits = RHYTHM_LIMITS
    ) => readRhythm(given, NOW, limits)

    it('may be every so many seconds, from five minutes to a year', () => {
      for (const every of [300, 3600, 31_536_000]) {
        assert.deepEqual(read({ every }), { every })
      }
      assert.deepEqual(read({ every: 1 }, { minimum: 1, maximum: 2 }), {
        every: 1,
      })
    })

    it('may be by cron, in UTC if nothing else is said', () => {
      for (const cron of [
        '0 4 * * *',
        '*/5 * * * *',
        '30 3 1,15 * MON-FRI',
        '0 4 L * *',
        '0 0 1 1 *',
        '5  4 * * SUN#1',
      ]) {
        assert.deepEqual(read({ cron }), { cron, timezone: 'UTC' })
      }
      const given = { cron: '0 4 * * *', timezone: 'America/New_York' }
      assert.deepEqual(read(given), given)
    })

    const refused: [Parameters<typeof readRhythm>[0], RegExp][] = [
      [{}, /either by every, in seconds, or by cron/],
      [{ every: 3600, cron: '0 4 * * *' }, /either by every/],
      [{ timezone: 'UTC' }, /either by every/],
      [{ every: 3600, timezone: 'UTC' }, /goes with cron/],
      [{ every: 299 }, /every is 299 seconds; it may be from 300 to 31536000/],
      [{ every: 0 }, /every is 0/],
      [{ every: -3600 }, /every is -3600/],
      [{ every: 31_536_001 }, /every is 31536001/],
      [{ every: 3600.5 }, /whole number/],
      [{ every: NaN }, /whole number/],
      [{ every: Infinity }, /whole number/],
      [{ cron: '' }, /"" is not a cron expression; write five fields/],
      [{ cron: 'daily' }, /"daily" is not a cron/],
      [{ cron: '@daily' }, /not a cron/],
      [{ cron: '0 4 * *' }, /not a cron/],
      [{ cron: '0 0 4 * * *' }, /not a cron/],
      [{ cron: '60 4 * * *' }, /not a cron/],
      [{ cron: '0 24 * * *' }, /not a cron/],
      [{ cron: '0 4 32 * *' }, /not a cron/],
      [{ cron: '0 4 * 13 *' }, /not a cron/],
      [{ cron: '0 4 * * 9' }, /not a cron/],
      [{ cron: '? 4 * * *' }, /not a cron/],
      [{ cron: '*/0 4 * * *' }, /not a cron/],
      [{ cron: '2026-12-24T00:00:00' }, /not a cron/],
      [{ cron: `0${',0'.repeat(1000)} 4 * * *` }, /not a cron/],
      [{ cron: '* * * * *' }, /60 seconds after one another; at least 300/],
      [{ cron: '0,4 4 1 1 *' }, /240 seconds/],
      [{ cron: '0,58 * * * *' }, /120 seconds/],
      [{ cron: '0,59 0,23 * * *' }, /60 seconds/],
      [{ cron: '0 4 31 2 *' }, /does not come once a year/],
      [{ cron: '0 4 29 2 *' }, /does not come once a year/],
      ...[
        'Mars/Base',
        '',
        'berlin',
        '+01:00',
        'Europe/Berlin\n',
        'x'.repeat(99),
      ].map((timezone): [Parameters<typeof readRhythm>[0], RegExp] => [
        { cron: '0 4 * * *', timezone },
        /is not a timezone; give the name of one, as in Europe\/Berlin/,
      ]),
    ]
    for (const [given, message] of refused) {
      it(`must not be ${JSON.stringify(given).slice(0, 60)}`, () => {
        assert.throws(() => read(given), {
          name: 'InvalidRhythmError',
          message,
        })
      })
    }

    it('must not be on leap days, not even right before one', () => {
      const before = Date.parse('2028-02-28T00:00:00Z')
      assert.throws(() => readRhythm({ cron: '0 4 29 2 *' }, before), {
        name: 'InvalidRhythmError',
      })
    })
  })
})
