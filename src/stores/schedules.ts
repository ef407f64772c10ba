import { sql } from 'kysely'
import type { Kysely, Selectable, SelectQueryBuilder, SqlBool } from 'kysely'
import type {
  LastRun,
  Rhythm,
  RunError,
  Schedule,
  ScheduleDecision,
  ScheduleDeferral,
  ScheduleStore,
} from './interface.ts'
import { fromJSON, toBytes, toJSON } from './rows.ts'
import type { ScheduleRow, Tables } from './tables.ts'

/** As the partial indexes have it, literally, so that they are used. */
const unclaimed = sql<SqlBool>`schedules.next is not null and schedules.owner is null`
const claimed = sql<SqlBool>`schedules.owner is not null`

const expiring = sql<SqlBool>`delegation_expiration is not null`

/** All but the delegation itself, which is large and seldom needed. */
const COLUMNS = [
  'schedules.space',
  'schedules.account',
  'schedules.rhythm',
  'schedules.anchor',
  'schedules.include',
  'schedules.delegation',
  'schedules.delegation_expiration',
  'schedules.host',
  'schedules.state',
  'schedules.reason',
  'schedules.paused_until',
  'schedules.next',
  'schedules.last_run',
  'schedules.created',
  'schedules.updated',
  'schedules.owner',
  'schedules.lease_expiration',
  'schedules.begun',
] as const

/** What a schedule is that nobody has claimed. */
const NO_CLAIM = {
  owner: null,
  lease_expiration: null,
  claimed_version: null,
  begun: null,
} as const

/** Somebody else made the schedule between the look and the decision. */
const CONFLICT = Symbol('conflict')

type SelectedRow = Selectable<
  Omit<ScheduleRow, 'delegation_bytes' | 'version' | 'claimed_version'>
>

