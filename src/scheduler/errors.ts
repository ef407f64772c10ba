/**
 * What can go wrong with schedules. The message of each says what to do.
 *
 * @packageDocumentation
 */

/** The times of a schedule cannot be kept. */
export class InvalidRhythmError extends Error {
  override readonly name = 'InvalidRhythmError'
}
