import { sql } from 'kysely'
import { createClockStore } from './clock.ts'
import { createGrantStore } from './grants.ts'
import { createHostStore } from './hosts.ts'
import type { Stores } from './interface.ts'
import { createJournalStore } from './journal.ts'
import { openPostgres } from './postgres.ts'
import { createReceiptStore } from './receipts.ts'
import { createRevocationStore } from './revocations.ts'
import { createRunStore } from './runs.ts'
import { createScheduleStore } from './schedules.ts'
import { createServiceStore } from './service.ts'
import { createSpaceStore } from './spaces.ts'
import { openSqlite } from './sqlite.ts'

export * from './errors.ts'
export type * from './interface.ts'
export type { Tables } from './tables.ts'

/**
 * `path` of an SQLite file (or `:memory:`), or `databaseUrl` of a PostgreSQL
 * database, `postgres://user:password@host:port/database`.
 */
export type StoresOptions = { path: string } | { databaseUrl: string }

/**
 * Opens the stores, and brings their tables up to date. Several processes may
 * open the same ones at the same time.
 *
 * @throws {@link StoreUnavailableError} {@link NewerSchemaError}
 *
 * @example
 * ```ts
 * await using stores = await openStores({ path: 'data/service.sqlite' })
 * const head = await stores.clock.head(space.did())
 * ```
 */
export async function openStores(options: StoresOptions): Promise<Stores> {
  const db =
    'path' in options
      ? await openSqlite(options.path)
      : await openPostgres(options.databaseUrl)
  return {
    database: db,
    clock: createClockStore(db),
    runs: createRunStore(db),
    receipts: createReceiptStore(db),
    journal: createJournalStore(db),
    revocations: createRevocationStore(db),
    spaces: createSpaceStore(db),
    schedules: createScheduleStore(db),
    grants: createGrantStore(db),
    hosts: createHostStore(db),
    service: createServiceStore(db),
    async ping() {
      await sql`select 1`.execute(db)
    },
    [Symbol.asyncDispose]: () => db.destroy(),
  }
}
