import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { openStores } from '../../src/stores/index.ts'
import { clockStoreContract } from './contract/clock.ts'
import { bind, bindShared } from './contract/contract.ts'
import type { TestDatabase } from './contract/contract.ts'
import { hostStoreContract, sharedHostStoreContract } from './contract/hosts.ts'
import { journalStoreContract } from './contract/journal.ts'
import { processesContract } from './contract/processes.ts'
import { receiptStoreContract } from './contract/receipts.ts'
import { revocationStoreContract } from './contract/revocations.ts'
import { grantStoreContract } from './contract/grants.ts'
import { scheduleStoreContract } from './contract/schedules.ts'
import {
  serviceStoreContract,
  sharedServiceStoreContract,
} from './contract/service.ts'
import { spaceStoreContract } from './contract/spaces.ts'
import { runStoreContract } from './contract/runs.ts'
import { alice, eventOf, requestOf } from './contract/samples.ts'
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
  describe('grants', () => bind(grantStoreContract, createSchema))
  describe('schedules', () => bind(scheduleStoreContract, createSchema))
  describe('spaces', () => bind(spaceStoreContract, createSchema))
  describe('service', () => bind(serviceStoreContract, createSchema))
  describe('hosts', () => bind(hostStoreContract, createSchema))
  describe('revocations', () => bind(revocationStoreContract, createSchema))
  describe('journal', () => bind(journalStoreContract, createSchema))
  describe('shared', () => bindShared(sharedStoresContract, createSchema))
  describe('shared hosts', () =>
    bindShared(sharedHostStoreContract, createSchema))
  describe('shared service', () =>
    bindShared(sharedServiceStoreContract, createSchema))
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

  it('claims a run that nobody else is about to claim', async () => {
    await using schema = await createSchema()
    await using stores = await openStores(schema.options)
    await stores.runs.create(requestOf('a', { account: '1', created: 1 }))
    await stores.runs.create(requestOf('b', { account: '2', created: 2 }))
    await schema.query(`begin; select * from runs where id = 'a' for update`)
    const claim = { owner: 'one', now: 3, lease: 1_000 }
    assert.equal((await stores.runs.claim(claim))?.id, 'b')
    assert.equal(await stores.runs.claim(claim), undefined)
    await schema.query('rollback')
    assert.equal((await stores.runs.claim(claim))?.id, 'a')
  })

  it('finds the runs to claim by an index', async () => {
    await using schema = await createSchema()
    await using stores = await openStores(schema.options)
    await schema.query(`
      insert into runs (id, space, account, agent, include, authority, state, created, updated, attempts)
      select 'run-' || n, 'space', 'account-' || n, 'agent', '[]', '',
        case when n % 1000 = 0 then 'queued' else 'done' end, n, n, 0
      from generate_series(1, 50000) n`)
    await schema.query('analyze runs')
    const run = await stores.runs.claim({
      owner: 'one',
      now: 1,
      lease: 1,
      without: ['one.test', 'two.test', 'three.test'],
    })
    assert.equal(run?.id, 'run-1000')
    // A connection hands its statistics over some time after its end.
    await stores[Symbol.asyncDispose]()
    let scans = 0
    for (let tries = 0; scans === 0 && tries < 100; tries += 1) {
      await new Promise((resolve) => setTimeout(resolve, 50))
      const { rows } = await schema.query(
        `select idx_scan from pg_stat_user_indexes
        where schemaname = current_schema() and indexrelname = 'runs_to_claim'`
      )
      scans = Number(rows[0].idx_scan)
    }
    assert.equal(scans, 1)
  })

  it('finds old runs by an index, and what came after them', async () => {
    await using schema = await createSchema()
    await using stores = await openStores(schema.options)
    await schema.query(`
      insert into runs (id, space, account, agent, include, authority, state, created, updated, finished, attempts, eventful)
      select 'run-' || n, 'space', 'account-' || n % 100, 'agent', '[]', '', 'done', n, n, n, 1,
        case when n <= 100 then 1 else 0 end
      from generate_series(1, 50000) n`)
    await schema.query('vacuum analyze runs')
    let removed = 0
    for (let after; ;) {
      const step = await stores.runs.prune({ before: 1100, limit: 200, after })
      removed += step.removed
      after = step.next
      if (!after) break
    }
    assert.equal(removed, 1000)
    // A connection hands its statistics over some time after its end.
    await stores[Symbol.asyncDispose]()
    const scans = new Map<string, number>()
    for (let tries = 0; !scans.get('runs_by_end') && tries < 100; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 50))
      const { rows } = await schema.query(
        `select indexrelname as name, idx_scan as scans from pg_stat_user_indexes
        where schemaname = current_schema() and relname = 'runs'`
      )
      for (const { name, scans: count } of rows) scans.set(name, Number(count))
    }
    assert.equal(scans.get('runs_by_end'), 6)
    // Each that is looked at takes one step, however many came after it.
    assert.equal(scans.get('runs_by_account'), 1000)
    assert.equal(scans.get('runs_with_event'), 100)
  })

  it('finds schedules to claim, to settle and to release by an index', async () => {
    await using schema = await createSchema()
    await using stores = await openStores(schema.options)
    const { schedules } = stores
    const now = 1_742_140_800_000
    await schema.query(`
      insert into schedules (space, account, rhythm, anchor, delegation, delegation_bytes, state, next, created, updated, version)
      select 'space-' || n, 'account', '{"every":3600}', 0, 'bafy', '', 'active', ${now} + n - 10, 0, 0, 1
      from generate_series(1, 50000) n`)
    // As the server knows it when nothing is claimed.
    await schema.query('vacuum analyze schedules')
    const due = await schedules.claimDue({
      now,
      owner: 'one',
      lease: 1000,
      limit: 1000,
    })
    assert.equal(due.length, 10)
    for (const { space, account } of due.slice(0, 4)) {
      await schedules.renewLease(space, account, 'one', now + 1000)
      const settlement = { state: 'active', next: now * 2, now } as const
      await schedules.settle(space, account, 'one', settlement)
    }
    const expired = await schedules.expired({ now: now + 1000, limit: 100 })
    assert.equal(expired.length, 6)
    for (const { space, account, owner } of expired) {
      assert.ok(await schedules.release(space, account, owner, now + 1000))
    }
    // A connection hands its statistics over some time after its end.
    await stores[Symbol.asyncDispose]()
    const scans = new Map<string, number>()
    for (let tries = 0; !scans.get('schedules_key') && tries < 100; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 50))
      const { rows } = await schema.query(
        `select indexrelname as name, idx_scan as scans from pg_stat_user_indexes
        where schemaname = current_schema() and relname = 'schedules'`
      )
      for (const { name, scans: count } of rows) scans.set(name, Number(count))
    }
    assert.equal(scans.get('schedules_due'), 1)
    assert.equal(scans.get('schedules_claimed'), 1)
    assert.equal(scans.get('schedules_key'), 10 + 2 * 4 + 6)
  })
})
