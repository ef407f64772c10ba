import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { inspect } from 'node:util'
import pg from 'pg'
import { pino } from 'pino'
import { systemTime } from '../../../src/node/index.ts'
import { openPgBossEngine } from '../../../src/scheduler/engine/index.ts'
import { leasesContract } from './contract/leases.ts'
import { queueContract } from './contract/queue.ts'
import { sharingContract } from './contract/sharing.ts'
import { bind, jobOf, openEngine, until } from './harness.ts'
import type { EnginePlace, TestPlace } from './harness.ts'

const serverUrl = process.env.TEST_DATABASE_URL
if (!serverUrl) {
  throw new Error('TEST_DATABASE_URL is not set. Run: npm run test:postgres')
}

interface TestSchema extends TestPlace {
  place: EnginePlace & { databaseUrl: string }
  query(sql: string): Promise<pg.QueryResult>
}

/** Schemas of its own for each test, one for the service, one for pg-boss. */
async function createSchemas(): Promise<TestSchema> {
  const name = `test_${randomUUID().replaceAll('-', '')}`
  const schema = `${name}_boss`
  const url = new URL(serverUrl ?? '')
  url.searchParams.set('options', `-c search_path=${name}`)
  const databaseUrl = url.href.replaceAll('+', '%20')
  const client = new pg.Client(databaseUrl)
  await client.connect()
  await client.query(`create schema ${name}`)
  // As short as pg-boss allows.
  const policy = { lease: 10_000, heartbeat: 3_001, poll: 50, grace: 2_000 }
  return {
    place: { databaseUrl, schema, policy },
    query: (sql) => client.query(sql),
    async [Symbol.asyncDispose]() {
      await client.query(`drop schema ${name} cascade`)
      await client.query(`drop schema if exists ${schema} cascade`)
      await client.end()
    },
  }
}

describe('job engine on pg-boss', function () {
  // A lease and what it takes to notice that it is over, twice.
  this.timeout(60_000)

  describe('queue', () => bind(queueContract, createSchemas))
  describe('sharing', () => bind(sharingContract, createSchemas))
  describe('leases', () => bind(leasesContract, createSchemas))

  it('goes on after the database has dropped its connections', async () => {
    await using schema = await createSchemas()
    await using opened = await openEngine(schema.place)
    const { engine } = opened
    const begun: string[] = []
    const ending = Promise.withResolvers<void>()
    engine.work(
      {
        async test({ key }) {
          begun.push(key)
          if (key === 'a') await ending.promise
        },
      },
      { concurrency: 1 }
    )
    await engine.enqueue([jobOf('a'), jobOf('b')])
    await until(() => begun.length === 1)
    await schema.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
      where application_name like 'bluesky-backups%'`
    )
    ending.resolve()
    await until(async () => {
      const outstanding = await engine.outstanding().catch(() => undefined)
      return outstanding?.size === 0
    })
    assert.deepEqual(begun, ['a', 'b'])
  })

  it('refuses a lease that pg-boss does not take', async () => {
    await using schema = await createSchemas()
    for (const lease of [9_000, 10_500]) {
      await assert.rejects(openEngine(schema.place, { policy: { lease } }), {
        name: 'TypeError',
        message: /lease/,
      })
    }
  })

  it('says that the database is away, and not its password', async () => {
    await using schema = await createSchemas()
    await using opened = await openEngine(schema.place)
    const { stores } = opened
    const databaseUrl = 'postgres://alice:secret@127.0.0.1:9/postgres'
    const logs: string[] = []
    const logger = pino({}, { write: (line) => logs.push(line) })
    const options = { database: stores.database, databaseUrl }
    await assert.rejects(
      openPgBossEngine({ ...options, time: systemTime, logger }),
      (error: Error) => {
        assert.equal(error.name, 'StoreUnavailableError')
        assert.doesNotMatch(inspect(error, { depth: 9 }), /secret/)
        return true
      }
    )
    assert.doesNotMatch(logs.join(), /secret/)
  })

  it('shares no jobs with another service in the same database', async () => {
    await using one = await createSchemas()
    await using two = await createSchemas()
    // A name that has to be written in quotes, and is as long as they may be.
    const odd = `Test ${randomUUID().repeat(2)}`.slice(0, 63)
    await one.query(`create schema "${odd}"`)
    const url = new URL(one.place.databaseUrl)
    url.searchParams.set(
      'options',
      `-c search_path="${odd.replace(' ', '\\ ')}"`
    )
    const places = [one.place.databaseUrl, two.place.databaseUrl, url.href]
    const schemasOfJobs = async () => {
      const { rows } = await one.query(
        `select nspname from pg_namespace where nspname like 'pgboss%'`
      )
      return new Set(rows.map(({ nspname }) => nspname as string))
    }
    const before = await schemasOfJobs()
    try {
      await using opened = new AsyncDisposableStack()
      const engines = []
      for (const databaseUrl of places) {
        const { policy } = one.place
        const place = {
          databaseUrl: databaseUrl.replaceAll('+', '%20'),
          policy,
        }
        engines.push(opened.use(await openEngine(place)).engine)
      }
      for (const [at, engine] of engines.entries()) {
        assert.equal(
          (await engine.enqueue([jobOf('a'), jobOf(`${at}`)])).enqueued,
          2
        )
      }
      for (const engine of engines) {
        assert.deepEqual([...(await engine.outstanding())], [['host', 2]])
      }
      assert.equal((await schemasOfJobs()).size, before.size + 3)
    } finally {
      for (const name of (await schemasOfJobs()).difference(before)) {
        await one.query(`drop schema ${name} cascade`)
      }
      await one.query(`drop schema "${odd}" cascade`)
    }
  })

  it('keeps nothing of a job that is done', async () => {
    await using schema = await createSchemas()
    await using opened = await openEngine(schema.place)
    const { engine } = opened
    engine.work({ async test() {} }, { concurrency: 1 })
    await engine.enqueue([jobOf('a')])
    await until(async () => (await engine.outstanding()).size === 0)
    const { rows } = await schema.query(
      `select id from ${schema.place.schema}.job`
    )
    assert.deepEqual(rows, [])
  })
})
