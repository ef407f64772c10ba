import type { Kysely } from 'kysely'
import type { RevocationStore } from './interface.ts'
import { inBatches } from './rows.ts'
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
      const found: { delegation: string; revoker: string }[] = []
      await inBatches([...new Set(delegations)], async (batch) => {
        found.push(
          ...(await db
            .selectFrom('revocations')
            .select(['delegation', 'revoker'])
            .where('delegation', 'in', batch)
            .execute())
        )
      })
      return found
    },
  }
}
