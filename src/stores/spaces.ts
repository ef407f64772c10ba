import type { Kysely } from 'kysely'
import type { SpaceStore } from './interface.ts'
import type { Tables } from './tables.ts'

export function createSpaceStore(db: Kysely<Tables>): SpaceStore {
  return {
    async put(space, { provisioned, checked }) {
      const row = { provisioned: provisioned ? 1 : 0, checked }
      await db
        .insertInto('spaces')
        .values({ space, ...row })
        .onConflict((conflict) => conflict.column('space').doUpdateSet(row))
        .execute()
    },

    async get(space) {
      const row = await db
        .selectFrom('spaces')
        .select(['provisioned', 'checked'])
        .where('space', '=', space)
        .executeTakeFirst()
      return row && { provisioned: row.provisioned === 1, checked: row.checked }
    },
  }
}
