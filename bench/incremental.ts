import { median, timesLess, type Measurement } from './measurement.ts'
import {
  createCustomer,
  repoUrl,
  startNetworkProcess,
  startServiceProcess,
} from './setup.ts'

const ROUNDS = 9
/** Rounds that do not count: services are not measured just started. */
const WARM_UP = 3
const RECORDS = { posts: 10_000, likes: 8_000, follows: 2_000 }
const PEER = 'uploading the whole CAR each run'

/**
 * A backup after one post, beside what one would do without the project: get
 * the repository and upload it with the Storacha client.
 */
export async function run(say: (line: string) => void): Promise<Measurement[]> {
  await using network = await startNetworkProcess()
  await using service = await startServiceProcess(network)
  say('writing 20,000 records …')
  await network.ask({ do: 'seed', seed: RECORDS })
  const ours = await createCustomer(network)
  const theirs = await createCustomer(network)
  say('first backup …')
  await ours.backUp(service)

  const figures = {
    ours: { ms: [] as number[], bytes: [] as number[] },
    theirs: { ms: [] as number[], bytes: [] as number[] },
  }
  for (let round = 1 - WARM_UP; round <= ROUNDS; round++) {
    await network.ask({ do: 'post', text: `round ${round}` })
    const run = await ours.backUp(service)

    const before = (await network.ask({ do: 'bytes-put' })) as number
    const started = performance.now()
    const car = await (await fetch(repoUrl(network))).blob()
    await theirs.client.uploadCAR(car, { pieceHasher: null as never })
    const ms = performance.now() - started
    const bytes = ((await network.ask({ do: 'bytes-put' })) as number) - before

    if (round < 1) continue
    figures.ours.ms.push(run.ms)
    figures.ours.bytes.push(run.bytesUploaded)
    figures.theirs.ms.push(ms)
    figures.theirs.bytes.push(bytes)
    say(
      `round ${round}: ours ${run.ms} ms, ${run.bytesUploaded} bytes; the whole CAR ${Math.round(ms)} ms, ${bytes} bytes`
    )
  }
  return [
    timesLess(
      {
        what: 'bytes uploaded after one post',
        ours: median(figures.ours.bytes),
        peer: PEER,
        theirs: median(figures.theirs.bytes),
        unit: 'bytes',
      },
      100
    ),
    timesLess(
      {
        what: 'time of a backup after one post',
        ours: median(figures.ours.ms),
        peer: PEER,
        theirs: median(figures.theirs.ms),
        unit: 'ms',
      },
      10
    ),
  ]
}
