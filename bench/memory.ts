import { timesAsMuch, type Measurement } from './measurement.ts'
import {
  createCustomer,
  startNetworkProcess,
  startServiceProcess,
} from './setup.ts'

const MEBIBYTE = 1024 * 1024
const LIMIT = 256 * MEBIBYTE
const BLOBS = Array.from({ length: 64 }, () => 8 * MEBIBYTE)
const POSTS = { count: 65_000, size: 720 }

/**
 * Peak memory of the service over its idle memory while it backs up 512 MiB of
 * blobs and a repository of 50 MB, beside the limit of 256 MiB, half of the
 * blobs' size.
 */
export async function run(say: (line: string) => void): Promise<Measurement[]> {
  await using network = await startNetworkProcess()
  await using service = await startServiceProcess(network)
  say(`writing ${POSTS.count} records and ${BLOBS.length} blobs of 8 MiB …`)
  await network.ask({ do: 'large-posts', ...POSTS })
  await network.ask({ do: 'seed', seed: { blobs: BLOBS } })
  const customer = await createCustomer(network)
  const { resident } = await service.memory()
  const { repoBytes, blobBytes, ms } = await customer.backUp(service)
  const { peak } = await service.memory()
  say(
    `a repository of ${Math.round(repoBytes / 1e6)} MB and ${Math.round(blobBytes / 1e6)} MB of blobs in ${Math.round(ms / 1000)} s; idle ${Math.round(resident / MEBIBYTE)} MiB, peak ${Math.round(peak / MEBIBYTE)} MiB`
  )
  return [
    timesAsMuch(
      {
        what: 'peak memory over idle',
        ours: peak - resident,
        peer: 'the limit of 256 MiB',
        theirs: LIMIT,
        unit: 'bytes',
      },
      1
    ),
  ]
}
