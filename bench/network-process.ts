/**
 * The local network in a process of its own, so that what it takes is not
 * measured. Talks to its parent by messages.
 */
import { seedAccount, startNetwork, type Seed } from '../test/network/index.ts'

await using network = await startNetwork()

const HANDLE = 'alice.test'
const account = await network.pds.createAccount({ handle: HANDLE })

process.on('message', (request: NetworkRequest) => {
  void answer(request).then(
    (ok) => process.send?.({ id: request.id, ok }),
    (error: unknown) => process.send?.({ id: request.id, error: String(error) })
  )
})
process.send?.({
  id: 0,
  ok: {
    environment: network.environment,
    pds: network.pds.url,
    did: account.did,
    storacha: {
      url: network.storacha.url,
      did: network.storacha.did,
      receiptsUrl: network.storacha.receiptsUrl,
    },
  },
})
await new Promise((resolve) => process.once('disconnect', resolve))

export type NetworkRequest = { id: number } & (
  | { do: 'seed'; seed: Seed }
  | { do: 'post'; text: string }
  | { do: 'large-posts'; count: number; size: number }
  | { do: 'bytes-put' }
)

async function answer(request: NetworkRequest): Promise<unknown> {
  switch (request.do) {
    case 'seed':
      return seedAccount(account.agent, request.seed)
    case 'post':
      return account.agent.post({ text: request.text })
    case 'large-posts':
      return writeLargePosts(request.count, request.size)
    case 'bytes-put':
      return network.storacha.stats.bytesPut
  }
}

const WRITES_PER_REQUEST = 200

/** @param size - of each record, in bytes, about */
async function writeLargePosts(count: number, size: number): Promise<void> {
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
