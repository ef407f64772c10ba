/** One figure beside that of a peer. */
export interface Measurement {
  what: string
  ours: number
  /** Name of the peer. */
  peer: string
  theirs: number
  unit: string
  /** How much better ours is, or how much more it takes: see `goal`. */
  ratio: number
  goal: string
  met: boolean
}

/** The peer's figure divided by ours: at least `goal` times less. */
export function timesLess(
  measured: Pick<Measurement, 'what' | 'ours' | 'peer' | 'theirs' | 'unit'>,
  goal: number
): Measurement {
  const ratio = measured.theirs / measured.ours
  return { ...measured, ratio, goal: `≥ ${goal}× less`, met: ratio >= goal }
}

/** Our figure divided by the peer's: at least `goal` times as many. */
export function timesMore(
  measured: Pick<Measurement, 'what' | 'ours' | 'peer' | 'theirs' | 'unit'>,
  goal: number
): Measurement {
  const ratio = measured.ours / measured.theirs
  return { ...measured, ratio, goal: `≥ ${goal}×`, met: ratio >= goal }
}

/** Our figure divided by the peer's: at most `goal` times as much. */
export function timesAsMuch(
  measured: Pick<Measurement, 'what' | 'ours' | 'peer' | 'theirs' | 'unit'>,
  goal: number
): Measurement {
  const ratio = measured.ours / measured.theirs
  return { ...measured, ratio, goal: `≤ ${goal}×`, met: ratio <= goal }
}

export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted[Math.floor(sorted.length / 2)]
  if (middle === undefined) throw new RangeError('no values')
  return middle
}
