import { sql } from 'kysely'
import type { Kysely, Selectable, SqlBool } from 'kysely'
import type {
  GrantRequest,
  GrantReturn,
  GrantStore,
  RunError,
  StoredGrant,
} from './interface.ts'
import { fromJSON, toBytes, toJSON } from './rows.ts'
import type {
  GrantRequestRow,
  GrantReturnRow,
  GrantRow,
  Tables,
} from './tables.ts'

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

    async getRequest(state) {
      const row = await db
        .selectFrom('grant_requests')
        .selectAll()
        .where('state', '=', state)
        .executeTakeFirst()
      return row && toRequest(row)
    },

    async takeRequest(state) {
      const row = await db
        .deleteFrom('grant_requests')
        .where('state', '=', state)
        .returningAll()
        .executeTakeFirst()
      return row && toRequest(row)
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

    async put(
      { space, account, scopeVersion, ...update },
      now,
      { giveBack, after } = {}
    ) {
      const row = {
        ...update,
        recipient: update.recipient ?? null,
        scope_version: scopeVersion,
        asked: JSON.stringify(update.asked),
        parts: JSON.stringify(update.parts),
        reason: null,
        refreshing: null,
        answer: null,
        updated: now,
        attempted: 0,
      }
      return db.transaction().execute(async (transaction) => {
        const { numInsertedOrUpdatedRows } = await transaction
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
              .where((eb) =>
                eb.and([
                  eb('grants.seq', '<', eb.ref('excluded.seq')),
                  ...(after === undefined
                    ? []
                    : [eb('grants.seq', '=', after)]),
                ])
              )
          )
          .executeTakeFirst()
        const isNewest = numInsertedOrUpdatedRows === 1n
        if (isNewest && giveBack) await addReturn(transaction, giveBack)
        return isNewest
      })
    },

    async end(space, account, { seq, reason, now }) {
      await grantOf(space, account)
        .where('seq', '=', seq)
        .where('state', '=', 'active')
        .set({
          state: 'ended',
          reason: toJSON(reason),
          refreshing: null,
          answer: null,
          updated: now,
        })
        .execute()
    },

    async resume(space, account, { seq, now }) {
      await grantOf(space, account)
        .where('seq', '=', seq)
        .where('state', '=', 'ended')
        .set({ state: 'active', reason: null, updated: now })
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

    async answered(space, account, { seq, sealed }) {
      const { numUpdatedRows } = await grantOf(space, account)
        .where('seq', '=', seq)
        .where('state', '=', 'active')
        .set({ answer: sealed })
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
        .where('attempted', '<=', before)
        .where('updated', '<=', before)
        .orderBy('attempted')
        .orderBy('updated')
        .limit(limit)
        .execute()
    },

    async attempted(space, account, now) {
      await grantOf(space, account).set({ attempted: now }).execute()
    },

    async published(space, account, seq) {
      await grantOf(space, account)
        .where('seq', '=', seq)
        .set({ published: seq, sealed: null })
        .execute()
    },

    addReturn: (giveBack) => addReturn(db, giveBack),

    async returnsOf(space, account) {
      const rows = await db
        .selectFrom('grant_returns')
        .selectAll()
        .where('space', '=', space)
        .where('account', '=', account)
        .execute()
      return rows.map(toReturn)
    },

    async returns({ before, now, limit }) {
      await db
        .deleteFrom('grant_returns')
        .where('expiration', '<=', Math.floor(now / 1000))
        .execute()
      const rows = await db
        .selectFrom('grant_returns')
        .selectAll()
        .where('attempted', '<=', before)
        .orderBy('attempted')
        .limit(limit)
        .execute()
      return rows.map(toReturn)
    },

    async attemptedReturn(id, now) {
      await db
        .updateTable('grant_returns')
        .where('id', '=', id)
        .set({ attempted: now })
        .execute()
    },

    async removeReturn(id) {
      await db.deleteFrom('grant_returns').where('id', '=', id).execute()
    },
  }
}

async function addReturn(
  db: Kysely<Tables>,
  giveBack: GrantReturn
): Promise<void> {
  await db
    .insertInto('grant_returns')
    .values({ ...giveBack, attempted: 0 })
    .onConflict((conflict) => conflict.column('id').doNothing())
    .execute()
}

function toRequest(row: Selectable<GrantRequestRow>): GrantRequest {
  return {
    ...row,
    sealed: toBytes(row.sealed),
    delegation: toBytes(row.delegation),
  }
}

function toReturn({
  attempted: _attempted,
  ...row
}: Selectable<GrantReturnRow>): GrantReturn {
  return { ...row, sealed: toBytes(row.sealed) }
}

function toGrant({
  owner: _owner,
  lease_expiration: _leaseExpiration,
  attempted: _attempted,
  scope_version: scopeVersion,
  ...row
}: Selectable<GrantRow>): StoredGrant {
  return {
    ...row,
    scopeVersion,
    asked: JSON.parse(row.asked) as string[],
    sealed: row.sealed ? toBytes(row.sealed) : undefined,
    recipient: row.recipient ?? undefined,
    parts: JSON.parse(row.parts) as string[],
    reason: fromJSON(row.reason) as RunError | undefined,
    delegation: toBytes(row.delegation),
    refreshing: row.refreshing ?? undefined,
    answer: row.answer ? toBytes(row.answer) : undefined,
  }
}
