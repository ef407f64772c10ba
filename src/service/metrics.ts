import {
  collectDefaultMetrics,
  Counter,
  Gauge,
  Histogram,
  Registry,
} from 'prom-client'
import type { Logger } from 'pino'
import type { Time } from '../backup/index.ts'
import { ABILITIES } from '../capabilities/index.ts'
import type { JobCounts } from '../scheduler/index.ts'
import type { Stores } from '../stores/index.ts'
import type { RunReport } from './run-report.ts'

const PREFIX = 'bluesky_backups_'

/** Milliseconds for which figures of the database are told again. */
const MAX_AGE = 10_000

/** Rows that are counted at most, for one figure. */
const MAX_COUNTED = 10_000

const DAY = 24 * 60 * 60 * 1000

/** Until when delegations are about to end, by the value of their label. */
const WINDOWS = { '1d': DAY, '7d': 7 * DAY }

/** Different values that a label takes whose values are names of failures. */
const MAX_NAMES = 60
const OTHER = 'other'

const METHODS = new Set(['GET', 'HEAD', 'POST', 'OPTIONS'])
const CAPABILITIES = new Set<string>(ABILITIES)

/** Upper bounds of durations, in seconds. */
const RUN_SECONDS = [0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600]
const REQUEST_SECONDS = [
  0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
]

/** What is known of a host of accounts. */
export interface HostFigures {
  /** Requests that are left for now; nothing where there is no limit. */
  remaining?: number | undefined
  /** `available`, or why the host is left alone. */
  state: string
}

/** Where figures come from that are asked for at each look. */
export interface MetricSources {
  /** Runs that this process works on. */
  activeRuns?: () => number
  /** Connections that are sent events, by what they watch. */
  eventStreams?: () => Record<'clock' | 'runs', number>
  /** Jobs there are, where this process has their engine. */
  jobs?: () => Promise<JobCounts>
  /** Hosts that this process has visited lately. */
  hosts?: () => HostFigures[]
}

/** What operators see of a service. No figure tells of one user. */
export interface Metrics {
  /** A run has ended. */
  runEnded(report: RunReport): void
  /** An invocation was answered; `result` is `ok` or the name of the failure. */
  invoked(invocation: {
    capability: string
    result: string
    seconds: number
  }): void
  /** A request was answered; `route` is its pattern, not its path. */
  requested(request: {
    method: string
    route: string
    status: number
    seconds: number
  }): void
  /** Figures of the database, from then on. */
  observe(stores: Pick<Stores, 'schedules'>, sources: MetricSources): void
  /** Everything in the text format of Prometheus. */
  text(): Promise<string>
  readonly contentType: string
}

/**
 * Begins to count.
 *
 * @param options.ofProcess - also tells memory, CPU and event loop of the process
 */