export function createScheduleStore(db: Kysely<Tables>): ScheduleStore {
  return {
    async decide(space, account, decide, now) {
      // Somebody else may make the schedule first; then look again.
      for (;;) {
        const { answer } = await db
          .transaction()
          .execute((transaction) =>
            decideOnce(transaction, space, account, decide, now)
          )
        if (answer !== CONFLICT) return answer
      }
    },

    async get(space, account) {
      const row = await db
        .selectFrom('schedules')
        .select(COLUMNS)
        .where('space', '=', space)
        .where('account', '=', account)
        .executeTakeFirst()
      return row && toSchedule(row)
    },

    async delegation(space, account) {
      const row = await db
        .selectFrom('schedules')
        .select(['delegation', 'delegation_bytes', 'delegation_expiration'])
        .where('space', '=', space)
        .where('account', '=', account)
        .executeTakeFirst()
      return (
        row && {
          cid: row.delegation,
          bytes: toBytes(row.delegation_bytes),
          expiration: row.delegation_expiration ?? undefined,
        }
      )
    },

    async list(space) {
      const rows = await db
        .selectFrom('schedules')
        .select(COLUMNS)
        .where('space', '=', space)
        .execute()
      // Databases sort text by rules of their own.
      return rows
        .map(toSchedule)
        .sort((one, other) => (one.account < other.account ? -1 : 1))
    },

    async count(space) {
      const { count } = await db
        .selectFrom('schedules')
        .select((schedules) => schedules.fn.countAll().as('count'))
        .where('space', '=', space)
        .executeTakeFirstOrThrow()
      return Number(count)
    },

    async figures({ now, ending, limit }) {
      // Each in an index of its own.
      const due = [unclaimed, sql<SqlBool>`${claimed} and begun is null`].map(
        (which) =>
          db.selectFrom('schedules').where(which).where('next', '<=', now)
      )
      let count = 0
      let oldest: number | undefined
      for (const each of due) {
        const { first } = await each
          .select((schedules) => schedules.fn.min('next').as('first'))
          .executeTakeFirstOrThrow()
        if (first === null) continue
        oldest = Math.min(oldest ?? Infinity, Number(first))
        count += await countRows(db, each.select('space').limit(limit))
      }
      const endings: number[] = []
      for (const end of ending) {
        endings.push(
          await countRows(
            db,
            db
              .selectFrom('schedules')
              .select('space')
              .where(expiring)
              .where('delegation_expiration', '>', now)
              .where('delegation_expiration', '<=', end)
              .where('state', '!=', 'stopped')
              .limit(limit)
          )
        )
      }
      return {
        due: Math.min(count, limit),
        ...(oldest === undefined ? {} : { oldest }),
        ending: endings,
      }
    },

    async remove(space, account) {
      const row = await db
        .deleteFrom('schedules')
        .where('space', '=', space)
        .where('account', '=', account)
        .returning(COLUMNS)
        .executeTakeFirst()
      return row && toSchedule(row)
    },

    async claimDue({ now, limit, owner, lease }, inTransaction) {
      return db.transaction().execute(async (transaction) => {
        const rows = await transaction
          .with(
            (due) => due('due').materialized(),
            (query) =>
              query
                .selectFrom('schedules')
                .select(['space', 'account'])
                .where(unclaimed)
                .where('next', '<=', now)
                .orderBy('next')
                .limit(limit)
                .forUpdate()
                .skipLocked()
          )
          .updateTable('schedules')
          .from('due')
          .set((schedules) => ({
            owner,
            lease_expiration: now + lease,
            claimed_version: schedules.ref('schedules.version'),
            state: 'active',
            reason: null,
            paused_until: null,
          }))
          .whereRef('schedules.space', '=', 'due.space')
          .whereRef('schedules.account', '=', 'due.account')
          .returning(COLUMNS)
          .execute()
        const schedules = rows
          .map(toSchedule)
          .sort((one, other) => (one.next ?? 0) - (other.next ?? 0))
        if (schedules.length > 0) {
          const deferred = await inTransaction?.(schedules, transaction)
          if (deferred && deferred.length > 0) {
            await defer(transaction, owner, deferred)
          }
        }
        return schedules
      })
    },

    async begin(space, account, owner, { leaseExpiration, now }) {
      const row = await db
        .updateTable('schedules')
        .set({
          lease_expiration: leaseExpiration,
          begun: sql<number>`coalesce(begun, ${now})`,
        })
        .where('space', '=', space)
        .where('account', '=', account)
        .where(ownedBy(owner))
        .returning(COLUMNS)
        .executeTakeFirst()
      return row && toSchedule(row)
    },

    async renewLease(space, account, owner, leaseExpiration) {
      const { numUpdatedRows } = await db
        .updateTable('schedules')
        .set({ lease_expiration: leaseExpiration })
        .where('space', '=', space)
        .where('account', '=', account)
        .where(ownedBy(owner))
        .executeTakeFirst()
      return numUpdatedRows > 0n
    },

    async settle(space, account, owner, settlement) {
      const { state, reason, host, lastRun, now } = settlement
      const { numUpdatedRows } = await db
        .updateTable('schedules')
        .set({
          state: unlessDecided('state', state),
          reason: unlessDecided('reason', toJSON(reason)),
          next: unlessDecided('next', dueTime(settlement)),
          ...(lastRun ? { last_run: JSON.stringify(lastRun) } : {}),
          ...(host === undefined ? {} : { host }),
          ...NO_CLAIM,
          updated: now,
        })
        .where('space', '=', space)
        .where('account', '=', account)
        .where(ownedBy(owner))
        .executeTakeFirst()
      return numUpdatedRows > 0n
    },

    async expired({ now, limit }) {
      const rows = await db
        .selectFrom('schedules')
        .select(['space', 'account', 'owner'])
        .where(claimed)
        .where('lease_expiration', '<=', now)
        .orderBy('lease_expiration')
        .limit(limit)
        .execute()
      return rows.map(({ owner, ...row }) => ({ ...row, owner: owner ?? '' }))
    },

    async release(space, account, owner, now) {
      const { numUpdatedRows } = await db
        .updateTable('schedules')
        .set(NO_CLAIM)
        .where('space', '=', space)
        .where('account', '=', account)
        .where(ownedBy(owner))
        .where('lease_expiration', '<=', now)
        .executeTakeFirst()
      return numUpdatedRows > 0n
    },
  }
}

/** In one statement: a large host that is away must not hold up others. */
async function defer(
  db: Kysely<Tables>,
  owner: string,
  deferrals: ScheduleDeferral[]
): Promise<void> {
  const rows = deferrals.map(
    ({ space, account, next }) =>
      sql`(${space}, ${account}, cast(${next} as bigint))`
  )
  await sql`
    with deferred (space, account, next) as (values ${sql.join(rows)})
    update schedules
    set next = deferred.next, owner = null, lease_expiration = null,
      claimed_version = null
    from deferred
    where schedules.space = deferred.space
      and schedules.account = deferred.account
      and coalesce(schedules.owner, '') = ${owner}`.execute(db)
}

