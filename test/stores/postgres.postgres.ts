import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { inspect } from 'node:util'
import pg from 'pg'
import { openStores } from '../../src/stores/index.ts'
import { clockStoreContract } from './contract/clock.ts'
import { bind, bindShared } from './contract/contract.ts'
import type { TestDatabase } from './contract/contract.ts'
import { journalStoreContract } from './contract/journal.ts'
import { processesContract } from './contract/processes.ts'
import { receiptStoreContract } from './contract/receipts.ts'
import { runStoreContract } from './contract/runs.ts'
import { alice, eventOf } from './contract/samples.ts'
import { sharedStoresContract } from './contract/shared.ts'

const serverUrl = process.env.TEST_DATABASE_URL
if (!serverUrl) {
  throw new Error('TEST_DATABASE_URL is not set. Run: npm run test:postgres')
}

interface TestSchema extends TestDatabase {
  databaseUrl: string
  options: { databaseUrl: string }
  query(sql: string): Promise<pg.QueryResult>
}

/** A schema of its own for each test. */
async function createSchema(): Promise<TestSchema> {
  const name = `test_${randomUUID().replaceAll('-', '')}`
  const url = new URL(serverUrl ?? '')
  url.searchParams.set('options', `-c search_path=${name}`)
  const databaseUrl = url.href.replaceAll('+', '%20')
  const client = new pg.Client(databaseUrl)
  await client.connect()
  await client.query(`create schema ${name}`)
  return {
    databaseUrl,
    options: { databaseUrl },
    query: (sql) => client.query(sql),
    async [Symbol.asyncDispose]() {
      await client.query(`drop schema ${name} cascade`)
      await client.end()
    },
  }
}

describe('stores on PostgreSQL', () => {
  describe('clock', () => bind(clockStoreContract, createSchema))
  describe('runs', () => bind(runStoreContract, createSchema))
  describe('receipts', () => bind(receiptStoreContract, createSchema))
  describe('journal', () => bind(journalStoreContract, createSchema))
  describe('shared', () => bindShared(sharedStoresContract, createSchema))
  describe('processes', () => bindShared(processesContract, createSchema))

  it('refuses a database that a newer version has migrated', async () => {
    await using schema = await createSchema()
    await (await openStores(schema.options))[Symbol.asyncDispose]()
    await schema.query(
      `insert into kysely_migration values ('9999-future', '2999-01-01T00:00:00.000Z')`
    )
    await assert.rejects(openStores(schema.options), {
      name: 'NewerSchemaError',
      message: /9999-future/,
    })
  })

  it('refuses a database with other tables of these names', async () => {
    await using schema = await createSchema()
    await schema.query('create table receipts (other text)')
    await assert.rejects(openStores(schema.options), {
      name: 'StoreUnavailableError',
      message: /tables/,
    })
    const { rows } = await schema.query(
      `select to_regclass('clocks') as clocks`
    )
    assert.deepEqual(rows, [{ clocks: null }])
  })

  it('refuses a search path that leads nowhere', async () => {
    const url = new URL(serverUrl)
    url.search = '?options=-c%20search_path%3Dnowhere'
    await assert.rejects(openStores({ databaseUrl: url.href }), {
      name: 'StoreUnavailableError',
      message: /search path/,
    })
  })

  it('works again after the database has dropped its connections', async () => {
    await using schema = await createSchema()
    await using stores = await openStores(schema.options)
    await stores.clock.advance(alice, [eventOf('a')])
    await schema.query(
      `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'bluesky-backups'`
    )
    await new Promise((resolve) => setTimeout(resolve, 100))
    await stores.ping()
    assert.deepEqual(await stores.clock.head(alice), ['a'])
  })

  it('finds the runs to claim by an index', async () => {
    await using schema = await createSchema()
    await using stores = await openStores(schema.options)
    await stores.ping()
    await schema.query(`
      insert into runs (id, space, account, agent, include, authority, state, created, updated, attempts)
      select 'run-' || n, 'space', 'account-' || n, 'agent', '[]', '', case when n % 1000 = 0 then 'queued' else 'done' end, n, n, 0
      from generate_series(1, 50000) n`)
    await schema.query('analyze runs')
    const before = await readScans(schema)
    const run = await stores.runs.claim({ owner: 'one', now: 1, lease: 1 })
    assert.equal(run?.id, 'run-1000')
    await stores[Symbol.asyncDispose]()
    const after = await readScans(schema)
    assert.ok(after.runs_to_claim! > before.runs_to_claim!)
  })

  it('tells the password in no error', async () => {
    const server = createServer((socket) => socket.destroy()).listen(
      0,
      '127.0.0.1'
    )
    await new Promise((resolve) => server.once('listening', resolve))
    const open = (server.address() as AddressInfo).port
    const bad = [
      `postgres://alice:123s3cret@127.0.0.1:1/db`,
      `postgres://alice:123s3cret@127.0.0.1:${open}/db`,
      `postgres://127.0.0.1:1/db?password=123s3cret`,
      `postgres://alice:123#s3cret@127.0.0.1/db`,
      `postgres://alice:123/s3cret@127.0.0.1/db`,
      `postgres://alice:123?s3cret@127.0.0.1/db`,
      `postgres://alice:12%zs3cret@127.0.0.1:1/db`,
      `mysql://alice:123s3cret@127.0.0.1/db`,
      'host=127.0.0.1 password=123s3cret',
    ]
    for (const databaseUrl of bad) {
      await assert.rejects(openStores({ databaseUrl }), (error: Error) => {
        assert.equal(error.name, 'StoreUnavailableError')
        const text = inspect(error, { depth: 9, showHidden: true })
        assert.doesNotMatch(text, /123|s3cret/)
        return true
      })
    }
    server.close()
  })
})

async function readScans(schema: TestSchema): Promise<Record<string, number>> {
  await schema.query('select pg_stat_clear_snapshot()')
  const { rows } = await schema.query(
    `select indexrelname as name, idx_scan::integer as scans from pg_stat_user_indexes where schemaname = current_schema()`
  )
  return Object.fromEntries(
    rows.map(({ name, scans }: { name: string; scans: number }) => [
      name,
      scans,
    ])
  )
}
