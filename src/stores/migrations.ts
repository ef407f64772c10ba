import { sql, SqliteAdapter, type Kysely } from 'kysely'
import type { Migration } from 'kysely/migration'

/** PostgreSQL's name; SQLite keeps bytes as bytes whatever the column's type. */
const bytes = sql`bytea`

/**
 * The way from an empty database to the present tables, applied in the order
 * of the names. A migration that was released never changes.
 */
export const migrations: Record<string, Migration> = {
  '0001-clock-runs-receipts-journal': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('clocks')
        .addColumn('space', 'text', (column) => column.notNull().primaryKey())
        .execute()
      await db.schema
        .createTable('events')
        .addColumn('space', 'text', (column) => column.notNull())
        .addColumn('event', 'text', (column) => column.notNull())
        .addColumn('bytes', bytes, (column) => column.notNull())
        .addPrimaryKeyConstraint('events_key', ['space', 'event'])
        .execute()
      await db.schema
        .createTable('heads')
        .addColumn('space', 'text', (column) => column.notNull())
        .addColumn('event', 'text', (column) => column.notNull())
        .addPrimaryKeyConstraint('heads_key', ['space', 'event'])
        .execute()

      await db.schema
        .createTable('runs')
        .addColumn('id', 'text', (column) => column.notNull().primaryKey())
        .addColumn('space', 'text', (column) => column.notNull())
        .addColumn('account', 'text', (column) => column.notNull())
        .addColumn('agent', 'text', (column) => column.notNull())
        .addColumn('include', 'text', (column) => column.notNull())
        .addColumn('authority', bytes, (column) => column.notNull())
        .addColumn('state', 'text', (column) => column.notNull())
        .addColumn('progress', 'text')
        .addColumn('outcome', 'text')
        .addColumn('error', 'text')
        .addColumn('created', 'bigint', (column) => column.notNull())
        .addColumn('updated', 'bigint', (column) => column.notNull())
        .addColumn('started', 'bigint')
        .addColumn('finished', 'bigint')
        .addColumn('attempts', 'integer', (column) => column.notNull())
        .addColumn('owner', 'text')
        .addColumn('lease_expiration', 'bigint')
        .execute()
      await db.schema
        .createIndex('runs_one_active')
        .unique()
        .on('runs')
        .columns(['space', 'account'])
        .where(sql<boolean>`state in ('queued', 'running')`)
        .execute()
      await db.schema
        .createIndex('runs_to_claim')
        .on('runs')
        .columns(['created', 'id'])
        .where(sql<boolean>`state in ('queued', 'running')`)
        .execute()
      await db.schema
        .createIndex('runs_by_space')
        .on('runs')
        .columns(['space', 'created', 'id'])
        .execute()

      await db.schema
        .createTable('receipts')
        .addColumn('task', 'text', (column) => column.notNull().primaryKey())
        .addColumn('bytes', bytes, (column) => column.notNull())
        .execute()

      await db.schema
        .createTable('journal')
        .addColumn('space', 'text', (column) => column.notNull())
        .addColumn('account', 'text', (column) => column.notNull())
        .addColumn('key', 'text', (column) => column.notNull())
        .addColumn('position', 'bigint', (column) => column.notNull())
        .addColumn('bytes', bytes, (column) => column.notNull())
        .addPrimaryKeyConstraint('journal_key', ['space', 'account', 'key'])
        .execute()
    },
  },

  '0002-revocations': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('revocations')
        .addColumn('delegation', 'text', (column) => column.notNull())
        .addColumn('revoker', 'text', (column) => column.notNull())
        .addColumn('cause', bytes, (column) => column.notNull())
        .addColumn('created', 'bigint', (column) => column.notNull())
        .addPrimaryKeyConstraint('revocations_key', ['delegation', 'revoker'])
        .execute()
    },
  },

  '0003-spaces': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('spaces')
        .addColumn('space', 'text', (column) => column.notNull().primaryKey())
        .addColumn('provisioned', 'integer', (column) => column.notNull())
        .addColumn('checked', 'bigint', (column) => column.notNull())
        .execute()
    },
  },

  '0004-heads-in-clocks': {
    async up(db: Kysely<Before>) {
      await db.schema
        .alterTable('clocks')
        .addColumn('head', 'text', (column) => column.notNull().defaultTo('[]'))
        .execute()
      const heads = new Map<string, string[]>()
      const rows = await db.selectFrom('heads').selectAll().execute()
      for (const { space, event } of rows) {
        heads.set(space, [...(heads.get(space) ?? []), event])
      }
      for (const [space, events] of heads) {
        await db
          .updateTable('clocks')
          .set({ head: JSON.stringify(events.sort()) })
          .where('space', '=', space)
          .execute()
      }
      await db.schema.dropTable('heads').execute()
      // SQLite would write each of its rows twice: beside its key, and under
      // a number of its own.
      if (db.getExecutor().adapter instanceof SqliteAdapter) {
        for (const table of ['events', 'clocks']) await dropRowids(db, table)
      }
    },
  },

  '0005-jobs': {
    async up(db: Kysely<unknown>) {
      // Used by the embedded engine alone: pg-boss has tables of its own.
      await db.schema
        .createTable('jobs')
        .addColumn('id', 'text', (column) => column.notNull().primaryKey())
        .addColumn('kind', 'text', (column) => column.notNull())
        .addColumn('key', 'text', (column) => column.notNull().unique())
        .addColumn('slot', 'text', (column) => column.notNull())
        .addColumn('priority', 'integer', (column) => column.notNull())
        .addColumn('data', 'text', (column) => column.notNull())
        .addColumn('state', 'text', (column) => column.notNull())
        .addColumn('created', 'bigint', (column) => column.notNull())
        .addColumn('start_after', 'bigint', (column) => column.notNull())
        .addColumn('claims', 'integer', (column) => column.notNull())
        .addColumn('excused', 'integer', (column) => column.notNull())
        .addColumn('owner', 'text')
        .addColumn('lease_expiration', 'bigint')
        .execute()
      await db.schema
        .createIndex('jobs_one_active_in_slot')
        .unique()
        .on('jobs')
        .column('slot')
        .where(sql<boolean>`state = 'active'`)
        .execute()
      await db.schema
        .createIndex('jobs_to_claim')
        .on('jobs')
        .columns(['priority desc', 'created', 'start_after'])
        .where(sql<boolean>`state = 'queued'`)
        .execute()

      await db.schema
        .createTable('dead_jobs')
        .addColumn('id', 'text', (column) => column.notNull().primaryKey())
        .addColumn('kind', 'text', (column) => column.notNull())
        .addColumn('key', 'text', (column) => column.notNull())
        .addColumn('slot', 'text', (column) => column.notNull())
        .addColumn('data', 'text', (column) => column.notNull())
        .addColumn('attempts', 'integer', (column) => column.notNull())
        .addColumn('error', 'text', (column) => column.notNull())
        .addColumn('died', 'bigint', (column) => column.notNull())
        .execute()
      await db.schema
        .createIndex('dead_jobs_by_age')
        .on('dead_jobs')
        .columns(['died', 'id'])
        .execute()
    },
  },

  '0006-schedules': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('schedules')
        .addColumn('space', 'text', (column) => column.notNull())
        .addColumn('account', 'text', (column) => column.notNull())
        .addColumn('rhythm', 'text', (column) => column.notNull())
        .addColumn('anchor', 'bigint', (column) => column.notNull())
        .addColumn('include', 'text')
        .addColumn('delegation', 'text', (column) => column.notNull())
        .addColumn('delegation_bytes', bytes, (column) => column.notNull())
        .addColumn('delegation_expiration', 'bigint')
        .addColumn('host', 'text')
        .addColumn('state', 'text', (column) => column.notNull())
        .addColumn('reason', 'text')
        .addColumn('paused_until', 'bigint')
        .addColumn('next', 'bigint')
        .addColumn('last_run', 'text')
        .addColumn('created', 'bigint', (column) => column.notNull())
        .addColumn('updated', 'bigint', (column) => column.notNull())
        .addColumn('version', 'integer', (column) => column.notNull())
        .addColumn('owner', 'text')
        .addColumn('lease_expiration', 'bigint')
        .addColumn('claimed_version', 'integer')
        .addPrimaryKeyConstraint('schedules_key', ['space', 'account'])
        .execute()
      // Those that are claimed leave this index: a sweep never walks past them.
      await db.schema
        .createIndex('schedules_due')
        .on('schedules')
        .columns(['next'])
        .where(sql<boolean>`next is not null and owner is null`)
        .execute()
      await db.schema
        .createIndex('schedules_claimed')
        .on('schedules')
        .columns(['lease_expiration'])
        .where(sql<boolean>`owner is not null`)
        .execute()
    },
  },
  '0007-host-budgets': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('hosts')
        .addColumn('host', 'text', (column) => column.notNull().primaryKey())
        .addColumn('kind', 'text', (column) => column.notNull())
        .addColumn('failures', 'integer', (column) => column.notNull())
        .addColumn('closures', 'integer', (column) => column.notNull())
        .addColumn('until', 'bigint', (column) => column.notNull())
        .execute()
      await db.schema
        .createTable('host_budgets')
        .addColumn('key', 'text', (column) => column.notNull().primaryKey())
        .addColumn('points', 'integer', (column) => column.notNull())
        .addColumn('expire', 'bigint')
        .execute()
    },
  },

  '0008-indexes-for-operators': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createIndex('runs_by_account')
        .on('runs')
        .columns(['space', 'account', 'created', 'id'])
        .execute()
      await db.schema
        .createIndex('schedules_by_expiration')
        .on('schedules')
        .columns(['delegation_expiration'])
        .where(sql<boolean>`delegation_expiration is not null`)
        .execute()
    },
  },

  '0009-grants': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('grant_requests')
        .addColumn('state', 'text', (column) => column.notNull().primaryKey())
        .addColumn('space', 'text', (column) => column.notNull())
        .addColumn('account', 'text', (column) => column.notNull())
        .addColumn('sealed', bytes, (column) => column.notNull())
        .addColumn('delegation', bytes, (column) => column.notNull())
        .addColumn('expires', 'bigint', (column) => column.notNull())
        .execute()
      await db.schema
        .createIndex('grant_requests_by_space')
        .on('grant_requests')
        .columns(['space', 'expires'])
        .execute()
      await db.schema
        .createIndex('grant_requests_by_end')
        .on('grant_requests')
        .columns(['expires'])
        .execute()

      await db.schema
        .createTable('grants')
        .addColumn('space', 'text', (column) => column.notNull())
        .addColumn('account', 'text', (column) => column.notNull())
        .addColumn('seq', 'bigint', (column) => column.notNull())
        .addColumn('sealed', bytes)
        .addColumn('expiration', 'bigint', (column) => column.notNull())
        .addColumn('recipient', 'text')
        .addColumn('scope', 'text', (column) => column.notNull())
        .addColumn('parts', 'text', (column) => column.notNull())
        .addColumn('state', 'text', (column) => column.notNull())
        .addColumn('reason', 'text')
        .addColumn('delegation', bytes, (column) => column.notNull())
        .addColumn('created', 'bigint', (column) => column.notNull())
        .addColumn('refreshed', 'bigint', (column) => column.notNull())
        .addColumn('updated', 'bigint', (column) => column.notNull())
        .addColumn('published', 'bigint', (column) => column.notNull())
        .addColumn('refreshing', 'bigint')
        .addColumn('owner', 'text')
        .addColumn('lease_expiration', 'bigint')
        .addPrimaryKeyConstraint('grants_key', ['space', 'account'])
        .execute()
      await db.schema
        .createIndex('grants_to_publish')
        .on('grants')
        .columns(['updated'])
        .where(sql<boolean>`sealed is not null`)
        .execute()
    },
  },

  '0010-grants-to-give-back': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .alterTable('grants')
        .addColumn('asked', 'text', (column) =>
          column.notNull().defaultTo('[]')
        )
        .execute()
      await db.schema
        .alterTable('grants')
        .addColumn('scope_version', 'integer', (column) =>
          column.notNull().defaultTo(1)
        )
        .execute()
      await db.schema
        .alterTable('grants')
        .addColumn('attempted', 'bigint', (column) =>
          column.notNull().defaultTo(0)
        )
        .execute()
      await db.schema.dropIndex('grants_to_publish').execute()
      await db.schema
        .createIndex('grants_to_publish')
        .on('grants')
        .columns(['attempted', 'updated'])
        .where(sql<boolean>`sealed is not null`)
        .execute()

      await db.schema
        .createTable('grant_returns')
        .addColumn('id', 'text', (column) => column.notNull().primaryKey())
        .addColumn('space', 'text', (column) => column.notNull())
        .addColumn('account', 'text', (column) => column.notNull())
        .addColumn('seq', 'bigint', (column) => column.notNull())
        .addColumn('sealed', bytes, (column) => column.notNull())
        .addColumn('expiration', 'bigint', (column) => column.notNull())
        .addColumn('attempted', 'bigint', (column) => column.notNull())
        .execute()
      await db.schema
        .createIndex('grant_returns_by_account')
        .on('grant_returns')
        .columns(['space', 'account'])
        .execute()
      await db.schema
        .createIndex('grant_returns_to_try')
        .on('grant_returns')
        .columns(['attempted'])
        .execute()
    },
  },

  '0011-answers-to-refreshes': {
    async up(db: Kysely<unknown>) {
      await db.schema.alterTable('grants').addColumn('answer', bytes).execute()
    },
  },

  '0012-agent-of-the-service': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('service')
        .addColumn('id', 'integer', (column) => column.notNull().primaryKey())
        .addColumn('agent', 'text', (column) => column.notNull())
        .execute()
    },
  },

  '0013-authority-of-ended-runs': {
    async up(db: Kysely<{ runs: { authority: Uint8Array } }>) {
      await db
        .updateTable('runs')
        .set({ authority: new Uint8Array() })
        .where(sql<boolean>`state in ('done', 'failed')`)
        .execute()
    },
  },

  '0014-turns-of-runs': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .alterTable('runs')
        .addColumn('scheduled', 'integer', (column) =>
          column.notNull().defaultTo(0)
        )
        .execute()
      await db.schema.alterTable('runs').addColumn('host', 'text').execute()
      await db.schema.dropIndex('runs_to_claim').execute()
      await db.schema
        .createIndex('runs_to_claim')
        .on('runs')
        .columns(['scheduled', 'created', 'id'])
        .where(sql<boolean>`state in ('queued', 'running')`)
        .execute()
    },
  },

  '0015-claims-that-have-begun': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .alterTable('schedules')
        .addColumn('begun', 'bigint')
        .execute()
    },
  },

  '0016-what-runs-leave': {
    async up(db: Kysely<{ runs: { eventful: number } }>) {
      await db.schema
        .alterTable('runs')
        .addColumn('eventful', 'integer', (column) =>
          column.notNull().defaultTo(0)
        )
        .execute()
      await db
        .updateTable('runs')
        .set({ eventful: 1 })
        .where(sql<boolean>`outcome like '%"event":%'`)
        .execute()
      await db.schema
        .createIndex('runs_by_end')
        .on('runs')
        .columns(['finished', 'id'])
        .where(sql<boolean>`finished is not null`)
        .execute()
      await db.schema
        .createIndex('runs_with_event')
        .on('runs')
        .columns(['space', 'account', 'created', 'id'])
        .where(sql<boolean>`eventful = 1`)
        .execute()
    },
  },

  '0017-accounts-that-are-no-did': {
    async up(db: Kysely<{ schedules: { account: string } }>) {
      // Schedules of such accounts broke the sweep. They stay in the lists, so
      // that their owners see why they stopped.
      const isDID =
        db.getExecutor().adapter instanceof SqliteAdapter
          ? sql<boolean>`(account glob 'did:plc:?*' or account glob 'did:web:?*')
              and account not glob '*[^a-zA-Z0-9._:%-]*'
              and length(account) <= 256 and instr(account, char(0)) = 0`
          : sql<boolean>`account ~ '^did:(plc|web):[a-zA-Z0-9._:%-]+$'
              and length(account) <= 256`
      const reason = JSON.stringify({
        name: 'InvalidAccount',
        message:
          'the account is not a did:plc or did:web; end this schedule, and schedule the right account',
      })
      await sql`
        update schedules
        set state = 'stopped', reason = ${reason}, next = null,
          owner = null, lease_expiration = null, claimed_version = null
        where not (${isDID})`.execute(db)
    },
  },
}

async function dropRowids(db: Kysely<Before>, table: string): Promise<void> {
  const { sql: create } = await db
    .selectFrom('sqlite_master')
    .select('sql')
    .where('type', '=', 'table')
    .where('name', '=', table)
    .executeTakeFirstOrThrow()
  await sql`alter table ${sql.table(table)} rename to replaced`.execute(db)
  await sql.raw(`${create} without rowid`).execute(db)
  await sql`insert into ${sql.table(table)} select * from replaced`.execute(db)
  await sql`drop table replaced`.execute(db)
}

interface Before {
  heads: { space: string; event: string }
  clocks: { space: string; head: string }
  sqlite_master: { name: string; type: string; sql: string }
}
