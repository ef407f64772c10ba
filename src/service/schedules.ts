import { isDeepStrictEqual } from 'node:util'
import { ok } from '@ucanto/core'
import type { Link } from '@ucanto/interface'
import { provide } from '@ucanto/server'
import { CID } from 'multiformats/cid'
import { Backup } from '../capabilities/index.ts'
import {
  anchorOf,
  InvalidRhythmError,
  nextTime,
  readRhythm,
  type RhythmLimits,
} from '../scheduler/index.ts'
import type {
  Rhythm,
  Schedule,
  ScheduleDecision,
  Stores,
} from '../stores/index.ts'
import { decodeDelegations } from './authority.ts'
import type { ServiceContext } from './context.ts'
import {
  attachedDelegation,
  checkScheduled,
  encodeGiven,
} from './delegation.ts'
import { failure } from './invocation.ts'

/** Milliseconds that a pause may take. */
const LONGEST_PAUSE = 366 * 24 * 60 * 60 * 1000

type AccountDID = `did:${string}:${string}`
type SpaceDID = `did:key:${string}`

/** Handlers of schedules, among those of `backup/*`. */
export function createScheduleService(
  context: Pick<
    ServiceContext,
    | 'stores'
    | 'grants'
    | 'time'
    | 'agent'
    | 'rhythmLimits'
    | 'schedulesPerSpace'
    | 'provisioning'
  >
) {
  const { stores, time, agent, rhythmLimits, schedulesPerSpace } = context
  const { provisioning } = context
  return {
    /**
     * Makes a schedule, or replaces its rhythm and delegation. Who asks for
     * the same again changes nothing. One that was stopped goes on; one that
     * somebody has paused stays so.
     */
    schedule: provide(
      Backup.schedule,
      async ({ capability, invocation, context: validation }) => {
        const space = capability.with
        const { account, include, delegation: link } = capability.nb
        const now = time.now()
        const rhythm = rhythmIn(capability.nb, now, rhythmLimits)
        if (rhythm.error) return rhythm
        const admitted = await provisioning.check(space, invocation)
        if (admitted.error) return admitted
        const given = attachedDelegation(invocation, link)
        if (given.error) return given
        const delegation = given.ok

        const present = await stores.schedules.get(space, account)
        const plan = planOf({ space, account, rhythm: rhythm.ok }, now)
        const checked = await checkScheduled(
          delegation,
          { agent, space, account, include, now, first: plan(present).next },
          validation
        )
        if (checked.error) return checked
        const encoded = encodeGiven([delegation])
        if (encoded.error) return encoded
        const bytes = encoded.ok
        if (
          !present &&
          (await stores.schedules.count(space)) >= schedulesPerSpace
        ) {
          return failure(
            'TooManySchedules',
            `the Space has as many schedules as this service keeps for one, ${schedulesPerSpace}; end those that are not needed`
          )
        }
        const { expiration } = checked.ok
        const kept = await stores.schedules.decide(
          space,
          account,
          (present) => ({
            rhythm: rhythm.ok,
            include,
            delegation: { cid: link.toString(), bytes, expiration },
            ...plan(present),
          }),
          now
        )
        return answerOf(kept, space, account, now)
      }
    ),

    schedules: provide(Backup.schedules, async ({ capability }) => {
      const now = time.now()
      const [schedules, grants = []] = await Promise.all([
        stores.schedules.list(capability.with),
        context.grants?.list(capability.with),
      ])
      const granted = new Map(grants.map((grant) => [grant.account, grant]))
      return ok({
        schedules: schedules.map((each) => {
          const grant = granted.get(each.account)
          const { state, reason, expiration } = grant ?? {}
          return {
            ...wireOf(each, now),
            ...(state !== undefined && expiration !== undefined
              ? {
                  authorization: {
                    state,
                    expiration,
                    ...(reason ? { reason } : {}),
                  },
                }
              : {}),
          }
        }),
      })
    }),

    /** Pauses a schedule; one that was stopped stays so. */
    pause: provide(Backup.pause, async ({ capability }) => {
      const space = capability.with
      const { account, until } = capability.nb
      const now = time.now()
      const end = until === undefined ? undefined : until * 1000
      if (end !== undefined && !(end > now && end <= now + LONGEST_PAUSE)) {
        return failure(
          'InvalidPause',
          `a pause ends in the future, and within a year; ${until} does not, as Unix seconds`
        )
      }
      const kept = await stores.schedules.decide(
        space,
        account,
        (present) =>
          !present || present.state === 'stopped'
            ? undefined
            : {
                ...settingsOf(present),
                state: 'paused',
                pausedUntil: end,
                next:
                  end === undefined ? undefined : nextTime(present, end - 1),
              },
        now
      )
      return answerOf(kept, space, account, now)
    }),

    /**
     * Goes on at the next regular time. One that was stopped does so if its
     * delegation holds.
     */
    resume: provide(
      Backup.resume,
      async ({ capability, invocation, context: validation }) => {
        const space = capability.with
        const { account } = capability.nb
        const now = time.now()
        const present = await stores.schedules.get(space, account)
        if (present && present.state !== 'active') {
          const admitted = await provisioning.check(space, invocation)
          if (admitted.error) return admitted
        }
        let holds: string | undefined
        if (present?.state === 'stopped') {
          const delegation = await readDelegation(stores, space, account)
          if (delegation) {
            const checked = await checkScheduled(
              delegation,
              {
                agent,
                space,
                account,
                include: present.include as Backup.Part[] | undefined,
                now,
                first: nextTime(present, now),
              },
              validation
            )
            if (checked.error) return checked
            holds = delegation.cid.toString()
          }
        }
        const kept = await stores.schedules.decide(
          space,
          account,
          (present) =>
            !present ||
            present.state === 'active' ||
            (present.state === 'stopped' && present.delegation.cid !== holds)
              ? undefined
              : {
                  ...settingsOf(present),
                  state: 'active',
                  next: nextTime(present, now),
                  // What was due before the pause is not made up.
                  unclaims: true,
                },
          now
        )
        return answerOf(kept, space, account, now)
      }
    ),

    /** Forgets a schedule and its delegation, if there is one. */
    unschedule: provide(Backup.unschedule, async ({ capability }) => {
      const { account } = capability.nb
      const now = time.now()
      const removed = await stores.schedules.remove(capability.with, account)
      return ok(removed ? { schedule: wireOf(removed, now) } : {})
    }),
  }
}

