import type { Logger } from 'pino'
import type { Time } from '../backup/index.ts'
import type { Backup } from '../capabilities/index.ts'
import type { RunStore, WatchedRun } from '../stores/index.ts'
import { statusOf } from './backup.ts'

/** Milliseconds between two looks at the runs that are followed. */
const INTERVAL = 1_000

/**
 * Milliseconds that a run may have been asked for before the last look and
 * still not have been there: clocks of processes differ.
 */
const SLACK = 60_000

/** Runs that are read at one look, of each kind. */
const MAX_RUNS = 2_000

/** Runs of a Space that who begins to follow it is told of. */
const FIRST_RUNS = 20

/** Who follows runs in one process, and of these in one Space. */
const MAX_FOLLOWERS = 1_000
const MAX_FOLLOWERS_OF_SPACE = 20

/** Which runs are followed: one, those of an account, or all of a Space. */
export interface FollowedRuns {
  space: string
  run?: string
  account?: string
}

/** A run as it goes over the wire as JSON. */
export interface RunMessage extends Omit<Backup.RunStatus, 'run'> {
  /** CID of the task. */
  run: string
}

/** Tells those who follow runs how they go on, whichever process works on them. */
export interface RunFeed {
  /** Number of followers. */
  readonly size: number

  /**
   * Follows runs until the follower is closed: as they are now, and then what
   * changes.
   *
   * @returns nothing where too many follow runs already
   */
  follow(runs: FollowedRuns): RunFollower | undefined
}

/** One who follows runs. */
export interface RunFollower {
  /** Resolves when there is something to take, at once if there is already. */
  next(): Promise<void>
  /**
   * Takes what has changed since it was last taken. Of each run there is only
   * the latest: whoever is slow misses what was in between.
   */
  take(): RunMessage[]
  close(): void
}

interface Follower {
  runs: FollowedRuns
  isNew: boolean
  /** Runs that were told, with how they were; forgotten when they are over. */
  told: Map<string, string>
  pending: Map<string, RunMessage>
  news: PromiseWithResolvers<void>
}

/**
 * Reads the runs that are followed: for all followers together, and not at all
 * while there are none.
 */
export function createRunFeed({
  runs: store,
  time,
  logger,
}: {
  runs: Pick<RunStore, 'get' | 'list' | 'watched'>
  time: Time
  logger: Logger
}): RunFeed {
  const followers = new Set<Follower>()
  const ofSpace = new Map<string, number>()
  /** Runs that had not ended when they were last seen. */
  let unfinished = new Set<string>()
  let looked = time.now()
  let looking = false
  let waiting = new AbortController()

  const begin = async (follower: Follower) => {
    const { space, run: id, account } = follower.runs
    const run = id === undefined ? undefined : await store.get(id)
    const runs =
      id === undefined
        ? await store.list(space, {
            limit: FIRST_RUNS,
            ...(account === undefined ? {} : { account }),
          })
        : run
          ? [run]
          : []
    for (const each of runs.toReversed()) tell(follower, each)
    follower.isNew = false
  }

  const look = async () => {
    const now = time.now()
    // One after another, so that nothing newer is told before something older.
    for (const follower of followers) {
      if (follower.isNew) await begin(follower)
    }
    const all = [...followers].map(({ runs }) => runs)
    const found = await store.watched({
      runs: [
        ...new Set([
          ...all.flatMap(({ run }) => run ?? []),
          ...[...unfinished].slice(0, MAX_RUNS),
        ]),
      ],
      spaces: [
        ...new Set(
          all.flatMap(({ run, space }) => (run === undefined ? space : []))
        ),
      ],
      since: looked - SLACK,
      limit: MAX_RUNS,
    })
    looked = now
    unfinished = new Set(
      found.filter((run) => !isOver(run)).map(({ id }) => id)
    )
    const bySpace = Map.groupBy(found, ({ space }) => space)
    for (const follower of followers) {
      if (follower.isNew) continue
      const seen = bySpace.get(follower.runs.space) ?? []
      for (const run of seen) {
        if (isFollowed(run, follower.runs)) tell(follower, run)
      }
      const ids = new Set(seen.map(({ id }) => id))
      for (const id of follower.told.keys()) {
        if (!ids.has(id)) follower.told.delete(id)
      }
    }
  }

  const lookForever = async () => {
    while (followers.size > 0) {
      waiting = new AbortController()
      try {
        await look()
      } catch (error) {
        // The stores may be closed already, when nobody is left.
        if (followers.size === 0) break
        logger.warn(
          { err: error },
          'runs that are followed cannot be read; trying again'
        )
      }
      // Whoever comes is told at once.
      await time.sleep(INTERVAL, waiting.signal).catch(() => {})
    }
    looking = false
  }

  return {
    get size() {
      return followers.size
    },

    follow(runs) {
      const already = ofSpace.get(runs.space) ?? 0
      if (
        followers.size >= MAX_FOLLOWERS ||
        already >= MAX_FOLLOWERS_OF_SPACE
      ) {
        return undefined
      }
      const follower: Follower = {
        runs,
        isNew: true,
        told: new Map(),
        pending: new Map(),
        news: Promise.withResolvers(),
      }
      followers.add(follower)
      ofSpace.set(runs.space, already + 1)
      waiting.abort()
      if (!looking) {
        looked = time.now()
        unfinished = new Set()
        looking = true
        void lookForever()
      }
      return {
        next: () => follower.news.promise,
        take() {
          const messages = [...follower.pending.values()]
          follower.pending.clear()
          follower.news = Promise.withResolvers()
          return messages
        },
        close() {
          if (!followers.delete(follower)) return
          const left = (ofSpace.get(runs.space) ?? 1) - 1
          if (left === 0) ofSpace.delete(runs.space)
          else ofSpace.set(runs.space, left)
          if (followers.size === 0) waiting.abort()
        },
      }
    },
  }
}

function isFollowed(
  run: WatchedRun,
  { run: id, account }: FollowedRuns
): boolean {
  return (
    (id === undefined || run.id === id) &&
    (account === undefined || run.account === account)
  )
}

/** Tells a run, unless it is as it was told before. */
function tell(follower: Follower, run: WatchedRun): void {
  const message = { ...statusOf(run), run: run.id }
  const text = JSON.stringify(message)
  if (follower.told.get(run.id) === text) return
  follower.told.set(run.id, text)
  follower.pending.set(run.id, message)
  follower.news.resolve()
}

/** Whether nothing more becomes of a run. */
export function isOver({ state }: { state: Backup.RunState }): boolean {
  return state === 'done' || state === 'failed'
}
