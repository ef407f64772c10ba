import assert from 'node:assert/strict'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import pino from 'pino'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { Backup } from '../../src/client/index.ts'
import { SCHEDULER_POLICY } from '../../src/scheduler/index.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import {
  RETENTION_POLICY,
  startRetention,
} from '../../src/service/retention.ts'
import { openStores, StoreUnavailableError } from '../../src/stores/index.ts'
import { seedAccount, startNetwork } from '../network/index.ts'
import { FakeTime } from '../scheduler/fake-time.ts'
import { alice, requestOf } from '../stores/contract/samples.ts'
import {
  allow,
  createActors,
  createFolder,
  startTestService,
  until,
} from './harness.ts'

const OPTIONS = {
  policy: { ...RUNNER_POLICY, progress: 20, poll: 50 },
  schedulerPolicy: { ...SCHEDULER_POLICY, sweep: 50, poll: 20 },
}

interface Log {
  msg: string
  runs?: number
}

const HOUR = 60 * 60_000
const DAY = 24 * HOUR

describe('what a service keeps', () => {
  it('is the runs of so many days, and the last ones of each account', async () => {
    using time = new FakeTime(Date.UTC(2026, 0, 1))
    await using stores = await openStores({ path: ':memory:' })
    const lines: Log[] = []
    const looks: number[] = []
    const stop = startRetention({
      runs: {
        prune(options) {
          looks.push(options.limit)
          return stores.runs.prune(options)
        },
      },
      keep: 3 * DAY,
      time,
      logger: pino(
        {},
        { write: (line) => void lines.push(JSON.parse(line) as Log) }
      ),
      policy: { ...RETENTION_POLICY, batch: 10 },
    })
    const run = async (id: string, eventful: boolean) => {
      await stores.runs.create(requestOf(id, { created: time.now() }))
      const now = time.now()
      await stores.runs.claim({ owner: 'one', now, lease: HOUR })
      await stores.runs.finish(id, 'one', { state: 'done', eventful, now })
    }
    const left = async () =>
      (await stores.runs.list(alice, { limit: 999 })).map(({ id }) => id)

    for (let hour = 0; hour < 10 * 24; hour++) {
      await run(`${hour}`, hour === 5)
      await time.pass(HOUR)
    }
    const kept = await left()
    // Ended within three days, and the one with the event.
    assert.deepEqual(
      kept,
      [...Array.from({ length: 71 }, (_, index) => 239 - index), 5].map(String)
    )

    // Nothing new comes: what is looked at is never much, and the last stays.
    await time.pass(9 * DAY)
    assert.deepEqual(await left(), ['239', '5'])
    assert.ok(looks.every((limit) => limit === 10))
    const told = lines.filter(({ msg }) => msg === 'old runs were removed')
    assert.equal(
      told.reduce((sum, { runs = 0 }) => sum + runs, 0),
      238
    )
    await stop()
    assert.equal(lines.length, told.length)
  })

  it('is looked through again when the database did not answer', async () => {
    using time = new FakeTime(Date.UTC(2026, 0, 1))
    let looks = 0
    const errors: string[] = []
    const stop = startRetention({
      runs: {
        async prune() {
          if (looks++ === 0) throw new StoreUnavailableError('away')
          return { removed: 0 }
        },
      },
      keep: DAY,
      time,
      logger: pino(
        {},
        { write: (line) => void errors.push((JSON.parse(line) as Log).msg) }
      ),
    })
    await time.pass(HOUR + 1)
    assert.equal(looks, 2)
    assert.deepEqual(errors, ['old runs could not be removed'])
    await stop()
  })

  it('is looked through by the service, past its days', async () => {
    await using folder = await createFolder()
    const flags = { dataFolder: folder.path, keepRuns: '2' }
    await (await startTestService(flags))[Symbol.asyncDispose]()
    const now = Date.now()
    await using stores = await openStores({
      path: join(folder.path, 'service.sqlite'),
    })
    for (const [id, days] of [
      ['old', 3],
      ['young', 1],
      ['last', 0],
    ] as const) {
      const at = now - days * DAY
      await stores.runs.create(requestOf(id, { created: at }))
      await stores.runs.claim({ owner: id, now: at, lease: HOUR })
      await stores.runs.finish(id, id, { state: 'failed', now: at })
    }
    await using service = await startTestService(flags)
    await until(async () => !(await stores.runs.get('old')))
    assert.ok(await stores.runs.get('young'))
    await until(() => service.logged().includes('old runs were removed'))
  })

  it('has nothing of a delegation whose schedule and runs are over', async () => {
    await using network = await startNetwork()
    await using service = await startTestService(
      { minScheduleInterval: '1' },
      network.environment,
      OPTIONS
    )
    const account = await network.pds.createAccount({ handle: 'alice.test' })
    await seedAccount(account.agent, { posts: 2 })
    const did = account.did as `did:plc:${string}`
    const { space } = await createActors()
    await network.storacha.provision(space.did())
    const config = { issuer: space, with: space.did() }
    const delegation = await allow(space, service.agent, [
      'backup/run',
      ...BACKUP_ABILITIES,
    ])
    using database = openDatabase(service.config.dataFolder)
    const holders = () => tablesWith(database, delegation.root.bytes)

    const { error } = await Backup.schedule(
      config,
      { account: did, every: 1, delegation },
      service
    )
    assert.equal(error, undefined, error?.message)
    assert.ok(holders().includes('schedules'))
    const runs = async () => {
      const { ok } = await Backup.status(
        config,
        {},
        { ...service, nonce: crypto.randomUUID() }
      )
      return ok!.runs
    }
    await until(async () => (await runs()).some((run) => run.finished))

    await Backup.unschedule(config, { account: did }, service)
    await until(async () => (await runs()).every((run) => run.finished))
    const [run] = await runs()
    assert.equal(run?.state, 'done', run?.error?.message)
    const receipt = await fetch(new URL(`/receipt/${run.run}`, service.url))
    assert.equal(receipt.status, 200)
    assert.deepEqual(holders(), [])
  })
})

/** The file of a service, beside the service. */
function openDatabase(dataFolder: string): Database.Database & Disposable {
  const database = new Database(join(dataFolder, 'service.sqlite'))
  return Object.assign(database, {
    [Symbol.dispose]: () => database.close(),
  })
}

/** Tables that have a row with the bytes in it. */
function tablesWith(database: Database.Database, bytes: Uint8Array): string[] {
  const needle = Buffer.from(bytes)
  const tables = database
    .prepare(`select name from sqlite_master where type = 'table'`)
    .pluck()
    .all() as string[]
  return tables.filter((table) =>
    database
      .prepare(`select * from "${table}"`)
      .raw()
      .all()
      .some((row) =>
        (row as unknown[]).some(
          (value) =>
            (Buffer.isBuffer(value) || typeof value === 'string') &&
            Buffer.from(value as string).includes(needle)
        )
      )
  )
}
