import assert from 'node:assert/strict'
import pino from 'pino'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { Backup } from '../../src/client/index.ts'
import { systemTime } from '../../src/node/index.ts'
import { createHealth } from '../../src/service/health.ts'
import { openStores } from '../../src/stores/index.ts'
import { seedAccount, startNetwork, type Network } from '../network/index.ts'
import {
  allow,
  createActors,
  startServer,
  startTestService,
  until,
  type Space,
  type TestService,
} from './harness.ts'
import { samplesIn } from './samples.ts'

const ACCOUNT = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const READY = {
  status: 'ready',
  checks: { migrations: true, database: true, accepting: true },
  reasons: [],
}

const answerOf = async (url: URL) => {
  const response = await fetch(url)
  return { status: response.status, body: await response.json() }
}

describe('what operators see of', () => {
  const resources = new AsyncDisposableStack()

  after(() => resources.disposeAsync())

  describe('runs', () => {
    let network: Network
    let service: TestService
    let space: Space
    let account: string
    let ended: Awaited<ReturnType<typeof runOf>>
    let failed: Awaited<ReturnType<typeof runOf>>

    const runOf = async (did: string) => {
      const config = { issuer: space, with: space.did() }
      const delegation = await allow(space, service.agent, BACKUP_ABILITIES)
      const { ok, error } = await Backup.run(
        config,
        { account: did as `did:plc:${string}`, delegation },
        { connection: service.connection, nonce: crypto.randomUUID() }
      )
      assert.equal(error, undefined)
      return until(async () => {
        const { ok: status } = await Backup.status(config, ok, service)
        const run = status?.runs[0]
        return run && /done|failed/.test(run.state) && run
      }, 20_000)
    }

    before(async () => {
      network = resources.use(await startNetwork())
      service = resources.use(
        await startTestService({ metricsPort: '0' }, network.environment)
      )
      ;({ space } = await createActors())
      await network.storacha.provision(space.did())
      const alice = await network.pds.createAccount({ handle: 'alice.test' })
      await seedAccount(alice.agent, { posts: 5, blobs: [1000, 2000] })
      account = alice.did
      ended = await runOf(account)
      failed = await runOf('did:plc:aaaaaaaaaaaaaaaaaaaaaaaa')
    })

    it('is their record: stages, bytes, blobs, attempts and event', async () => {
      const { progress, outcome, attempts, started, finished } = ended
      assert.equal(attempts, 1)
      assert.ok(progress && outcome?.event)
      assert.deepEqual(
        progress.stages.map(({ stage }) => stage),
        ['resolve', 'read', 'verify', 'blobs', 'upload', 'record', 'advance']
      )
      let last = started!
      for (const { began, ended } of progress.stages) {
        assert.ok(began >= last && ended! >= began)
        last = ended!
      }
      assert.ok(last <= finished!)
      assert.deepEqual(outcome.stages, progress.stages)
      assert.equal(outcome.blobsDone, 2)
      assert.equal(outcome.blobsMissing + outcome.blobsFailed, 0)
      assert.equal(outcome.bytesRead, outcome.repoBytes + outcome.blobBytes)
      assert.ok(outcome.bytesUploaded > 3000)
    })

    it('is how far those came that failed', () => {
      const { progress, error, outcome } = failed
      assert.equal(error?.name, 'DidNotFoundError')
      assert.equal(outcome, undefined)
      assert.equal(progress?.stages.length, 1)
      assert.equal(progress.stages[0]?.stage, 'resolve')
      assert.ok(progress.stages[0].ended)
    })

    it('is one line of the log', () => {
      const lines = service.logs.filter(
        ({ level, run }) => (level as number) >= 30 && run
      )
      assert.deepEqual(
        lines.map(({ msg, level, run, outcome }) => [msg, level, run, outcome]),
        [
          ['run ended', 30, ended.run.toString(), 'first'],
          ['run ended', 30, failed.run.toString(), 'failed'],
        ]
      )
      const [first, second] = lines
      assert.equal(first!['space'], space.did())
      assert.equal(first!['account'], account)
      assert.equal(first!['event'], ended.outcome?.event)
      assert.equal(first!['bytesRead'], ended.outcome?.bytesRead)
      assert.equal(first!['bytesUploaded'], ended.outcome?.bytesUploaded)
      assert.equal(first!['blobsDone'], 2)
      assert.equal(first!['retries'], 0)
      const stages = first!['stages'] as Record<string, number>
      assert.deepEqual(
        Object.keys(stages),
        ended.progress?.stages.map(({ stage }) => stage)
      )
      assert.deepEqual(second!['failure'], failed.error)
    })

    it('is counted, and names nobody', async () => {
      const response = await fetch(service.metricsUrl!)
      assert.match(
        response.headers.get('content-type') ?? '',
        /^text\/plain; version=0\.0\.4/
      )
      const text = await response.text()
      assert.doesNotMatch(text, /did:|alice/)
      const samples = samplesIn(text)
      const { outcome } = ended
      for (const [name, value] of [
        ['runs_total{outcome="first"}', 1],
        ['runs_total{outcome="failed"}', 1],
        ['runs_active', 0],
        ['run_failures_total{failure="DidNotFoundError"}', 1],
        ['run_duration_seconds_count{outcome="first"}', 1],
        ['uploaded_bytes_total', outcome!.bytesUploaded],
        ['blobs_total{result="done"}', 2],
        ['database_up', 1],
        ['due_lag_seconds', 0],
        ['schedules_due', 0],
        ['delegations_ending{within="7d"}', 0],
        ['jobs{state="queued"}', 0],
        ['jobs{state="dead"}', 0],
        ['event_streams{kind="runs"}', 0],
        ['invocations_total{capability="backup/run",result="ok"}', 2],
      ] as const) {
        assert.equal(samples.get(`bluesky_backups_${name}`), value, name)
      }
      const posted =
        'bluesky_backups_http_requests_total{method="POST",route="/",status="200"}'
      assert.ok(samples.get(posted)! >= 4)
      assert.ok(samples.get('process_cpu_seconds_total')! > 0)
    })
  })

  describe('a service', () => {
    it('is not for everybody', async () => {
      await using service = await startTestService({ metricsPort: '0' })
      const { status } = await fetch(new URL('metrics', service.url))
      assert.equal(status, 404)
      assert.equal(service.metricsUrl?.hostname, '127.0.0.1')
      const other = await answerOf(new URL('/', service.metricsUrl))
      assert.equal(other.status, 404)
      assert.match((other.body as Error).message, /\/metrics, \/health\/alive/)
    })

    it('is nowhere, unless a port is given', async () => {
      await using service = await startTestService()
      assert.equal(service.metricsUrl, undefined)
    })

    it('needs a port that is free', async () => {
      await using server = await startServer((_request, response) => {
        response.end()
      })
      await assert.rejects(startTestService({ metricsPort: server.url.port }), {
        name: 'ListenError',
        message: /choose another port with --metrics-port/,
      })
    })

    it('is counted by route and by capability, whatever clients send', async () => {
      await using service = await startTestService({ metricsPort: '0' })
      for (const path of [
        'nowhere',
        'nowhere/else',
        'receipt/bafy',
        'health',
      ]) {
        await fetch(new URL(path, service.url))
      }
      const samples = samplesIn(await (await fetch(service.metricsUrl!)).text())
      const requests = [...samples].filter(([name]) =>
        name.startsWith('bluesky_backups_http_requests_total')
      )
      assert.deepEqual(
        requests.map(([name, value]) => [name.replace(/^\w+/, ''), value]),
        [
          ['{method="GET",route="none",status="404"}', 2],
          ['{method="GET",route="/receipt/:task",status="404"}', 1],
          ['{method="GET",route="/health",status="200"}', 1],
        ]
      )
    })
  })

  describe('health', () => {
    it('is alive and ready when the service has started', async () => {
      await using service = await startTestService({ metricsPort: '0' })
      for (const url of [service.url, service.metricsUrl!]) {
        const alive = await answerOf(new URL('/health/alive', url))
        assert.deepEqual(alive, { status: 200, body: { status: 'alive' } })
        const ready = await answerOf(new URL('/health/ready', url))
        assert.deepEqual(ready, { status: 200, body: READY })
      }
    })

    it('is alive and not ready while the service goes down', async () => {
      await using silence = await startServer(() => {})
      const { space } = await createActors()
      const config = { issuer: space, with: space.did() }
      await using service = await startTestService({
        metricsPort: '0',
        plcUrl: silence.url.href,
        drainTimeout: '1',
      })
      const { ok } = await Backup.run(
        config,
        {
          account: ACCOUNT,
          delegation: await allow(space, service.agent, BACKUP_ABILITIES),
        },
        service
      )
      await until(async () => {
        const { ok: status } = await Backup.status(config, ok!, service)
        return status?.runs[0]?.state === 'running'
      })
      const disposed = service[Symbol.asyncDispose]()
      for (const url of [service.url, service.metricsUrl!]) {
        const alive = await answerOf(new URL('/health/alive', url))
        assert.deepEqual(alive, { status: 200, body: { status: 'alive' } })
        const ready = await answerOf(new URL('/health/ready', url))
        assert.deepEqual(ready, {
          status: 503,
          body: {
            status: 'not ready',
            checks: { migrations: true, database: true, accepting: false },
            reasons: ['the service is going down'],
          },
        })
      }
      await disposed
      await assert.rejects(fetch(service.metricsUrl!))
    })

    it('is not ready before the tables are up to date, nor without database', async () => {
      const logs: string[] = []
      const health = createHealth({
        time: systemTime,
        logger: pino({}, { write: (line: string) => void logs.push(line) }),
      })
      assert.deepEqual(await health.ready(), {
        status: 'not ready',
        checks: { migrations: false, database: false, accepting: true },
        reasons: ['the tables are not up to date yet'],
      })
      const stores = await openStores({ path: ':memory:' })
      health.opened(stores)
      assert.deepEqual(await health.ready(), READY)
      assert.deepEqual(logs, [])
      await stores[Symbol.asyncDispose]()
      assert.deepEqual(await health.ready(), {
        status: 'not ready',
        checks: { migrations: true, database: false, accepting: true },
        reasons: ['the database does not answer'],
      })
      assert.match(logs.join(''), /the store does not answer/)
    })

    it('does not wait for a database that does not answer', async () => {
      const health = createHealth({
        time: { now: () => 0, sleep: async () => {} },
        logger: pino({ level: 'silent' }),
      })
      health.opened({ ping: () => new Promise(() => {}) })
      const { reasons } = await health.ready()
      assert.deepEqual(reasons, ['the database does not answer'])
    })
  })
})
