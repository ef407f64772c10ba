import type { Kysely } from 'kysely'
import type { ServiceStore } from './interface.ts'
import type { Tables } from './tables.ts'

/** There is one service, and one row for it. */
const ID = 1

export function createServiceStore(db: Kysely<Tables>): ServiceStore {
  return {
    async claim(agent) {
      await db
        .insertInto('service')
        .values({ id: ID, agent })
        .onConflict((conflict) => conflict.doNothing())
        .execute()
      const row = await db
        .selectFrom('service')
        .select('agent')
        .where('id', '=', ID)
        .executeTakeFirstOrThrow()
      return row.agent
    },

    async replace(old, agent) {
      const { numUpdatedRows } = await db
        .updateTable('service')
        .set({ agent })
        .where('id', '=', ID)
        .where('agent', '=', old)
        .executeTakeFirst()
      return numUpdatedRows > 0n
    },
  }
}
