import { sql } from 'kysely'
import type { ExpressionBuilder, Kysely, SqlBool, UpdateObject } from 'kysely'
import type {
  Run,
  RunError,
  RunRequest,
  RunStore,
  WatchedRun,
} from './interface.ts'
import { createReceiptStore } from './receipts.ts'
import { fromJSON, toBytes, toJSON } from './rows.ts'
import type { RunRow, Tables } from './tables.ts'

/** As the partial indexes have it, literally, so that they are used. */
const active = sql<SqlBool>`state in ('queued', 'running')`

const ended = sql<SqlBool>`finished is not null`

/** A run that anybody may claim. */
const RELEASED = {
  state: 'queued',
  owner: null,
  lease_expiration: null,
} as const

/** All but `authority`, which may be large. */
const WATCHED = [
  'id',
  'space',
  'account',
  'agent',
  'include',
  'scheduled',
  'host',
  'state',
  'progress',
  'outcome',
  'error',
  'created',
  'updated',
  'started',
  'finished',
  'attempts',
  'owner',
  'lease_expiration',
] as const satisfies (keyof RunRow)[]

export function createRunStore(db: Kysely<Tables>): RunStore {
  return {
    async create(request) {
      // A run that was in the way may end before it is read; then try again.
      for (;;) {
        const created = await insertRun(db, request)
        if (created) return { run: created, created: true }
        const run =
          (await readRun(db, request.id)) ?? (await readActiveRun(db, request))
        if (run) return { run, created: false }
      }
    },

    get: (id) => readRun(db, id),

    async list(space, { limit, account }) {
      const rows = await db
        .selectFrom('runs')
        .selectAll()
        .where('space', '=', space)
        .$if(account !== undefined, (query) =>
          query.where('account', '=', account!)
        )
        .orderBy('created', 'desc')
        .orderBy('id', 'desc')
        .limit(limit)
        .execute()
      return rows.map(toRun)
    },

    async watched({ runs, spaces, since, limit }) {
      const query = db.selectFrom('runs').select(WATCHED)
      // One question for each index, so that it is used.
      const [named, unfinished, recent] = await Promise.all([
        runs.length > 0 ? query.where('id', 'in', padded(runs)).execute() : [],
        spaces.length > 0
          ? query
              .where(active)
              .where('space', 'in', padded(spaces))
              .limit(limit)
              .execute()
          : [],
        spaces.length > 0
          ? query
              .where('space', 'in', padded(spaces))
              .where('created', '>=', since)
              .orderBy('created', 'desc')
              .limit(limit)
              .execute()
          : [],
      ])
      const rows = [...named, ...unfinished, ...recent]
      return [...new Map(rows.map((row) => [row.id, toWatched(row)])).values()]
    },

    async claim({ owner, now, lease, without = [] }) {
      const row = await db
        .updateTable('runs')
        .set((runs) => ({
          state: 'running',
          owner,
          lease_expiration: now + lease,
          attempts: runs('attempts', '+', 1),
          started: runs.fn.coalesce('started', runs.val(now)),
          updated: now,
        }))
        .where('id', '=', (runs) =>
          runs
            .selectFrom('runs')
            .select('id')
            .where(active)
            .where((run) =>
              run.or([
                run('state', '=', 'queued'),
                run('lease_expiration', '<=', now),
              ])
            )
            .$if(without.length > 0, (query) =>
              query.where((run) =>
                run.or([
                  run('host', 'is', null),
                  run('host', 'not in', padded(without)),
                ])
              )
            )
            .orderBy('scheduled')
            .orderBy('created')
            .orderBy('id')
            .limit(1)
            .forUpdate()
            .skipLocked()
        )
        .returningAll()
        .executeTakeFirst()
      return row && toRun(row)
    },

    heartbeat: (id, owner, { leaseExpiration, progress, now }) =>
      updateOwned(db, id, owner, {
        lease_expiration: leaseExpiration,
        progress: toJSON(progress),
        updated: now,
      }),

    locate: (id, owner, host) => updateOwned(db, id, owner, { host }),

    release: (id, owner) => updateOwned(db, id, owner, RELEASED),

    defer: (id, owner, host) =>
      updateOwned(db, id, owner, {
        ...RELEASED,
        host,
        attempts: sql<number>`attempts - 1`,
      }),

    async finish(id, owner, result) {
      const { state, progress, outcome, error, eventful, receipt, now } = result
      return db.transaction().execute(async (transaction) => {
        const owned = await updateOwned(transaction, id, owner, {
          state,
          ...(progress === undefined ? {} : { progress: toJSON(progress) }),
          outcome: toJSON(outcome),
          error: toJSON(error),
          eventful: eventful ? 1 : 0,
          // Nobody acts upon it any more.
          authority: new Uint8Array(),
          owner: null,
          lease_expiration: null,
          updated: now,
          finished: now,
        })
        if (owned && receipt) {
          await createReceiptStore(transaction).put(id, receipt)
        }
        return owned
      })
    },

    async prune({ before, limit, after }) {
      const rows = await db
        .selectFrom('runs')
        .select(['id', 'finished'])
        .where(ended)
        .where('finished', '<=', before)
        .$if(after !== undefined, (query) =>
          query.where((run) =>
            run(
              run.refTuple('finished', 'id'),
              '>',
              run.tuple(after!.finished, after!.id)
            )
          )
        )
        .orderBy('finished')
        .orderBy('id')
        .limit(limit)
        .execute()
      const last = rows.at(-1)
      if (!last) return { removed: 0 }
      const removed = await removeRuns(
        db,
        rows.map(({ id }) => id)
      )
      return {
        removed,
        ...(rows.length < limit
          ? {}
          : { next: { finished: last.finished!, id: last.id } }),
      }
    },
  }
}

