import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { leasesContract } from './contract/leases.ts'
import { queueContract } from './contract/queue.ts'
import { sharingContract } from './contract/sharing.ts'
import { bind } from './harness.ts'
import type { TestPlace } from './harness.ts'

const serverUrl = process.env.TEST_DATABASE_URL
if (!serverUrl) {
  throw new Error('TEST_DATABASE_URL is not set. Run: npm run test:postgres')
}

interface TestSchema extends TestPlace {
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
})
