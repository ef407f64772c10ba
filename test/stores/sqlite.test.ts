import assert from 'node:assert/strict'
import {
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { Kysely, sql, SqliteDialect } from 'kysely'
import { Migrator } from 'kysely/migration'
import { createClockStore } from '../../src/stores/clock.ts'
import { openStores } from '../../src/stores/index.ts'
import { decisionOf } from './contract/samples.ts'
import { migrations } from '../../src/stores/migrations.ts'
import { openSqlite } from '../../src/stores/sqlite.ts'
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
import { alice, bob, eventOf } from './contract/samples.ts'
import { sharedStoresContract } from './contract/shared.ts'

interface TestFile extends TestDatabase {
  folder: string
  path: string
}

async function createFile(): Promise<TestFile> {
  const folder = await mkdtemp(join(tmpdir(), 'stores-'))
  const path = join(folder, 'data', 'stores.sqlite')
  return {
    folder,
    path,
    options: { path },
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true }),
  }
}

async function createMemory(): Promise<TestDatabase> {
  return { options: { path: ':memory:' }, async [Symbol.asyncDispose]() {} }
}

describe('stores on SQLite', () => {
  const databases = { 'in a file': createFile, 'in memory': createMemory }
  for (const [place, createDatabase] of Object.entries(databases)) {
    describe(place, () => {
      describe('clock', () => bind(clockStoreContract, createDatabase))
      describe('runs', () => bind(runStoreContract, createDatabase))
      describe('receipts', () => bind(receiptStoreContract, createDatabase))
      describe('grants', () => bind(grantStoreContract, createDatabase))
      describe('schedules', () => bind(scheduleStoreContract, createDatabase))
      describe('spaces', () => bind(spaceStoreContract, createDatabase))
      describe('service', () => bind(serviceStoreContract, createDatabase))
      describe('hosts', () => bind(hostStoreContract, createDatabase))
      describe('revocations', () =>
        bind(revocationStoreContract, createDatabase))
      describe('journal', () => bind(journalStoreContract, createDatabase))
    })
  }

  describe('shared', () => bindShared(sharedStoresContract, createFile))
  describe('shared hosts', () =>
    bindShared(sharedHostStoreContract, createFile))
  describe('shared service', () =>
    bindShared(sharedServiceStoreContract, createFile))
  describe('processes', () => bindShared(processesContract, createFile))

  it('can be read by nobody but the user', async () => {
    await using file = await createFile()
    await using stores = await openStores(file.options)
    await stores.clock.advance(alice, [eventOf('a')])
    const folder = join(file.folder, 'data')
    assert.equal((await stat(folder)).mode & 0o777, 0o700)
    const names = await readdir(folder)
    assert.deepEqual(names.sort(), [
      'stores.sqlite',
      'stores.sqlite-shm',
      'stores.sqlite-wal',
    ])
    for (const name of names) {
      assert.equal((await stat(join(folder, name))).mode & 0o777, 0o600, name)
    }
  })

  it('takes a file away from others, and leaves a folder as it is', async () => {
    await using file = await createFile()
    await mkdir(join(file.folder, 'data'), { mode: 0o755 })
    await writeFile(file.path, '', { mode: 0o644 })
    await chmod(join(file.folder, 'data'), 0o755)
    await using _stores = await openStores(file.options)
    assert.equal((await stat(file.path)).mode & 0o777, 0o600)
    assert.equal((await stat(join(file.folder, 'data'))).mode & 0o777, 0o755)
  })

  it('has every commit on the disk before it answers', async () => {
    await using file = await createFile()
    await using db = await openSqlite(file.path)
    const journal = await sql`pragma journal_mode`.execute(db)
    assert.deepEqual(journal.rows, [{ journal_mode: 'wal' }])
    const full = 2
    const synchronous = await sql`pragma synchronous`.execute(db)
    assert.deepEqual(synchronous.rows, [{ synchronous: full }])
  })

  it('locks out other writers as soon as a transaction begins', async () => {
    await using file = await createFile()
    await using db = await openSqlite(file.path)
    using database = disposable(new Database(file.path, { timeout: 0 }))
    await db.transaction().execute(async () => {
      assert.throws(() => database.exec('begin immediate'), {
        code: 'SQLITE_BUSY',
      })
    })
    database.exec('begin immediate')
  })

  it('leaves out row locks and nothing else', async () => {
    await using db = await openSqlite(':memory:')
    await createClockStore(db).advance(alice, [eventOf('a'), eventOf('b')])
    const spaces = db.selectFrom('events').select('space').distinct()
    const rows = []
    for await (const row of spaces.forUpdate().skipLocked().stream()) {
      rows.push(row)
    }
    assert.deepEqual(rows, [{ space: alice }])
  })

  it('keeps the locks of the process when it opens a file again', async function () {
    if (process.platform !== 'linux') this.skip()
    await using file = await createFile()
    await using first = await openStores(file.options)
    await first.ping()
    const before = await readLocks(file.path)
    assert.ok(before.length > 0)
    await using _second = await openStores(file.options)
    assert.deepEqual(await readLocks(file.path), before)
  })

  it('waits for a writer to open the file', async () => {
    await using file = await createFile()
    await mkdir(join(file.folder, 'data'))
    using database = disposable(new Database(file.path))
    database.exec('begin exclusive; create table other (one text)')
    const opening = openStores(file.options)
    await new Promise((resolve) => setTimeout(resolve, 50))
    database.exec('commit')
    await using stores = await opening
    await stores.ping()
  })

  it('refuses a file that is no database', async () => {
    await using file = await createFile()
    await mkdir(join(file.folder, 'data'))
    await writeFile(file.path, 'not a database'.repeat(1_000))
    await assert.rejects(openStores(file.options), (error: Error) => {
      assert.equal(error.name, 'StoreUnavailableError')
      assert.match(error.message, /stores\.sqlite/)
      assert.ok(error.cause)
      return true
    })
  })

  it('refuses a folder that cannot be', async () => {
    await using file = await createFile()
    await writeFile(join(file.folder, 'data'), '')
    await assert.rejects(openStores(file.options), {
      name: 'StoreUnavailableError',
    })
  })

  it('refuses a database with other tables of these names', async () => {
    await using file = await createFile()
    await mkdir(join(file.folder, 'data'))
    {
      using database = disposable(new Database(file.path))
      database.exec('create table receipts (other text)')
    }
    await assert.rejects(openStores(file.options), {
      name: 'StoreUnavailableError',
      message: /tables/,
    })
    using database = disposable(new Database(file.path))
    const clocks = database
      .prepare(`select * from sqlite_master where name = 'clocks'`)
      .all()
    assert.deepEqual(clocks, [])
  })

  it('keeps the clocks of a database that an older version has made', async () => {
    await using file = await createFile()
    await mkdir(join(file.folder, 'data'))
    {
      await using db = new Kysely<never>({
        dialect: new SqliteDialect({ database: new Database(file.path) }),
      })
      const old = Object.entries(migrations).slice(0, 3)
      const migrator = new Migrator({
        db,
        provider: { getMigrations: async () => Object.fromEntries(old) },
      })
      assert.equal((await migrator.migrateToLatest()).error, undefined)
    }
    {
      using database = disposable(new Database(file.path))
      database.exec(`
        insert into clocks values ('${alice}'), ('${bob}');
        insert into events values ('${alice}', 'b', x'02'), ('${alice}', 'a', x'01'), ('${alice}', 'c', x'03');
        insert into heads values ('${alice}', 'c'), ('${alice}', 'b')`)
    }
    await using stores = await openStores(file.options)
    assert.deepEqual(await stores.clock.head(alice), ['b', 'c'])
    assert.deepEqual(await stores.clock.head(bob), [])
    assert.deepEqual(await stores.clock.event(alice, 'a'), new Uint8Array([1]))
    assert.deepEqual(
      await stores.clock.advance(alice, [eventOf('d', 'b', 'a')]),
      ['c', 'd']
    )
  })

  it('stops the schedules of an older version whose accounts are no DID', async () => {
    await using file = await createFile()
    await mkdir(join(file.folder, 'data'))
    const accounts = {
      'did:plc:\0': 'stopped',
      [`did:plc:${'a'.repeat(2_600)}`]: 'stopped',
      'did:plc:a b': 'stopped',
      'alice.test': 'stopped',
      'did:plc:ewvi7nxzyoun6zhxrhs64oiz': 'active',
      'did:web:alice.test%3A8080': 'active',
    }
    {
      await using stores = await openStores(file.options)
      for (const account of Object.keys(accounts)) {
        await stores.schedules.decide(alice, account, () => decisionOf(), 1)
      }
    }
    {
      using database = disposable(new Database(file.path))
      database.exec(`delete from kysely_migration where name like '0017-%'`)
    }
    await using stores = await openStores(file.options)
    const schedules = await stores.schedules.list(alice)
    assert.deepEqual(
      Object.fromEntries(
        schedules.map(({ account, state }) => [account, state])
      ),
      accounts
    )
    for (const { state, reason, next } of schedules) {
      assert.equal(
        reason?.name,
        state === 'stopped' ? 'InvalidAccount' : undefined
      )
      assert.equal(next === undefined, state === 'stopped')
    }
  })

  it('refuses a database that a newer version has migrated', async () => {
    await using file = await createFile()
    await (await openStores(file.options))[Symbol.asyncDispose]()
    {
      using database = disposable(new Database(file.path))
      database.exec(
        `insert into kysely_migration values ('9999-future', '2999-01-01T00:00:00.000Z')`
      )
    }
    await assert.rejects(openStores(file.options), {
      name: 'NewerSchemaError',
      message: /9999-future/,
    })
  })

  it('waits for a writer without stopping the process', async () => {
    await using file = await createFile()
    await using stores = await openStores(file.options)
    using database = disposable(new Database(file.path))
    database.exec('begin immediate')
    const advanced = stores.clock.advance(alice, [eventOf('a')])
    await new Promise((resolve) => setTimeout(resolve, 100))
    database.exec('commit')
    assert.deepEqual(await advanced, ['a'])
  })

  it('gives up on a writer that does not end', async () => {
    await using file = await createFile()
    await using stores = await openStores(file.options)
    using database = disposable(new Database(file.path))
    database.exec('begin immediate')
    await assert.rejects(stores.receipts.put('task', new Uint8Array()), {
      name: 'StoreUnavailableError',
      message: /locked/,
    })
    database.exec('rollback')
    await stores.receipts.put('task', new Uint8Array())
  })

  it('cannot be used after it was disposed', async () => {
    const stores = await openStores({ path: ':memory:' })
    await stores.ping()
    await stores[Symbol.asyncDispose]()
    await assert.rejects(stores.ping())
  })
})

async function readLocks(path: string): Promise<string[]> {
  const { ino } = await stat(path)
  const locks = await readFile('/proc/locks', 'utf8')
  return locks
    .split('\n')
    .filter((lock) => lock.includes(`:${ino} `))
    .map((lock) => lock.replace(/^\d+: /, ''))
}

function disposable(
  database: Database.Database
): Database.Database & Disposable {
  return Object.assign(database, {
    [Symbol.dispose]: () => database.close(),
  })
}
