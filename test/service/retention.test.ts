import assert from 'node:assert/strict'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { Backup } from '../../src/client/index.ts'
import { SCHEDULER_POLICY } from '../../src/scheduler/index.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import { seedAccount, startNetwork } from '../network/index.ts'
import { allow, createActors, startTestService, until } from './harness.ts'

const OPTIONS = {
  policy: { ...RUNNER_POLICY, progress: 20, poll: 50 },
  schedulerPolicy: { ...SCHEDULER_POLICY, sweep: 50, poll: 20 },
}

describe('what a service keeps', () => {
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
