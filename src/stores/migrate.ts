import type { Kysely } from 'kysely'
import { DEFAULT_MIGRATION_TABLE, Migrator } from 'kysely/migration'
import { NewerSchemaError, StoreUnavailableError } from './errors.ts'
import { migrations } from './migrations.ts'
import type { Tables } from './tables.ts'

/**
 * Applies the migrations that are not applied yet, all or none. Of several
 * processes that start at the same time one does, the others wait for it.
 *
 * @param schema - the schema the tables are in, where there are schemas
 * @throws {@link StoreUnavailableError} {@link NewerSchemaError}
 */
export async function migrate(
  db: Kysely<Tables>,
  schema?: string
): Promise<void> {
  const migrator = new Migrator({
    db,
    provider: { getMigrations: async () => migrations },
    migrationTableSchema: schema,
  })
  const { error: cause } = await migrator.migrateToLatest()
  if (cause === undefined) return
  if (cause instanceof StoreUnavailableError) throw cause
  // Where this fails too, the cause above says more.
  const unknown = await readUnknownMigrations(db).catch(() => [])
  if (unknown.length > 0) {
    throw new NewerSchemaError(
      `The database was migrated by a newer version (${unknown.join(', ')}). Start that version or a later one.`,
      { cause }
    )
  }
  throw new StoreUnavailableError(
    'Cannot bring the tables of the database up to date. Check that this is a database of this software and that it may be written.',
    { cause }
  )
}

async function readUnknownMigrations(db: Kysely<Tables>): Promise<string[]> {
  const migrated = db.withTables<{
    [DEFAULT_MIGRATION_TABLE]: { name: string }
  }>()
  const rows = await migrated
    .selectFrom(DEFAULT_MIGRATION_TABLE)
    .select('name')
    .execute()
  return rows.map(({ name }) => name).filter((name) => !(name in migrations))
}