function rhythmIn(
  given: Parameters<typeof readRhythm>[0],
  now: number,
  limits: RhythmLimits
) {
  try {
    return ok(readRhythm(given, now, limits))
  } catch (error) {
    if (!(error instanceof InvalidRhythmError)) throw error
    return failure('InvalidRhythm', error.message)
  }
}

/**
 * How a schedule goes on when it is scheduled, perhaps again.
 *
 * @param now - Unix milliseconds
 */
function planOf(
  wanted: { space: SpaceDID; account: AccountDID; rhythm: Rhythm },
  now: number
) {
  return (
    present: Schedule | undefined
  ): Pick<
    ScheduleDecision,
    'anchor' | 'state' | 'pausedUntil' | 'next' | 'reason'
  > => {
    const same = isDeepStrictEqual(present?.rhythm, wanted.rhythm)
    const anchor = same && present ? present.anchor : anchorOf(wanted, now)
    const timed = { ...wanted, anchor }
    if (present && isPausedByUser(present, now)) {
      const { pausedUntil } = present
      return {
        anchor,
        state: 'paused',
        pausedUntil,
        next: pausedUntil && nextTime(timed, pausedUntil - 1),
      }
    }
    // What is due, and nobody has begun with, stays due.
    const due =
      same && present?.state === 'active' && present.owner === undefined
        ? present.next
        : undefined
    return { anchor, state: 'active', next: due ?? nextTime(timed, now) }
  }
}

function isPausedByUser(
  { state, reason, pausedUntil = Infinity }: Schedule,
  now: number
): boolean {
  return state === 'paused' && !reason && pausedUntil > now
}

/** What stays when a schedule is paused or resumed. */
function settingsOf({ rhythm, anchor, include }: Schedule) {
  return { rhythm, anchor, include }
}

async function readDelegation(
  { schedules }: Stores,
  space: string,
  account: string
) {
  const stored = await schedules.delegation(space, account)
  return stored && decodeDelegations(stored.bytes)[0]
}

function answerOf(
  schedule: Schedule | undefined,
  space: string,
  account: string,
  now: number
) {
  return schedule
    ? ok({ schedule: wireOf(schedule, now) })
    : failure(
        'ScheduleNotFound',
        `the Space ${space} has no schedule of ${account}; make one with backup/schedule`
      )
}

/** A schedule as it is told. */
function wireOf(schedule: Schedule, now: number): Backup.Schedule {
  const { account, rhythm, include, reason, next, lastRun, created } = schedule
  const { cid, expiration } = schedule.delegation
  const over =
    schedule.state === 'paused' &&
    schedule.pausedUntil !== undefined &&
    schedule.pausedUntil <= now
  const state = over ? 'active' : schedule.state
  return {
    account,
    ...rhythm,
    ...(include ? { include } : {}),
    state,
    ...(reason ? { reason } : {}),
    ...(schedule.pausedUntil === undefined || over
      ? {}
      : { pausedUntil: schedule.pausedUntil }),
    ...(next === undefined ? {} : { next }),
    ...(lastRun
      ? { lastRun: { ...lastRun, run: CID.parse(lastRun.run) as Link } }
      : {}),
    delegation: {
      cid: CID.parse(cid) as Link,
      ...(expiration === undefined ? {} : { expiration: expiration / 1000 }),
    },
    created,
  }
}
