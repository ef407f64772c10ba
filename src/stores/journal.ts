import type { Kysely } from 'kysely'
import type { JournalStore } from './interface.ts'
import { toBytes } from './rows.ts'
import type { Tables } from './tables.ts'

export function createJournalStore(db: Kysely<Tables>): JournalStore {
  return {
    async load(space, account) {
      const rows = await db
        .selectFrom('journal')
        .select('bytes')
        .where('space', '=', space)
        .where('account', '=', account)
        .orderBy('position')
        .orderBy('key')
        .execute()
      return rows.map(({ bytes }) => toBytes(bytes))
    },

    // Two appends at the same time may get the same position: neither was
    // first.
    async append(space, account, key, bytes) {
      await db
        .insertInto('journal')
        .values((journal) => ({
          space,
          account,
          key,
          bytes,
          position: journal
            .selectFrom('journal')
            .select((last) =>
              last(
                last.fn.coalesce(last.fn.max('position'), last.lit(0)),
                '+',
                1
              ).as('next')
            )
            .where('space', '=', space)
            .where('account', '=', account),
        }))
        .onConflict((conflict) => conflict.doNothing())
        .execute()
    },

    async clear(space, account) {
      await db
        .deleteFrom('journal')
        .where('space', '=', space)
        .where('account', '=', account)
        .execute()
    },
  }
}
