import * as Client from '@storacha/client'
import { uploadServiceConnection } from '@storacha/client/service'
import { StoreMemory } from '@storacha/client/stores/memory'
import { DID } from '@ucanto/core'
import type { Storacha } from './storacha.ts'

/** A client of Storacha whose agent has a new key, kept in memory. */
export async function createStorachaClient(
  storacha: Pick<Storacha, 'url' | 'did' | 'receiptsUrl'>
): Promise<Client.Client> {
  const connection = uploadServiceConnection({
    id: DID.parse(storacha.did),
    url: new URL(storacha.url),
  })
  return Client.create({
    store: new StoreMemory(),
    serviceConf: {
      access: connection,
      upload: connection,
      filecoin: connection,
      gateway: connection,
    },
    receiptsEndpoint: new URL(storacha.receiptsUrl),
  })
}
