/**
 * Half of the local network in a process of its own: what it takes is not
 * measured, and hosts and storage do not wait for each other. Talks to its
 * parent by messages.
 */
import {
  seedAccount,
  startPds,
  startPlc,
  startStoracha,
  type Account,
  type Seed,
  type Storacha,
} from '../test/network/index.ts'

const WRITES_PER_REQUEST = 200
const HANDLE = 'alice.test'

await using resources = new AsyncDisposableStack()
const half = process.argv[2]
let account: Account | undefined
let storacha: Storacha | undefined

process.on('message', (request: NetworkRequest) => {
  void answer(request).then(
    (ok) => process.send?.({ id: request.id, ok }),
    (error: unknown) => process.send?.({ id: request.id, error: String(error) })
  )
})

if (half === 'host') {
  const plc = resources.use(await startPlc())
  const pds = resources.use(await startPds({ plcUrl: plc.url }))
  account = await pds.createAccount({ handle: HANDLE })
  process.send?.({
    id: 0,
    ok: { plc: plc.url, pds: pds.url, did: account.did },
  })
} else {
  storacha = resources.use(await startStoracha())
  const { url, did, didKey, receiptsUrl } = storacha
  process.send?.({ id: 0, ok: { url, did, didKey, receiptsUrl } })
}
await new Promise((resolve) => process.once('disconnect', resolve))

export type NetworkRequest = { id: number } & (
  | { do: 'seed'; seed: Seed }
  | { do: 'post'; text: string }
  | { do: 'large-posts'; count: number; size: number }
  | { do: 'bytes-put' }
)

async function answer(request: NetworkRequest): Promise<unknown> {
  if (request.do === 'bytes-put') return storacha?.stats.bytesPut
  if (!account) throw new Error('there is no account in this process')
  switch (request.do) {
    case 'seed':
      return seedAccount(account.agent, request.seed)
    case 'post':
      return account.agent.post({ text: request.text })
    case 'large-posts':
      return writeLargePosts(account, request.count, request.size)
  }
}

/** @param size - of each record, in bytes, about */
async function writeLargePosts(
  account: Account,
  count: number,
  size: number
): Promise<void> {
  for (let start = 0; start < count; start += WRITES_PER_REQUEST) {
    const writes = Array.from(
      { length: Math.min(WRITES_PER_REQUEST, count - start) },
      (_, index) => ({
        $type: 'com.atproto.repo.applyWrites#create' as const,
        collection: 'app.bsky.feed.post',
        value: {
          $type: 'app.bsky.feed.post',
          text: `${start + index} `.padEnd(size, 'text '),
          createdAt: new Date(
            Date.UTC(2025, 0, 1) + start + index
          ).toISOString(),
        },
      })
    )
    await account.agent.com.atproto.repo.applyWrites({
      repo: account.did,
      validate: false,
      writes,
    })
  }
}
