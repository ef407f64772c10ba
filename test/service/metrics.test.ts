import assert from 'node:assert/strict'
import pino from 'pino'
import { createMetrics, type Metrics } from '../../src/service/metrics.ts'
import type { RunReport } from '../../src/service/run-report.ts'
import { samplesIn } from './samples.ts'
import type { ScheduleFigures, Stores } from '../../src/stores/index.ts'

const NOW = 1_742_140_800_000

const REPORT: RunReport = {
  outcome: 'first',
  ms: 1500,
  waitedMs: 250,
  stages: { resolve: 100, read: 400, advance: 1000 },
  bytesRead: 5000,
  bytesUploaded: 6000,
  blobsDone: 3,
  blobsMissing: 2,
  blobsFailed: 1,
  retries: 2,
}

describe('metrics', () => {
  let now: number
  let asked: object[]
  let figures: ScheduleFigures | Error
  let metrics: Metrics

  beforeEach(() => {
    now = NOW
    asked = []
    figures = { due: 3, oldest: NOW - 90_000, ending: [1, 4] }
    metrics = createMetrics({
      time: { now: () => now },
      logger: pino({ level: 'silent' }),
    })
  })

  /** The figures that there are, by name and labels. */
  const read = async () => samplesIn(await metrics.text())

  const stores = {
    schedules: {
      figures: async (options: object) => {
        asked.push(options)
        if (figures instanceof Error) throw figures
        return figures
      },
    },
  } as unknown as Pick<Stores, 'schedules'>

  it('count runs by outcome, with their time, bytes and blobs', async () => {
    metrics.runEnded(REPORT)
    const failure = { name: 'HostError', message: 'did:plc:secret' }
    metrics.runEnded({ ...REPORT, outcome: 'failed', failure, ms: 20_000 })
    const samples = await read()
    for (const [name, value] of [
      ['runs_total{outcome="first"}', 1],
      ['runs_total{outcome="failed"}', 1],
      ['runs_total{outcome="unchanged"}', 0],
      ['run_failures_total{failure="HostError"}', 1],
      ['run_retries_total', 4],
      ['run_duration_seconds_sum{outcome="first"}', 1.5],
      ['run_duration_seconds_bucket{le="1",outcome="first"}', 0],
      ['run_duration_seconds_bucket{le="2.5",outcome="first"}', 1],
      ['run_duration_seconds_bucket{le="+Inf",outcome="failed"}', 1],
      ['run_wait_seconds_count', 2],
      ['run_stage_seconds_total{stage="advance"}', 2],
      ['read_bytes_total', 10_000],
      ['uploaded_bytes_total', 12_000],
      ['blobs_total{result="done"}', 6],
      ['blobs_total{result="missing"}', 4],
      ['blobs_total{result="failed"}', 2],
    ] as const) {
      assert.equal(samples.get(`bluesky_backups_${name}`), value, name)
    }
  })

  it('say of the database what it says, for some seconds', async () => {
    metrics.observe(stores, {
      jobs: async () => ({ queued: 5, active: 2, retrying: 1, dead: 7 }),
    })
    await Promise.all([read(), read()])
    const samples = await read()
    assert.deepEqual(asked, [
      { now, ending: [now + 86_400_000, now + 604_800_000], limit: 10_000 },
    ])
    for (const [name, value] of [
      ['database_up', 1],
      ['due_lag_seconds', 90],
      ['schedules_due', 3],
      ['delegations_ending{within="1d"}', 1],
      ['delegations_ending{within="7d"}', 4],
      ['jobs{state="queued"}', 5],
      ['jobs{state="active"}', 2],
      ['jobs{state="retrying"}', 1],
      ['jobs{state="dead"}', 7],
    ] as const) {
      assert.equal(samples.get(`bluesky_backups_${name}`), value, name)
    }
    now += 10_000
    figures = { due: 0, ending: [0, 0] }
    const later = await read()
    assert.equal(later.get('bluesky_backups_due_lag_seconds'), 0)
    assert.equal(asked.length, 2)
  })

  it('say nothing that is not known while the database is away', async () => {
    metrics.observe(stores, {})
    await read()
    now += 10_000
    figures = new Error('away')
    const samples = await read()
    assert.equal(samples.get('bluesky_backups_database_up'), 0)
    for (const name of samples.keys()) {
      assert.doesNotMatch(name, /due|delegations|jobs/)
    }
    now += 10_000
    figures = { due: 1, oldest: now, ending: [0, 0] }
    const again = await read()
    assert.equal(again.get('bluesky_backups_database_up'), 1)
    assert.equal(again.get('bluesky_backups_schedules_due'), 1)
  })

  it('count invocations and requests without what clients make up', async () => {
    for (let i = 0; i < 500; i++) {
      const name = `Failure${[...`${i}`].map((digit) => 'abcdefghij'[+digit]).join('')}`
      metrics.invoked({ capability: `made/up-${i}`, result: name, seconds: 0 })
      metrics.invoked({
        capability: 'clock/head',
        result: `did:key:${i}`,
        seconds: 0,
      })
    }
    metrics.invoked({ capability: 'clock/head', result: 'ok', seconds: 0.2 })
    metrics.requested({
      method: 'PROPFIND',
      route: '/receipt/:task',
      status: 404,
      seconds: 0,
    })
    const samples = await read()
    assert.ok(samples.size < 200, `${samples.size} series`)
    const head = 'bluesky_backups_invocations_total{capability="clock/head"'
    assert.equal(samples.get(`${head},result="other"}`), 501)
    assert.equal(
      samples.get(
        'bluesky_backups_http_requests_total{method="other",route="/receipt/:task",status="404"}'
      ),
      1
    )
  })

  it('tell hosts by their state, and never by name', async () => {
    metrics.observe(stores, {
      hosts: () => [
        { state: 'available', remaining: 900 },
        { state: 'available', remaining: 40 },
        { state: 'failing', remaining: undefined },
      ],
      activeRuns: () => 3,
      eventStreams: () => ({ clock: 1, runs: 2 }),
    })
    const samples = await read()
    for (const [name, value] of [
      ['hosts{state="available"}', 2],
      ['hosts{state="failing"}', 1],
      ['host_budget_remaining_requests', 40],
      ['runs_active', 3],
      ['event_streams{kind="clock"}', 1],
      ['event_streams{kind="runs"}', 2],
    ] as const) {
      assert.equal(samples.get(`bluesky_backups_${name}`), value, name)
    }
  })

  it('of the process are there when they are asked for', async () => {
    const name = 'process_resident_memory_bytes'
    assert.equal((await read()).get(name), undefined)
    metrics = createMetrics({
      time: { now: () => now },
      logger: pino({ level: 'silent' }),
      ofProcess: true,
    })
    assert.ok((await read()).get(name)! > 1_000_000)
  })
})