export function createMetrics({
  time,
  logger,
  ofProcess = false,
}: {
  time: Pick<Time, 'now'>
  logger: Logger
  ofProcess?: boolean
}): Metrics {
  const registry = new Registry()
  if (ofProcess) collectDefaultMetrics({ register: registry })
  const registers = [registry]
  const counter = (name: string, help: string, labelNames: string[] = []) =>
    new Counter({ name: `${PREFIX}${name}`, help, labelNames, registers })
  const gauge = (name: string, help: string, labelNames: string[] = []) =>
    new Gauge({ name: `${PREFIX}${name}`, help, labelNames, registers })
  const histogram = (
    name: string,
    help: string,
    labelNames: string[],
    buckets: number[]
  ) =>
    new Histogram({
      name: `${PREFIX}${name}`,
      help,
      labelNames,
      buckets,
      registers,
    })

  const runs = counter('runs_total', 'Runs that ended here.', ['outcome'])
  for (const outcome of ['first', 'incremental', 'unchanged', 'failed']) {
    runs.inc({ outcome }, 0)
  }
  const runFailures = counter(
    'run_failures_total',
    'Runs that failed here, by the name of the failure.',
    ['failure']
  )
  const runRetries = counter(
    'run_retries_total',
    'How often runs that ended here had to be begun again.'
  )
  const runSeconds = histogram(
    'run_duration_seconds',
    'Time of a run from its beginning to its end.',
    ['outcome'],
    RUN_SECONDS
  )
  const waitSeconds = histogram(
    'run_wait_seconds',
    'Time from when a run was asked for to its beginning.',
    [],
    RUN_SECONDS
  )
  const stageSeconds = counter(
    'run_stage_seconds_total',
    'Time that runs spent in each stage.',
    ['stage']
  )
  const bytesRead = counter(
    'read_bytes_total',
    'Bytes that runs read from the hosts of accounts.'
  )
  const bytesUploaded = counter(
    'uploaded_bytes_total',
    'Bytes that runs put into Spaces.'
  )
  const blobs = counter(
    'blobs_total',
    'Blobs of runs: done, missing at the host, or failed.',
    ['result']
  )
  const invocations = counter(
    'invocations_total',
    'Invocations that were answered, also those of the service to itself.',
    ['capability', 'result']
  )
  const invocationSeconds = histogram(
    'invocation_duration_seconds',
    'Time to answer an invocation.',
    ['capability'],
    REQUEST_SECONDS
  )
  const requests = counter('http_requests_total', 'HTTP requests.', [
    'method',
    'route',
    'status',
  ])
  const requestSeconds = histogram(
    'http_request_duration_seconds',
    'Time until an HTTP request was answered; of a stream, until it began.',
    ['route'],
    REQUEST_SECONDS
  )
  const up = gauge(
    'database_up',
    'Whether the database answered when it was asked for its figures.'
  )
  const dueLag = gauge(
    'due_lag_seconds',
    'For how long the schedule has been due that is due the longest and not begun. The same in all processes.'
  )
  const due = gauge(
    'schedules_due',
    `Schedules that are due and not begun, at most ${MAX_COUNTED}. The same in all processes.`
  )
  const ending = gauge(
    'delegations_ending',
    `Delegations of schedules that end within the window, at most ${MAX_COUNTED}. The same in all processes.`,
    ['within']
  )
  const jobs = gauge('jobs', 'Jobs by state. The same in all processes.', [
    'state',
  ])

  const databaseGauges = [up, dueLag, due, ending, jobs]
  let database: Pick<Stores, 'schedules'> | undefined
  let countJobs: MetricSources['jobs']
  let asked = -Infinity
  let asking: Promise<void> | undefined
  const askDatabase = async (schedules: Stores['schedules']) => {
    const now = time.now()
    try {
      const [figures, counts] = await Promise.all([
        schedules.figures({
          now,
          ending: Object.values(WINDOWS).map((window) => now + window),
          limit: MAX_COUNTED,
        }),
        countJobs?.(),
      ])
      due.set(figures.due)
      dueLag.set(Math.max(0, now - (figures.oldest ?? now)) / 1000)
      Object.keys(WINDOWS).forEach((within, at) => {
        ending.set({ within }, figures.ending[at] ?? 0)
      })
      for (const [state, count] of Object.entries<number>({ ...counts })) {
        jobs.set({ state }, count)
      }
      up.set(1)
    } catch (error) {
      logger.warn({ err: error }, 'the figures of the database are not known')
      // What was so before says nothing of now.
      for (const each of databaseGauges) removeAll(each)
      up.set(0)
    }
    asked = time.now()
  }
  const refresh = async () => {
    if (!database || time.now() - asked < MAX_AGE) return
    asking ??= askDatabase(database.schedules).finally(() => {
      asking = undefined
    })
    await asking
  }
  for (const each of databaseGauges) removeAll(each)

  const failureName = createNames()
  const resultName = createNames()

  return {
    runEnded(report) {
      const { outcome, failure, stages } = report
      runs.inc({ outcome })
      if (failure) runFailures.inc({ failure: failureName(failure.name) })
      runRetries.inc(report.retries)
      runSeconds.observe({ outcome }, report.ms / 1000)
      waitSeconds.observe(Math.max(0, report.waitedMs) / 1000)
      for (const [stage, ms] of Object.entries(stages)) {
        stageSeconds.inc({ stage }, Math.max(0, ms) / 1000)
      }
      bytesRead.inc(report.bytesRead)
      bytesUploaded.inc(report.bytesUploaded)
      blobs.inc({ result: 'done' }, report.blobsDone)
      blobs.inc({ result: 'missing' }, report.blobsMissing)
      blobs.inc({ result: 'failed' }, report.blobsFailed)
    },

    invoked({ capability: can, result, seconds }) {
      const capability = CAPABILITIES.has(can) ? can : OTHER
      invocations.inc({ capability, result: resultName(result) })
      invocationSeconds.observe({ capability }, seconds)
    },

    requested({ method, route, status, seconds }) {
      requests.inc({
        method: METHODS.has(method) ? method : OTHER,
        route,
        status,
      })
      requestSeconds.observe({ route }, seconds)
    },

    observe(stores, { activeRuns, eventStreams, jobs: count, hosts }) {
      database = stores
      countJobs = count
      if (activeRuns) {
        new Gauge({
          name: `${PREFIX}runs_active`,
          help: 'Runs that this process works on.',
          registers,
          collect() {
            this.set(activeRuns())
          },
        })
      }
      if (eventStreams) {
        new Gauge({
          name: `${PREFIX}event_streams`,
          help: 'Connections that are sent events.',
          labelNames: ['kind'],
          registers,
          collect() {
            for (const [kind, size] of Object.entries(eventStreams())) {
              this.set({ kind }, size)
            }
          },
        })
      }
      if (hosts) observeHosts(hosts, registers)
    },

    async text() {
      await refresh()
      return registry.metrics()
    },
    contentType: registry.contentType,
  }
}

/** Hosts have no names here: there are some on which there is one account. */
function observeHosts(hosts: () => HostFigures[], registers: Registry[]): void {
  new Gauge({
    name: `${PREFIX}hosts`,
    help: 'Hosts of accounts that this process has visited lately, by state.',
    labelNames: ['state'],
    registers,
    collect() {
      this.reset()
      for (const { state } of hosts()) this.inc({ state })
    },
  })
  new Gauge({
    name: `${PREFIX}host_budget_remaining_requests`,
    help: 'Requests that are left for now at the host that has the fewest left.',
    registers,
    collect() {
      const left = hosts().flatMap(({ remaining }) => remaining ?? [])
      removeAll(this)
      if (left.length > 0) {
        this.set(left.reduce((least, each) => Math.min(least, each)))
      }
    },
  })
}

/** Forgets the values of a gauge: it is not told until it is set again. */
function removeAll(gauge: Gauge): void {
  gauge.reset()
  // A gauge without labels is 0 after that, as if that were known.
  gauge.remove({})
}

/** Names as they are, but not more than some. */
function createNames(): (name: string) => string {
  const names = new Set<string>()
  return (name) => {
    if (names.has(name)) return name
    if (names.size >= MAX_NAMES || !/^[A-Za-z]{1,60}$/.test(name)) return OTHER
    names.add(name)
    return name
  }
}
