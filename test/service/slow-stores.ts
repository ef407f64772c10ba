import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import type { StoresOptions } from '../../src/stores/index.ts'
import { createFolder } from './harness.ts'

/** Where the services of one test keep what they keep. */
export interface TestStore extends AsyncDisposable {
  dataFolder: string
  databaseUrl?: string
  /** How a test opens the stores beside the services. */
  options: StoresOptions
  /** How services open them that are given no folder. */
  serviceOptions: StoresOptions
  /**
   * Waits until nobody works for services that were killed. The statement that
   * a server was sent last is still carried out, even if that is a commit.
   */
  settled(): Promise<void>
}

/** PostgreSQL for the slow suites, if there is one. */
export const databaseServer =
  process.env.DATABASE_URL ?? process.env.TEST_DATABASE_URL

/** The file that services keep in their data folder. */
export async function createEmbeddedStore(): Promise<TestStore> {
  const folder = await createFolder()
  const options = { path: join(folder.path, 'service.sqlite') }
  return {
    dataFolder: folder.path,
    options,
    serviceOptions: options,
    settled: async () => {},
    [Symbol.asyncDispose]: () => folder[Symbol.asyncDispose](),
  }
}

/** A new schema in a PostgreSQL database. */
export async function createPostgresStore(
  serverUrl: string
): Promise<TestStore> {
  await using resources = new AsyncDisposableStack()
  const folder = resources.use(await createFolder())
  const schema = `test_${randomUUID().replaceAll('-', '')}`
  const url = new URL(serverUrl)
  url.searchParams.set('options', `-c search_path=${schema}`)
  const options = { databaseUrl: url.href.replaceAll('+', '%20') }
  url.searchParams.set('application_name', schema)
  const databaseUrl = url.href.replaceAll('+', '%20')
  const database = new pg.Client(serverUrl)
  await database.connect()
  resources.defer(() => database.end())
  await database.query(`create schema ${schema}`)
  resources.defer(async () => {
    await database.query(`drop schema ${schema} cascade`)
    await database.query(`drop schema if exists pgboss_${schema} cascade`)
  })
  const owned = resources.move()
  return {
    dataFolder: folder.path,
    databaseUrl,
    options,
    serviceOptions: { databaseUrl },
    async settled() {
      const isBusy = async () => {
        const { rowCount } = await database.query(
          'select from pg_stat_activity where application_name = $1',
          [schema]
        )
        return rowCount !== 0
      }
      while (await isBusy()) await sleep(5)
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}
