import { sql } from 'kysely'
import type { Kysely, Selectable, SqlBool } from 'kysely'
import type { GrantStore, RunError, StoredGrant } from './interface.ts'
import { fromJSON, toBytes, toJSON } from './rows.ts'
import type { GrantRow, Tables } from './tables.ts'

/** As the partial index has it, literally, so that it is used. */
const pending = sql<SqlBool>`sealed is not null`

export function createGrantStore(db: Kysely<Tables>): GrantStore {
  const grantOf = (space: string, account: string) =>
    db
      .updateTable('grants')
      .where('space', '=', space)
      .where('account', '=', account)
  return {
    async addRequest(request, now) {
      await db
        .deleteFrom('grant_requests')
        .where('expires', '<=', now)
        .execute()
      await db.insertInto('grant_requests').values(request).execute()
    },

    async takeRequest(state) {
      const row = await db
        .deleteFrom('grant_requests')
        .where('state', '=', state)
        .returningAll()
        .executeTakeFirst()
      return (
        row && {
          ...row,
          sealed: toBytes(row.sealed),
          delegation: toBytes(row.delegation),
        }
      )
    },

    async countRequests(space, now) {
      const { count } = await db
        .selectFrom('grant_requests')
        .select((requests) => requests.fn.countAll().as('count'))
        .where('space', '=', space)
        .where('expires', '>', now)
        .executeTakeFirstOrThrow()
      return Number(count)
    },

    async get(space, account) {
      const row = await db
        .selectFrom('grants')
        .selectAll()
        .where('space', '=', space)
        .where('account', '=', account)
        .executeTakeFirst()
      return row && toGrant(row)
    },

    async list(space) {
      const rows = await db
        .selectFrom('grants')
        .selectAll()
        .where('space', '=', space)
        .execute()
      // Databases sort text by rules of their own.
      return rows
        .map(toGrant)
        .sort((one, other) => (one.account < other.account ? -1 : 1))
    },

    async put({ space, account, ...update }, now) {
      const row = {
        ...update,
        recipient: update.recipient ?? null,
        parts: JSON.stringify(update.parts),
        reason: null,
        refreshing: null,
        updated: now,
      }
      const { numInsertedOrUpdatedRows } = await db
        .insertInto('grants')
        .values({
          space,
          account,
          ...row,
          published: 0,
          owner: null,
          lease_expiration: null,
        })
        .onConflict((conflict) =>
          conflict
            .columns(['space', 'account'])
            .doUpdateSet(row)
            .whereRef('grants.seq', '<', 'excluded.seq')
        )
        .executeTakeFirst()
      return numInsertedOrUpdatedRows === 1n
    },

    async end(space, account, { seq, reason, now }) {
      await grantOf(space, account)
        .where('seq', '=', seq)
        .where('state', '=', 'active')
        .set({
          state: 'ended',
          reason: toJSON(reason),
          refreshing: null,
          updated: now,
        })
        .execute()
    },

    async lease(space, account, { owner, now, lease }) {
      const { numUpdatedRows } = await grantOf(space, account)
        .where((grants) =>
          grants.or([
            grants('owner', 'is', null),
            grants('owner', '=', owner),
            grants('lease_expiration', '<=', now),
          ])
        )
        .set({ owner, lease_expiration: now + lease })
        .executeTakeFirst()
      return numUpdatedRows === 1n
    },

    async refreshing(space, account, { owner, now, lease }) {
      const { numUpdatedRows } = await grantOf(space, account)
        .where('owner', '=', owner)
        .where('lease_expiration', '>', now)
        .set({ refreshing: now, lease_expiration: now + lease })
        .executeTakeFirst()
      return numUpdatedRows === 1n
    },

    async release(space, account, owner) {
      await grantOf(space, account)
        .where('owner', '=', owner)
        .set({ owner: null, lease_expiration: null, refreshing: null })
        .execute()
    },

    async pending({ before, limit }) {
      return db
        .selectFrom('grants')
        .select(['space', 'account'])
        .where(pending)
        .where('updated', '<=', before)
        .orderBy('updated')
        .limit(limit)
        .execute()
    },

    async published(space, account, seq) {
      await grantOf(space, account)
        .where('seq', '=', seq)
        .set({ published: seq, sealed: null })
        .execute()
    },
  }
}

function toGrant({
  owner: _owner,
  lease_expiration: _leaseExpiration,
  ...row
}: Selectable<GrantRow>): StoredGrant {
  return {
    ...row,
    sealed: row.sealed ? toBytes(row.sealed) : undefined,
    recipient: row.recipient ?? undefined,
    parts: JSON.parse(row.parts) as string[],
    reason: fromJSON(row.reason) as RunError | undefined,
    delegation: toBytes(row.delegation),
    refreshing: row.refreshing ?? undefined,
  }
}
