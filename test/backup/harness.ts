import { Delegation } from '@ucanto/core'
import {
  createAccountReader,
  createIdentityResolver,
  createSafeFetch,
  type SafeFetchOptions,
} from '../../src/atproto/index.ts'
import {
  DEFAULT_LIMITS,
  runBackup,
  type AccountReader,
  type BackupContext,
  type BackupRequest,
  type Block,
  type Clock,
  type Journal,
  type JournalEntry,
  type Outcome,
} from '../../src/backup/index.ts'
import {
  createFileSpool,
  createNativeSha256,
  systemTime,
} from '../../src/node/index.ts'
import {
  decodeEvent,
  mergeHeads,
  type EventLink,
} from '../../src/space/index.ts'
import {
  connectUploadService,
  createSpaceReader,
  createSpaceWriter,
} from '../../src/storacha/index.ts'
import type { Network } from '../network/index.ts'
import { createStorachaClient } from '../network/storacha-client.ts'

/** Requests are not repeated, so that a failure shows at once. */
const NO_RETRIES = {
  retries: 0,
  minDelay: 1,
  timeout: 10_000,
  receiptTimeout: 1_000,
}

/** A Merkle clock in memory: the rule of the service's, and nothing else. */
export class MemoryClock implements Clock {
  heads: EventLink[] = []
  advances = 0
  readonly #known = new Set<string>()

  async head(): Promise<EventLink[]> {
    return this.heads
  }

  async advance(event: EventLink, blocks: Block[]): Promise<EventLink[]> {
    this.advances++
    if (this.#known.has(event.toString())) return this.heads
    const block = blocks.find(({ cid }) => cid.equals(event))
    if (!block) throw new Error('the event is not attached')
    const parents = decodeEvent(block as never).parents.map(String)
    this.#known.add(event.toString())
    this.heads = [
      ...this.heads.filter((head) => !parents.includes(head.toString())),
      event,
    ]
    return this.heads
  }
}

/** A journal in memory, as a process keeps it that is not killed. */
export class MemoryJournal implements Journal {
  entries: JournalEntry[] = []

  async load(): Promise<JournalEntry[]> {
    return this.entries
  }

  async append(entry: JournalEntry): Promise<void> {
    this.entries.push(entry)
  }

  async clear(): Promise<void> {
    this.entries = []
  }
}

/** Somebody with a Space, who backs accounts up into it. */
export interface Owner {
  space: `did:key:${string}`
  clock: MemoryClock
  journal: MemoryJournal
  context: BackupContext
  warnings: string[]
  /** Backs an account up with parts of the context exchanged. */
  backUp(
    account: string,
    options?: Omit<BackupRequest, 'account'> & {
      with?: Partial<BackupContext>
    }
  ): Promise<Outcome>
  /** All that must not change when a run fails. */
  state(): Promise<{ head: string[]; blobs: unknown[] }>
}

export async function createOwner(
  network: Network,
  {
    safeFetch,
    abilities = ['space/blob/add', 'space/index/add', 'upload/add'],
  }: { safeFetch?: Partial<SafeFetchOptions>; abilities?: string[] } = {}
): Promise<Owner> {
  const { storacha, plc, pds } = network
  const client = await createStorachaClient(storacha)
  const space = await client.createSpace('backups', {
    skipGatewayAuthorization: true,
  })
  await storacha.provision(space.did())
  const issuer = client.agent.issuer
  const proofs = [
    await Delegation.delegate({
      issuer: space.signer,
      audience: issuer,
      capabilities: abilities.map((can) => ({
        can,
        with: space.did(),
      })) as never,
      expiration: Infinity,
    }),
  ]
  const fetch = createSafeFetch({ allowPrivateNetwork: true, ...safeFetch })
  const clock = new MemoryClock()
  const journal = new MemoryJournal()
  const warnings: string[] = []
  const context: BackupContext = {
    identities: createIdentityResolver({
      plcUrl: new URL(plc.url),
      handleResolverUrl: new URL(pds.url),
      fetch,
      allowPrivateNetwork: true,
    }),
    accounts: createAccountReader({ fetch }),
    writer: createSpaceWriter(
      connectUploadService(
        {
          url: new URL(storacha.url),
          did: storacha.did,
          receiptsUrl: new URL(storacha.receiptsUrl),
        },
        { policy: NO_RETRIES }
      ),
      { issuer, space: space.did(), proofs }
    ),
    reader: createReader(network),
    clock,
    journal: () => journal,
    createSpool: () => createFileSpool(),
    createSha256: createNativeSha256,
    time: systemTime,
    limits: DEFAULT_LIMITS,
    onWarning: (message) => warnings.push(message),
  }
  return {
    space: space.did(),
    clock,
    journal,
    context,
    warnings,
    backUp: (account, { with: changes, ...request } = {}) =>
      runBackup({ ...context, ...changes }, { account, ...request }),
    state: async () => ({
      head: clock.heads.map(String),
      blobs: await storacha.blobs(space.did()),
    }),
  }
}

/** A reader that has read nothing yet. */
export function createReader({ storacha }: Network) {
  return createSpaceReader({
    gateways: [new URL(storacha.url)],
    fetch: globalThis.fetch,
    createSha256: createNativeSha256,
  })
}

/** The state at the head of the owner's clock, read from the Space. */
export async function readState(network: Network, { clock }: Owner) {
  const reader = createReader(network)
  return { reader, state: (await mergeHeads(reader, clock.heads)).state }
}

/** A reader that changes what the real host has sent. */
export function tampering(
  accounts: AccountReader,
  changes: Partial<AccountReader>
): AccountReader {
  return { ...accounts, ...changes }
}

export async function collect(
  chunks: AsyncIterable<Uint8Array>
): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  for await (const chunk of chunks) parts.push(chunk)
  return new Uint8Array(Buffer.concat(parts))
}

export async function* chunksOf(
  bytes: Uint8Array,
  size = 64 * 1024
): AsyncGenerator<Uint8Array> {
  for (let offset = 0; offset < bytes.length; offset += size) {
    yield bytes.subarray(offset, offset + size)
  }
}
