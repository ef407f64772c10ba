/** Things that are read at the same time. */
const WAVE_SIZE = 8

/** Does something with each of the items, a few at a time. */
export async function inWaves<T, R>(
  items: T[],
  act: (item: T) => Promise<R>
): Promise<R[]> {
  const results: R[] = []
  for (let start = 0; start < items.length; start += WAVE_SIZE) {
    const wave = items.slice(start, start + WAVE_SIZE)
    results.push(...(await Promise.all(wave.map(act))))
  }
  return results
}
