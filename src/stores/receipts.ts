import type { Kysely } from 'kysely'
import type { ReceiptStore } from './interface.ts'
import { toBytes } from './rows.ts'
import type { Tables } from './tables.ts'

export function createReceiptStore(db: Kysely<Tables>): ReceiptStore {
  return {
    async put(task, bytes) {
      await db
        .insertInto('receipts')
        .values({ task, bytes })
        .onConflict((conflict) => conflict.doNothing())
        .execute()
    },

    async get(task) {
      const row = await db
        .selectFrom('receipts')
        .select('bytes')
        .where('task', '=', task)
        .executeTakeFirst()
      return row && toBytes(row.bytes)
    },
  }
}
