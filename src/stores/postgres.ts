import { Kysely, PostgresDialect, PostgresDriver, sql } from 'kysely'
import type { DatabaseConnection, Driver, PostgresDialectConfig } from 'kysely'
import pg from 'pg'
import { StoreUnavailableError } from './errors.ts'
import { migrate } from './migrate.ts'
import type { Tables } from './tables.ts'

const POOL = { connections: 10, timeout: 10_000 }

/** Statements that are prepared on a connection: those that come first. */
const MAX_PREPARED = 100

/**
 * Opens a PostgreSQL database. The tables are in the first schema of its
 * search path.
 *
 * @param databaseUrl - `postgres://user:password@host:port/database`; no error
 *   tells the password
 * @throws {@link StoreUnavailableError} {@link NewerSchemaError}
 */
export async function openPostgres(
  databaseUrl: string
): Promise<Kysely<Tables>> {
  const host = parseHost(databaseUrl)
  const pool = new pg.Pool({
    connectionString: databaseUrl,
    application_name: 'bluesky-backups',
    max: POOL.connections,
    connectionTimeoutMillis: POOL.timeout,
    types,
    Client: PreparingClient,
  })
  // An idle connection that breaks is replaced by the pool. If the database
  // stays away, the next query says so.
  pool.on('error', () => {})
  // Of one that breaks while it is used, the query says so. Without a listener
  // it would end the process as well.
  pool.on('connect', (client) => {
    client.on('error', () => {})
  })
  const db = new Kysely<Tables>({
    dialect: new NamedErrorsPostgresDialect({ pool }, host),
  })
  try {
    await migrate(db, await readSchema(db))
    return db
  } catch (error) {
    await pool.end()
    throw error
  }
}

async function readSchema(db: Kysely<Tables>): Promise<string> {
  const { rows } = await sql<{
    schema: string | null
  }>`select current_schema() as schema`.execute(db)
  const schema = rows[0]?.schema
  if (schema == null) {
    throw new StoreUnavailableError(
      'The search path of the database leads to no schema. Create the schema, or correct the search path in DATABASE_URL.'
    )
  }
  return schema
}

/** @returns what an error may tell about the URL */
function parseHost(databaseUrl: string): string {
  const url = URL.parse(databaseUrl)
  // A password with an unescaped `/`, `?` or `#` puts the `@` behind the host,
  // and part of the password into it.
  const rest = url && url.pathname + url.search + url.hash
  if (!url || !/^postgres(ql)?:$/.test(url.protocol) || rest?.includes('@')) {
    throw new StoreUnavailableError(
      'DATABASE_URL is not valid. Write postgres://user:password@host:port/database, with special characters percent-encoded.'
    )
  }
  return url.host
}

const types: pg.CustomTypesConfig = {
  /** 64-bit integers are milliseconds and positions: numbers hold them. */
  getTypeParser: ((oid: number, format?: 'text') =>
    oid === (pg.types.builtins.INT8 as number)
      ? Number
      : (pg.types.getTypeParser(
          oid,
          format
        ) as unknown)) as typeof pg.types.getTypeParser,
}

/**
 * Has the server prepare what is asked again and again: to plan a small
 * statement takes it longer than to run it.
 */
class PreparingClient extends pg.Client {
  readonly #names = new Map<string, string>()

  override query(...input: unknown[]): never {
    const [text, values, ...rest] = input
    const name =
      Array.isArray(values) && values.length > 0 && this.#nameOf(text as string)
    const query = name ? [{ name, text, values }, ...rest] : input
    return super.query(...(query as [string])) as never
  }

  #nameOf(text: string): string | undefined {
    // What these answer may change under a running process, by a migration.
    if (text.includes('*')) return undefined
    let name = this.#names.get(text)
    if (name === undefined && this.#names.size < MAX_PREPARED) {
      this.#names.set(text, (name = `statement ${this.#names.size}`))
    }
    return name
  }
}

class NamedErrorsPostgresDialect extends PostgresDialect {
  readonly #config: PostgresDialectConfig
  readonly #host: string

  constructor(config: PostgresDialectConfig, host: string) {
    super(config)
    this.#config = config
    this.#host = host
  }

  override createDriver(): Driver {
    return new NamedErrorsPostgresDriver(this.#config, this.#host)
  }
}

class NamedErrorsPostgresDriver extends PostgresDriver {
  readonly #host: string

  constructor(config: PostgresDialectConfig, host: string) {
    super(config)
    this.#host = host
  }

  override async acquireConnection(): Promise<DatabaseConnection> {
    try {
      return await super.acquireConnection()
    } catch (cause) {
      throw new StoreUnavailableError(
        `Cannot connect to the PostgreSQL database at ${this.#host}. Check DATABASE_URL and that the database is running.`,
        { cause }
      )
    }
  }
}
