/**
 * A local network of everything the project talks to: a PLC directory, PDSes,
 * and Storacha's upload service with its gateway and indexer. All of it is the
 * real software, in this process, and reachable only from this machine.
 *
 * @packageDocumentation
 */
import { startPds, startPlc } from './pds.ts'
import type { Pds, PdsOptions, Plc, PlcOptions } from './pds.ts'
import { startStoracha } from './storacha.ts'
import type { Storacha, StorachaOptions } from './storacha.ts'

export { startPds, startPlc } from './pds.ts'
export type {
  Account,
  CreateAccountOptions,
  Pds,
  PdsOptions,
  Plc,
  PlcOptions,
  Read,
} from './pds.ts'
export { startBluesky } from './bluesky.ts'
export type { Answer, Bluesky } from './bluesky.ts'
export { createBytes, seedAccount } from './seed.ts'
export type { Seed, Seeded, SeededBlob } from './seed.ts'
export { startStoracha } from './storacha.ts'
export type {
  Mail,
  Stats,
  Storacha,
  StorachaOptions,
  StoredBlob,
} from './storacha.ts'
export type { Faults } from './faults.ts'
export { startUnwellHost } from './unwell-host.ts'
export type { Ailment, Asked, UnwellHost } from './unwell-host.ts'

export interface NetworkOptions {
  plc?: PlcOptions
  pds?: Omit<PdsOptions, 'plcUrl'>
  storacha?: StorachaOptions
}

export interface Network extends AsyncDisposable {
  plc: Plc
  pds: Pds
  storacha: Storacha
  /** Settings with which programs use this network. */
  environment: Record<string, string>
}

/**
 * Starts a network that shares nothing with any other.
 *
 * @example
 * await using network = await startNetwork()
 * const alice = await network.pds.createAccount({ handle: 'alice.test' })
 */
export async function startNetwork(
  options: NetworkOptions = {}
): Promise<Network> {
  await using resources = new AsyncDisposableStack()
  const plc = resources.use(await startPlc(options.plc))
  const pds = resources.use(await startPds({ ...options.pds, plcUrl: plc.url }))
  const storacha = resources.use(await startStoracha(options.storacha))
  const owned = resources.move()
  return {
    plc,
    pds,
    storacha,
    environment: createEnvironment({ plc, pds, storacha }),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

/** Settings with which programs use what is running. */
export function createEnvironment({
  plc,
  pds,
  storacha,
}: {
  plc: Pick<Plc, 'url'>
  pds: Pick<Pds, 'url'>
  storacha: Pick<Storacha, 'url' | 'did' | 'didKey' | 'receiptsUrl'>
}): Record<string, string> {
  return {
    BLUESKY_BACKUPS_UPLOAD_SERVICE_URL: storacha.url,
    BLUESKY_BACKUPS_UPLOAD_SERVICE_DID: storacha.did,
    BLUESKY_BACKUPS_RECEIPTS_URL: storacha.receiptsUrl,
    BLUESKY_BACKUPS_GATEWAY_URLS: storacha.url,
    BLUESKY_BACKUPS_INDEXER_URL: storacha.url,
    BLUESKY_BACKUPS_PLC_URL: plc.url,
    BLUESKY_BACKUPS_HANDLE_RESOLVER_URL: pds.url,
    BLUESKY_BACKUPS_TRUSTED_AUTHORITIES: `${storacha.did}=${storacha.didKey}`,
    BLUESKY_BACKUPS_ALLOW_PRIVATE_NETWORK: 'true',
    // The PDS permits any number of requests.
    BLUESKY_BACKUPS_HOST_RATE: '0',
    STORACHA_SERVICE_URL: storacha.url,
    STORACHA_SERVICE_DID: storacha.did,
    STORACHA_RECEIPTS_URL: storacha.receiptsUrl,
    PDS_URL: pds.url,
  }
}
