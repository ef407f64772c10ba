import { chmodSync, closeSync, mkdirSync, openSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import Database from 'better-sqlite3'
import {
  CompiledQuery,
  Kysely,
  SqliteAdapter,
  SqliteDialect,
  SqliteDriver,
  SqliteQueryCompiler,
} from 'kysely'
import type {
  DatabaseConnection,
  Driver,
  QueryCompiler,
  QueryResult,
  SelectModifierNode,
  SqliteDatabase,
  SqliteDialectConfig,
} from 'kysely'
import { LRUCache } from 'lru-cache'
import { StoreUnavailableError } from './errors.ts'
import { migrate } from './migrate.ts'
import type { Tables } from './tables.ts'

/** How long to wait for another process that is writing, in milliseconds. */
const BUSY = { timeout: 5_000, minDelay: 1, maxDelay: 20 }

/** Prepared statements that are kept. */
const MAX_STATEMENTS = 200

/**
 * Opens a database file, and makes it and its folder if they are not there,
 * for nobody but the user. Several processes may have the same file open.
 *
 * @param path - of the file, or `:memory:`
 * @throws {@link StoreUnavailableError} {@link NewerSchemaError}
 */
export async function openSqlite(path: string): Promise<Kysely<Tables>> {
  const database = await openFile(path)
  const db = new Kysely<Tables>({
    dialect: new OneWriterSqliteDialect({
      database: keepingStatements(database),
    }),
  })
  try {
    await migrate(db)
    return db
  } catch (error) {
    database.close()
    throw error
  }
}

async function openFile(path: string): Promise<Database.Database> {
  try {
    if (path !== ':memory:') createPrivateFile(path)
    // No busy timeout: SQLite's own wait stops the whole process, even when
    // what it waits for is a transaction of the same process.
    const database = new Database(path, { timeout: 0 })
    try {
      await whileBusy(() => database.pragma('journal_mode = WAL'))
      database.pragma('synchronous = FULL')
      return database
    } catch (error) {
      database.close()
      throw error
    }
  } catch (cause) {
    if (cause instanceof StoreUnavailableError) throw cause
    throw new StoreUnavailableError(
      `Cannot open the database file ${path}. Check that it is a database of this software and that its folder may be written.`,
      { cause }
    )
  }
}

/** To prepare a statement takes longer than to run most of them. */
function keepingStatements(database: Database.Database): SqliteDatabase {
  const statements = new LRUCache<string, Database.Statement>({
    max: MAX_STATEMENTS,
  })
  return {
    prepare(text) {
      let statement = statements.get(text)
      // One that is being read row by row cannot be run again meanwhile.
      if (!statement || statement.busy) {
        statement = database.prepare(text)
        statements.set(text, statement)
      }
      return statement
    },
    close: () => database.close(),
  }
}

/** SQLite gives the files it puts beside the database the same mode. */
function createPrivateFile(path: string): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  try {
    // Closing a file takes away all locks that the process has on it. So one
    // that is there is not opened, and one that is made is closed at once.
    closeSync(openSync(path, 'wx', 0o600))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    chmodSync(path, 0o600)
  }
}

/**
 * Tries again while another connection is writing. Reads do not wait for
 * writes in WAL mode, and a transaction that has begun to write never meets
 * another, so that in practice only the beginning of a transaction waits.
 */
async function whileBusy<T>(attempt: () => T | Promise<T>): Promise<T> {
  const deadline = performance.now() + BUSY.timeout
  for (;;) {
    try {
      return await attempt()
    } catch (error) {
      if (!isBusy(error)) throw error
      if (performance.now() > deadline) {
        throw new StoreUnavailableError(
          `Another process has kept the database locked for ${BUSY.timeout / 1000} seconds. Stop it, or wait until it is done.`,
          { cause: error }
        )
      }
    }
    await sleep(BUSY.minDelay + Math.random() * (BUSY.maxDelay - BUSY.minDelay))
  }
}

function isBusy(error: unknown): boolean {
  return (
    error instanceof Database.SqliteError &&
    (error.code === 'SQLITE_BUSY' || error.code === 'SQLITE_BUSY_RECOVERY')
  )
}

class OneWriterSqliteDialect extends SqliteDialect {
  readonly #config: SqliteDialectConfig

  constructor(config: SqliteDialectConfig) {
    super(config)
    this.#config = config
  }

  override createDriver(): Driver {
    return new ImmediateSqliteDriver(this.#config)
  }

  override createAdapter(): SqliteAdapter {
    return new TransactionalSqliteAdapter()
  }

  override createQueryCompiler(): QueryCompiler {
    return new LocklessSqliteQueryCompiler()
  }
}

/** Transactions take the lock for writing first, so that none fails later. */
class ImmediateSqliteDriver extends SqliteDriver {
  override async acquireConnection(): Promise<DatabaseConnection> {
    return new PatientConnection(await super.acquireConnection())
  }

  override async beginTransaction(
    connection: DatabaseConnection
  ): Promise<void> {
    await connection.executeQuery(CompiledQuery.raw('begin immediate'))
  }
}

class PatientConnection implements DatabaseConnection {
  readonly #connection: DatabaseConnection

  constructor(connection: DatabaseConnection) {
    this.#connection = connection
  }

  executeQuery<R>(query: CompiledQuery): Promise<QueryResult<R>> {
    return whileBusy(() => this.#connection.executeQuery<R>(query))
  }

  streamQuery<R>(
    query: CompiledQuery,
    chunkSize: number
  ): AsyncIterableIterator<QueryResult<R>> {
    return this.#connection.streamQuery<R>(query, chunkSize)
  }
}

/** SQLite does change tables in transactions; migrations are all or none. */
class TransactionalSqliteAdapter extends SqliteAdapter {
  override get supportsTransactionalDdl(): boolean {
    return true
  }
}

const ROW_LOCKS: string[] = ['ForUpdate', 'SkipLocked']

/** There is one writer at a time: row locks are neither known nor needed. */
class LocklessSqliteQueryCompiler extends SqliteQueryCompiler {
  protected override visitSelectModifier(node: SelectModifierNode): void {
    if (!ROW_LOCKS.includes(node.modifier ?? '')) {
      super.visitSelectModifier(node)
    }
  }
}
