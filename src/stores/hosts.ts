import type { Kysely } from 'kysely'
import type { HostStore, HostTrouble } from './interface.ts'
import type { Tables } from './tables.ts'

const COLUMNS = ['kind', 'failures', 'closures', 'until'] as const

/** Somebody else was the first to tell of the host. */
const CONFLICT = Symbol('conflict')

export function createHostStore(db: Kysely<Tables>): HostStore {
  return {
    get: (host) => read(db, host),

    async closed() {
      const rows = await db
        .selectFrom('hosts')
        .select(['host', ...COLUMNS])
        .where('closures', '>', 0)
        .execute()
      return new Map(rows.map(({ host, ...trouble }) => [host, trouble]))
    },

    async change(host, decide) {
      for (;;) {
        const { answer } = await db
          .transaction()
          .execute((transaction) => changeOnce(transaction, host, decide))
        if (answer !== CONFLICT) return answer
      }
    },

    async forget(before) {
      await db.deleteFrom('hosts').where('until', '<', before).execute()
      await db.deleteFrom('host_budgets').where('expire', '<', before).execute()
    },
  }
}

async function changeOnce(
  db: Kysely<Tables>,
  host: string,
  decide: Parameters<HostStore['change']>[1]
): Promise<{ answer: HostTrouble | undefined | typeof CONFLICT }> {
  const present = await read(db, host, { lock: true })
  const decided = decide(present && { ...present })
  if (present && decided) {
    await db
      .updateTable('hosts')
      .set(decided)
      .where('host', '=', host)
      .execute()
  } else if (present) {
    await db.deleteFrom('hosts').where('host', '=', host).execute()
  } else if (decided) {
    const inserted = await db
      .insertInto('hosts')
      .values({ host, ...decided })
      .onConflict((conflict) => conflict.doNothing())
      .returning('host')
      .executeTakeFirst()
    if (!inserted) return { answer: CONFLICT }
  }
  return { answer: decided }
}

async function read(
  db: Kysely<Tables>,
  host: string,
  { lock = false } = {}
): Promise<HostTrouble | undefined> {
  const query = db.selectFrom('hosts').select(COLUMNS).where('host', '=', host)
  return (lock ? query.forUpdate() : query).executeTakeFirst()
}
