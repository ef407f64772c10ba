import type { Kysely } from 'kysely'
import type { RevocationStore } from './interface.ts'
import { batchesOf } from './rows.ts'
import type { Tables } from './tables.ts'

export function createRevocationStore(db: Kysely<Tables>): RevocationStore {
  return {
    async add(revocation) {
      await db
        .insertInto('revocations')
        .values(revocation)
        .onConflict((conflict) => conflict.doNothing())
        .execute()
    },

    async find(delegations) {
      if (delegations.length === 0) return []
      const found = await Promise.all(
        batchesOf([...new Set(delegations)]).map((batch) =>
          db
            .selectFrom('revocations')
            .select(['delegation', 'revoker'])
            .where('delegation', 'in', batch)
            .execute()
        )
      )
      return found.flat()
    },
  }
}
