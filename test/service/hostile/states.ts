import { DID } from '@ucanto/core'
import type { Block } from '@ucanto/interface'
import { createSha256 } from '../../../src/backup/index.ts'
import { shardDigestOf } from '../../../src/backup/packer.ts'
import { ShardBuilder } from '../../../src/backup/shard.ts'
import { createEvent, emptyPail, buildPail } from '../../../src/space/index.ts'
import {
  connectUploadService,
  createSpaceWriter,
} from '../../../src/storacha/index.ts'
import { blockOf } from '../harness.ts'
import type { Tenant, World } from './world.ts'

/**
 * What is wrong with a state. `shared`: parallel heads whose parts are few
 * blocks, named many times. `future`: a watermark and a backup of the year
 * 9999. `index`: a backup whose index names one segment 20,000 times.
 * `unreadable`: a state that does not exist.
 */
export type StateKind = 'shared' | 'future' | 'index' | 'unreadable'

const HEADS = 4
const ACCOUNTS = 300
const AGENTS = 300
const NAMES = 20_000
const SLICES = 16_000
const SLICE_LENGTH = 44
const FUTURE = '9999-12-31T23:59:59.999Z'
const PAST = '2020-01-01T00:00:00.000Z'
const MAX_SHARD_SIZE = 8 * 1024 * 1024

/**
 * Puts a hostile state into a Space. No encoder of ours checks it.
 *
 * @param options.account - that backups are going to be made of
 * @returns events that name it, ready for the clock
 */
export async function createHostileState(
  { storacha }: Pick<World, 'storacha'>,
  space: Tenant,
  { account, kind }: { account: string; kind: StateKind }
): Promise<Block[]> {
  const blocks: Block[] = []
  const put = async (value: unknown) => {
    const block = await blockOf(value)
    blocks.push(block)
    return block.cid
  }
  const pail = await emptyPail()
  blocks.push(...pail.additions)
  const states: unknown[] = []
  if (kind === 'unreadable') states.push((await blockOf('not there')).cid)
  if (kind === 'shared') {
    for (let head = 0; head < HEADS; head++) {
      const grant = await put({
        sealed: Uint8Array.of(head),
        expiration: 1,
        seq: 1,
      })
      const authorizations = await put(
        named(AGENTS, (at) => `did:key:z${at}`, grant)
      )
      const shared = await put({ authorizations, backups: pail.root })
      states.push(await put(named(ACCOUNTS, (at) => `did:plc:a${at}`, shared)))
    }
  }
  if (kind === 'future' || kind === 'index') {
    const backup = await put(await hostileBackup(account, pail.root, put))
    const backups = await buildPail([
      [kind === 'future' ? FUTURE : PAST, backup as never],
    ])
    blocks.push(...backups.additions)
    const entry = await put({
      authorizations: await put({}),
      backups: backups.root,
      ...(kind === 'future' ? { prunedBefore: FUTURE } : {}),
    })
    states.push(await put({ [account]: entry }))
  }
  const events = await Promise.all(
    states.map((state) => createEvent(state as never, []))
  )
  await upload({ storacha }, space, [...blocks, ...events])
  return events
}

/** A backup whose repository is not there, with an index that explodes. */
async function hostileBackup(
  account: string,
  pail: unknown,
  put: (value: unknown) => Promise<unknown>
): Promise<object> {
  const slices = new Uint8Array(SLICES * SLICE_LENGTH)
  const view = new DataView(slices.buffer)
  for (let at = 0; at < SLICES; at++) {
    view.setUint32(at * SLICE_LENGTH, at)
    view.setUint32((at + 1) * SLICE_LENGTH - 4, 1)
  }
  const segment = await put({
    version: 1,
    shards: [
      { digest: Uint8Array.of(0x12, 32, ...new Uint8Array(32)), size: 10 },
    ],
    slices,
  })
  const index = await put({
    version: 1,
    segments: Array.from({ length: NAMES }, () => ({ segment, count: SLICES })),
  })
  return {
    version: 1,
    account,
    rev: '2222222222222',
    repo: await put({ not: 'a commit' }),
    blobs: pail,
    identity: { document: await put({}) },
    signature: 'current',
    parts: ['blobs'],
    index,
  }
}

function named(
  count: number,
  nameOf: (at: number) => string,
  link: unknown
): Record<string, unknown> {
  return Object.fromEntries(
    Array.from({ length: count }, (_, at) => [nameOf(at), link])
  )
}

async function upload(
  { storacha }: Pick<World, 'storacha'>,
  space: Tenant,
  blocks: Block[]
): Promise<void> {
  const writer = createSpaceWriter(
    connectUploadService({
      url: new URL(storacha.url),
      did: DID.parse(storacha.did).did(),
      receiptsUrl: new URL(storacha.receiptsUrl),
    }),
    { issuer: space, space: space.did(), proofs: [] }
  )
  const builder = new ShardBuilder(MAX_SHARD_SIZE)
  for (const { cid, bytes } of blocks) {
    builder.add(cid.bytes, cid.multihash.digest, bytes)
  }
  const { bytes, slices } = builder.seal()
  const digest = shardDigestOf(createSha256, bytes)
  await writer.putShard({ digest, bytes })
  await writer.publishIndex({
    content: blocks.at(-1)!.cid,
    shards: [{ digest, size: bytes.length, slices }],
  })
}