async function decideOnce(
  db: Kysely<Tables>,
  space: string,
  account: string,
  decide: Parameters<ScheduleStore['decide']>[2],
  now: number
): Promise<{ answer: Schedule | undefined | typeof CONFLICT }> {
  const row = await db
    .selectFrom('schedules')
    .select(COLUMNS)
    .where('space', '=', space)
    .where('account', '=', account)
    .forUpdate()
    .executeTakeFirst()
  const present = row && toSchedule(row)
  const decision = decide(present)
  if (!decision) return { answer: present }
  const { delegation } = decision
  const values = toValues(decision, now)
  const given = delegation && {
    delegation: delegation.cid,
    delegation_bytes: delegation.bytes,
    delegation_expiration: delegation.expiration ?? null,
  }
  if (present) {
    const changed = await db
      .updateTable('schedules')
      .set((schedules) => ({
        ...values,
        ...given,
        ...(decision.unclaims ? NO_CLAIM : {}),
        version: schedules('version', '+', 1),
      }))
      .where('space', '=', space)
      .where('account', '=', account)
      .returning(COLUMNS)
      .executeTakeFirstOrThrow()
    return { answer: toSchedule(changed) }
  }
  if (!given) throw new TypeError('a schedule needs a delegation')
  const made = await db
    .insertInto('schedules')
    .values({ space, account, ...values, ...given, created: now, version: 1 })
    .onConflict((conflict) => conflict.doNothing())
    .returning(COLUMNS)
    .executeTakeFirst()
  return { answer: made ? toSchedule(made) : CONFLICT }
}

/**
 * Whether it is the owner's. A plain comparison would let PostgreSQL look
 * through all that is claimed, by the index of those, for the one.
 */
function ownedBy(owner: string) {
  return sql<SqlBool>`coalesce(owner, '') = ${owner}`
}

/** The new value, if nothing was decided since the schedule was claimed. */
function unlessDecided<Column extends 'state' | 'reason' | 'next'>(
  column: Column,
  value: ScheduleRow[Column]
) {
  return sql<
    ScheduleRow[Column]
  >`case when version = claimed_version then ${value} else ${sql.ref(column)} end`
}

function dueTime({
  state,
  next,
}: Pick<ScheduleDecision, 'state' | 'next'>): number | null {
  return state === 'stopped' ? null : (next ?? null)
}

function toValues(decision: ScheduleDecision, now: number) {
  const { rhythm, anchor, include, state } = decision
  const { reason, pausedUntil, host } = decision
  return {
    rhythm: JSON.stringify(rhythm),
    anchor,
    include: toJSON(include),
    ...(host === undefined ? {} : { host }),
    state,
    reason: toJSON(reason),
    paused_until: pausedUntil ?? null,
    next: dueTime(decision),
    updated: now,
  }
}

async function countRows(
  db: Kysely<Tables>,
  rows: SelectQueryBuilder<Tables, 'schedules', { space: string }>
): Promise<number> {
  const { count } = await db
    .selectFrom(rows.as('counted'))
    .select((counted) => counted.fn.countAll().as('count'))
    .executeTakeFirstOrThrow()
  return Number(count)
}

function toSchedule(row: SelectedRow): Schedule {
  return {
    space: row.space,
    account: row.account,
    rhythm: JSON.parse(row.rhythm) as Rhythm,
    anchor: row.anchor,
    include: fromJSON(row.include) as string[] | undefined,
    delegation: {
      cid: row.delegation,
      expiration: row.delegation_expiration ?? undefined,
    },
    host: row.host ?? undefined,
    state: row.state,
    reason: fromJSON(row.reason) as RunError | undefined,
    pausedUntil: row.paused_until ?? undefined,
    next: row.next ?? undefined,
    lastRun: fromJSON(row.last_run) as LastRun | undefined,
    created: row.created,
    updated: row.updated,
    owner: row.owner ?? undefined,
    leaseExpiration: row.lease_expiration ?? undefined,
    begun: row.begun ?? undefined,
  }
}
