import assert from 'node:assert/strict'
import * as dagCBOR from '@ipld/dag-cbor'
import { ed25519 } from '@ucanto/principal'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import {
  Clock,
  type Connection,
  type InvocationConfig,
} from '../../src/client/index.ts'
import { withNativeSigning } from '../../src/node/index.ts'
import {
  addBackup,
  createEvent,
  listBackups,
  mergeHeads,
} from '../../src/space/index.ts'
import type {
  Backup,
  Block,
  EventLink,
  Link,
  State,
} from '../../src/space/interface.ts'
import { allow, type Space } from './harness.ts'
import { loadServiceProcess } from './service-process.ts'
import { createPostgresStore, databaseServer } from './slow-stores.ts'

const AGENTS = Number(process.env.CONCURRENT_AGENTS ?? 1_000)
const BACKUPS = 20
/** Agents that are at work at the same time: each has an event at the head. */
const CONCURRENCY = 16
/** Of so many backups of an agent, one begins with what others did. */
const SYNC = 10

const account = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const start = Date.UTC(2025, 2, 12)

describe('agents of one Space', () => {
  it('lose no backup of 20 each, with two services on PostgreSQL', async function () {
    if (databaseServer === undefined) return this.skip()
    await using resources = new AsyncDisposableStack()
    const store = resources.use(await createPostgresStore(databaseServer))
    const connections: Connection[] = []
    for (let count = 0; count < 2; count++) {
      const service = resources.use(await loadServiceProcess(store))
      const connection = await service.start()
      assert.ok(connection)
      connections.push(connection)
    }
    const space = withNativeSigning(await ed25519.generate())
    const blocks = new SharedBlocks()
    const expected = new Map<string, string>()
    let merges = 0
    let next = 0
    const lane = async () => {
      for (let agent = next++; agent < AGENTS; agent = next++) {
        const connection = connections[agent % connections.length]
        assert.ok(connection)
        const options = { space, connection, blocks, expected }
        const met = await backUp(agent, options)
        merges += met
      }
    }
    await Promise.all(Array.from({ length: CONCURRENCY }, lane))
    assert.equal(expected.size, AGENTS * BACKUPS)
    assert.ok(merges > AGENTS, `${merges} merges of several heads`)

    const [first, second] = connections
    assert.ok(first && second)
    const config = { issuer: space, with: space.did() }
    let head = await readHead(config, first)
    assert.deepEqual(await readHead(config, second), head)
    const merged = await mergeHeads(blocks, head)
    blocks.put(merged.additions)
    assert.deepEqual(merged.unreadable, [])
    assert.ok(merged.state)
    const event = await createEvent(merged.state, merged.heads)
    blocks.put([event])
    head = await advance(config, first, event)
    assert.deepEqual(head, [event.cid])
    assert.deepEqual(await readHead(config, second), head)

    const found = new Map<string, string>()
    for await (const { timestamp, backup } of listBackups(
      blocks,
      merged.state,
      account
    )) {
      found.set(timestamp, backup.toString())
    }
    assert.equal(found.size, expected.size)
    assert.deepEqual(found, new Map([...expected].sort()))
  })
})

/**
 * What agents put into the Space: blocks, by their CIDs. The clock is on
 * trial here; 20,000 backups through an upload service would take hours.
 */
class SharedBlocks {
  /** Of hundreds of thousands of blocks, nothing but the bytes. */
  readonly #blocks = new Map<string, Uint8Array>()

  put(blocks: Block[]): void {
    for (const { cid, bytes } of blocks) this.#blocks.set(`${cid}`, bytes)
  }

  async get(link: Block['cid']): Promise<Block | undefined> {
    const bytes = this.#blocks.get(link.toString())
    return bytes && { cid: link, bytes }
  }
}

/**
 * Makes the backups of one agent, each with an advance of its own.
 *
 * @returns how often it met several heads, and merged them
 */
async function backUp(
  agent: number,
  {
    space,
    connection,
    blocks,
    expected,
  }: {
    space: Space
    connection: Connection
    blocks: SharedBlocks
    expected: Map<string, string>
  }
): Promise<number> {
  const issuer = withNativeSigning(await ed25519.generate())
  const config: InvocationConfig = {
    issuer,
    with: space.did(),
    proofs: [await allow(space, issuer, ['clock/*'])],
  }
  let merges = 0
  let base: { state: Link<State> | undefined; heads: EventLink[] } | undefined
  for (let count = 0; count < BACKUPS;) {
    if (!base || Math.random() < 1 / SYNC) {
      const merged = await mergeHeads(
        blocks,
        await readHead(config, connection)
      )
      assert.deepEqual(merged.unreadable, [])
      blocks.put(merged.additions)
      if (merged.heads.length > 1) merges++
      base = merged
    }
    const number = agent * BACKUPS + count
    const timestamp = new Date(start + number).toISOString()
    const backup = await backupOf(number)
    const { root, additions } = await addBackup(blocks, base.state, {
      account,
      timestamp,
      backup,
    })
    const event = await createEvent(root, base.heads)
    blocks.put([...additions, event])
    if ((await tryAdvance(config, connection, event)) === 'TooManyHeads') {
      base = undefined
      continue
    }
    expected.set(timestamp, backup.toString())
    base = { state: root, heads: [event.cid] }
    count++
  }
  return merges
}

async function tryAdvance(
  config: InvocationConfig,
  connection: Connection,
  event: Awaited<ReturnType<typeof createEvent>>
): Promise<EventLink[] | 'TooManyHeads'> {
  const { ok, error } = await Clock.advance(config, event.cid, {
    connection,
    blocks: [event],
  })
  if (error?.name === 'TooManyHeads') return error.name
  assert.equal(error, undefined)
  return ok.head as EventLink[]
}

async function advance(
  ...options: Parameters<typeof tryAdvance>
): Promise<EventLink[]> {
  const head = await tryAdvance(...options)
  assert.ok(typeof head !== 'string')
  return head
}

async function readHead(
  config: InvocationConfig,
  connection: Connection
): Promise<EventLink[]> {
  const { ok, error } = await Clock.head(config, {
    connection,
    nonce: crypto.randomUUID(),
  })
  assert.equal(error, undefined)
  return ok.head as EventLink[]
}

async function backupOf(number: number): Promise<Link<Backup>> {
  const bytes = dagCBOR.encode({ number })
  return CID.createV1(dagCBOR.code, await sha256.digest(bytes))
}
