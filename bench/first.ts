import { median, timesAsMuch, type Measurement } from './measurement.ts'
import {
  blobUrl,
  createCustomer,
  listBlobs,
  repoUrl,
  startNetworkProcess,
  startServiceProcess,
  type Network,
} from './setup.ts'

const ROUNDS = 5
/** Rounds that do not count: services are not measured just started. */
const WARM_UP = 1
const SEED = {
  posts: 10_000,
  likes: 8_000,
  follows: 1_700,
  blobs: Array.from({ length: 300 }, (_, index) => 50_000 + index * 1_000),
}
const CONCURRENT_DOWNLOADS = 8

/**
 * A first backup, beside the larger of two things it cannot do without: the
 * download of the account, and the upload of the same bytes by the Storacha
 * client.
 */
export async function run(say: (line: string) => void): Promise<Measurement[]> {
  await using network = await startNetworkProcess()
  await using service = await startServiceProcess(network)
  say('writing 20,000 records and 300 blobs …')
  await network.ask({ do: 'seed', seed: SEED })

  const ours: number[] = []
  const downloads: number[] = []
  const uploads: number[] = []
  for (let round = 1 - WARM_UP; round <= ROUNDS; round++) {
    const run = await (await createCustomer(network)).backUp(service)

    let started = performance.now()
    const { car, blobs } = await download(network)
    const downloadTime = performance.now() - started

    const { client } = await createCustomer(network)
    started = performance.now()
    await client.uploadCAR(car, { pieceHasher: null as never })
    await client.uploadDirectory(
      blobs.map(({ cid, blob }) => ({
        name: cid,
        stream: () => blob.stream(),
      })),
      { pieceHasher: null as never }
    )
    const uploadTime = performance.now() - started

    if (round < 1) continue
    ours.push(run.ms)
    downloads.push(downloadTime)
    uploads.push(uploadTime)
    say(
      `round ${round}: ours ${run.ms} ms, download ${Math.round(downloadTime)} ms, upload ${Math.round(uploadTime)} ms`
    )
  }
  const larger =
    median(downloads) > median(uploads)
      ? { peer: 'the download alone', theirs: median(downloads) }
      : { peer: 'the upload client alone', theirs: median(uploads) }
  return [
    timesAsMuch(
      {
        what: 'time of a first backup',
        ours: median(ours),
        ...larger,
        unit: 'ms',
      },
      1.5
    ),
  ]
}

async function download(network: Network) {
  const car = await (await fetch(repoUrl(network))).blob()
  const blobs: { cid: string; blob: Blob }[] = []
  const queue = (await listBlobs(network)).values()
  const work = async () => {
    for (const cid of queue) {
      blobs.push({
        cid,
        blob: await (await fetch(blobUrl(network, cid))).blob(),
      })
    }
  }
  await Promise.all(Array.from({ length: CONCURRENT_DOWNLOADS }, work))
  return { car, blobs }
}
