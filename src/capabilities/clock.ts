/**
 * Capabilities of the Merkle clock of a Space. They are the same on the wire
 * as those of `@web3-storage/clock`.
 *
 * @packageDocumentation
 */
import type { Failure, Link, ServiceMethod } from '@ucanto/interface'
import { capability, Schema } from '@ucanto/validator'
import { and, equalWith, equalLink, SpaceDID } from './common.ts'
import type { SpaceNotProvisioned, TryLater } from './common.ts'

export type { SpaceNotProvisioned }

/** All of `clock/*`. */
export const clock = capability({
  can: 'clock/*',
  with: SpaceDID,
  derives: equalWith,
})

/** Lists the events at the head of the clock. */
export const head = capability({
  can: 'clock/head',
  with: SpaceDID,
  derives: equalWith,
})

/** Adds an event. Its block and those of unknown ancestors are attached. */
export const advance = capability({
  can: 'clock/advance',
  with: SpaceDID,
  nb: Schema.struct({
    /** CID of the event: CIDv1. */
    event: Schema.link({ version: 1 }),
  }),
  derives: (claimed, delegated) =>
    and(
      equalWith(claimed, delegated),
      equalLink(claimed.nb.event, delegated.nb.event, 'event')
    ),
})

/** The head of a clock, in the order of the CIDs. */
export interface HeadSuccess {
  head: Link[]
}

/** The event, or one that it names, is not an event as the clock takes it. */
export interface InvalidEvent extends Failure {
  name: 'InvalidEvent'
}

/** The block of an event was not attached, and the clock does not know it. */
export interface MissingBlock extends Failure {
  name: 'MissingBlock'
}

/** More new events in one call than the clock takes. */
export interface TooManyEvents extends Failure {
  name: 'TooManyEvents'
}

/** More events at the head than one event can replace: merge them first. */
export interface TooManyHeads extends Failure {
  name: 'TooManyHeads'
}

export type HeadFailure = TryLater
export type AdvanceSuccess = HeadSuccess
export type AdvanceFailure =
  | InvalidEvent
  | MissingBlock
  | TooManyEvents
  | TooManyHeads
  | SpaceNotProvisioned
  | TryLater

export interface ClockService {
  head: ServiceMethod<ClockHead, HeadSuccess, HeadFailure>
  advance: ServiceMethod<ClockAdvance, AdvanceSuccess, AdvanceFailure>
}

export type ClockHead = ReturnType<typeof head.create>
export type ClockAdvance = ReturnType<typeof advance.create>