/** @returns how many of the runs are not the last of their account, and went */
async function removeRuns(db: Kysely<Tables>, ids: string[]): Promise<number> {
  return db.transaction().execute(async (transaction) => {
    const later = (run: ExpressionBuilder<Tables, 'runs'>) =>
      run
        .selectFrom('runs as later')
        .select('later.id')
        .whereRef('later.space', '=', 'runs.space')
        .whereRef('later.account', '=', 'runs.account')
        .where((other) =>
          other(
            other.refTuple('later.created', 'later.id'),
            '>',
            other.refTuple('runs.created', 'runs.id')
          )
        )
    const removed = await transaction
      .deleteFrom('runs')
      .where('id', 'in', padded(ids))
      .where((run) =>
        run.exists(later(run).where(sql<SqlBool>`later.finished is not null`))
      )
      .where((run) =>
        run.or([
          run('eventful', '=', 0),
          run.exists(later(run).where(sql<SqlBool>`later.eventful = 1`)),
        ])
      )
      .returning('id')
      .execute()
    if (removed.length > 0) {
      await transaction
        .deleteFrom('receipts')
        .where('task', 'in', padded(removed.map(({ id }) => id)))
        .execute()
    }
    return removed.length
  })
}

async function insertRun(
  db: Kysely<Tables>,
  {
    id,
    space,
    account,
    agent,
    include,
    authority,
    scheduled = false,
    created,
  }: RunRequest
): Promise<Run | undefined> {
  const row = await db
    .insertInto('runs')
    .values((run) => ({
      id,
      space,
      account,
      agent,
      include: JSON.stringify(include),
      authority,
      scheduled: scheduled ? 1 : 0,
      host: run.fn.coalesce(
        run
          .selectFrom('schedules')
          .select('host')
          .where('space', '=', space)
          .where('account', '=', account),
        run
          .selectFrom('runs')
          .select('host')
          .where('space', '=', space)
          .where('account', '=', account)
          .orderBy('created', 'desc')
          .orderBy('id', 'desc')
          .limit(1)
      ),
      state: 'queued',
      created,
      updated: created,
      attempts: 0,
      eventful: 0,
    }))
    .onConflict((conflict) => conflict.doNothing())
    .returningAll()
    .executeTakeFirst()
  return row && toRun(row)
}

async function readRun(
  db: Kysely<Tables>,
  id: string
): Promise<Run | undefined> {
  const row = await db
    .selectFrom('runs')
    .selectAll()
    .where('id', '=', id)
    .executeTakeFirst()
  return row && toRun(row)
}

async function readActiveRun(
  db: Kysely<Tables>,
  { space, account }: RunRequest
): Promise<Run | undefined> {
  const row = await db
    .selectFrom('runs')
    .selectAll()
    .where('space', '=', space)
    .where('account', '=', account)
    .where(active)
    .executeTakeFirst()
  return row && toRun(row)
}

/**
 * Repeats the last item until there is a power of two of them: of the lengths
 * of lists there are few, and so are the statements that a server prepares.
 */
function padded(items: string[]): string[] {
  const length = 2 ** Math.ceil(Math.log2(items.length))
  return Array.from({ length }, (_, at) => items[at] ?? items.at(-1)!)
}

/** @returns whether the run is running and the owner's */
async function updateOwned(
  db: Kysely<Tables>,
  id: string,
  owner: string,
  changes: UpdateObject<Tables, 'runs'>
): Promise<boolean> {
  const { numUpdatedRows } = await db
    .updateTable('runs')
    .set(changes)
    .where('id', '=', id)
    .where('owner', '=', owner)
    .where('state', '=', 'running')
    .executeTakeFirst()
  return numUpdatedRows > 0n
}

function toRun(row: RunRow): Run {
  return { ...toWatched(row), authority: toBytes(row.authority) }
}

function toWatched(row: Pick<RunRow, (typeof WATCHED)[number]>): WatchedRun {
  return {
    id: row.id,
    space: row.space,
    account: row.account,
    agent: row.agent,
    include: JSON.parse(row.include) as string[],
    scheduled: row.scheduled === 1,
    host: row.host ?? undefined,
    state: row.state,
    progress: fromJSON(row.progress),
    outcome: fromJSON(row.outcome),
    error: fromJSON(row.error) as RunError | undefined,
    created: row.created,
    updated: row.updated,
    started: row.started ?? undefined,
    finished: row.finished ?? undefined,
    attempts: row.attempts,
    owner: row.owner ?? undefined,
    leaseExpiration: row.lease_expiration ?? undefined,
  }
}
