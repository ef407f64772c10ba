import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import * as dagCbor from '@ipld/dag-cbor'
import * as Library from '@web3-storage/pail'
import type {
  BlockFetcher as PailFetcher,
  ShardLink,
} from '@web3-storage/pail/api'
import { ShardBlock } from '@web3-storage/pail/shard'
import fc from 'fast-check'
import { CID } from 'multiformats/cid'
import type {
  Account,
  Authorization,
  Authorizations,
  Backup,
  DID,
  Link,
  PartKeys,
  Revision,
  Share,
  State,
  UnknownLink,
} from '../../src/space/index.ts'
import {
  DecodeError,
  MissingBlockError,
  TOMBSTONE,
  TooLargeError,
  UnreadableStateError,
  addBackup,
  addShares,
  buildPail,
  decodeAccount,
  decodeState,
  encodeAccount,
  encodeAuthorizations,
  encodeState,
  listBackups,
  mergeStates,
  prune,
  removeBackup,
  setAuthorization,
  setRecovery,
} from '../../src/space/index.ts'
import {
  MemoryBlocks,
  alice,
  blockOf,
  bob,
  hour,
  laptop,
  linkOf,
  phone,
} from './helpers.ts'

/** How many histories are played; the property is checked after each. */
const HISTORIES = 1000
const REPLICAS = 4

/**
 * The state as the issue describes it, in plain maps: an independent account
 * of what every operation and every merge should lead to.
 */
type Model = Map<string, ModelAccount>
interface ModelAccount {
  agents: Map<string, ModelGrant>
  /** Timestamp → CID in hexadecimal, or `removed`. */
  backups: Map<string, string>
  prunedBefore: string
  recovery?: ModelRecovery
  /** `timestamp/agent` → DAG-CBOR in hexadecimal. */
  shares?: Map<string, string>
}
type ModelRecovery = [seq: number, recipient: string]
/** Greater than every CID. */
const REMOVED = 'removed'

/** What is compared, in its order. */
type ModelGrant = [seq: number, expiration: number, bytes: string]

type Operation =
  | { kind: 'add'; replica: number; account: DID; time: number; backup: number }
  | { kind: 'remove'; replica: number; account: DID; time: number }
  | { kind: 'prune'; replica: number; account: DID; time: number }
  | {
      kind: 'authorize'
      replica: number
      account: DID
      agent: DID
      authorization: Authorization
    }
  | { kind: 'recover'; replica: number; account: DID; recipient?: string }
  | {
      kind: 'share'
      replica: number
      account: DID
      time: number
      agent: DID
      keys: PartKeys
    }
  | { kind: 'merge'; replica: number; others: number[] }

/** Times that share long prefixes, and some that do not. */
const TIMES = [
  '2024-12-31T23:59:59.999Z',
  '2025-01-01T00:00:00.000Z',
  '2025-01-01T00:00:00.001Z',
  '2025-01-01T00:00:01.000Z',
  '2025-01-01T10:00:00.000Z',
  '2025-01-02T00:00:00.000Z',
  '2025-11-01T00:00:00.000Z',
  '2031-01-01T00:00:00.000Z',
]

const RECIPIENTS = [
  'age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p',
  'age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg',
]

const replica = fc.nat({ max: REPLICAS - 1 })
const account = fc.constantFrom(alice, bob)
const time = fc.nat({ max: TIMES.length - 1 })
const key = fc.uint8Array({ minLength: 1, maxLength: 1, max: 2 })
const operation: fc.Arbitrary<Operation> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant('add' as const),
      replica,
      account,
      time,
      backup: fc.nat({ max: 2 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('remove' as const),
      replica,
      account,
      time,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('prune' as const),
      replica,
      account,
      time,
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('authorize' as const),
      replica,
      account,
      agent: fc.constantFrom(phone, laptop),
      authorization: fc.record({
        sealed: fc.uint8Array({ minLength: 1, maxLength: 1, max: 2 }),
        expiration: fc.nat({ max: 1 }),
        seq: fc.nat({ max: 2 }),
      }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('recover' as const),
      replica,
      account,
      recipient: fc.constantFrom(undefined, ...RECIPIENTS),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('share' as const),
      replica,
      account,
      time,
      agent: fc.constantFrom(phone, laptop),
      keys: fc.record({ mutes: key, drafts: key }, { requiredKeys: [] }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('merge' as const),
      replica,
      others: fc.array(replica, { minLength: 1, maxLength: 3 }),
    }),
  }
)

describe('mergeStates', () => {
  it(`agrees with the model in ${HISTORIES} histories of ${REPLICAS} replicas`, async () => {
    const backups = await Promise.all([0, 1, 2].map((n) => linkOf<Backup>(n)))
    const play = new Player(backups)
    await fc.assert(
      fc.asyncProperty(
        fc.array(operation, { maxLength: 16, size: 'max' }),
        fc.shuffledSubarray([0, 1, 2, 3], { minLength: REPLICAS }),
        async (operations, order) => {
          const { blocks, states, models } = await play.history(operations)
          const merge = async (...links: Link<State>[]) =>
            blocks.keep(await mergeStates(blocks, links))
          const all = await merge(...states)
          const expected = models.reduce(mergeModels)
          assert.equal(show(await readModel(blocks, all)), show(expected))
          assert.equal(all.toString(), await rootOf(expected), 'canonical')

          const [a, b, c, d] = order.map((i) => states[i]!) as [
            Link<State>,
            Link<State>,
            Link<State>,
            Link<State>,
          ]
          const commuted = await merge(a, b, c, d)
          assert.equal(commuted.toString(), all.toString(), 'commutative')
          const left = await merge(await merge(await merge(a, b), c), d)
          assert.equal(left.toString(), all.toString(), 'associative, left')
          const right = await merge(await merge(a, b), await merge(c, d))
          assert.equal(right.toString(), all.toString(), 'associative, pairs')
          const again = await mergeStates(blocks, [all, a, all, d])
          assert.equal(again.root.toString(), all.toString(), 'idempotent')
          assert.deepEqual(again.additions, [])
        }
      ),
      { numRuns: HISTORIES }
    )
  })

  it('gives one state back as it is, without reading it', async () => {
    const blocks = new MemoryBlocks()
    const state = await linkOf<State>('somewhere')
    const merged = await mergeStates(blocks, [state, state])
    assert.deepEqual(merged, { root: state, additions: [] })
    assert.equal(blocks.reads, 0)
  })

  it('refuses to merge nothing', async () => {
    await assert.rejects(mergeStates(new MemoryBlocks(), []), RangeError)
  })

  it('reads and writes only what differs', async () => {
    const blocks = new MemoryBlocks()
    const entries = Array.from({ length: 2000 }, (_, i): [string, Link] => [
      hour(i),
      backup,
    ])
    const old = await stateOf(blocks, entries.slice(0, 1000))
    const head = await stateOf(blocks, entries)
    const stale = blocks.keep(
      await addBackup(blocks, old, {
        account: alice,
        timestamp: '2025-01-05T03:30:00.000Z',
        backup,
      })
    )
    let merged: Revision<State> | undefined
    const reads = await blocks.readsOf(async () => {
      merged = await mergeStates(blocks, [stale, head])
    })
    assert.ok(reads < 50, `${reads} blocks were read`)
    assert.ok(merged!.additions.length < 20)
    const listed = await Array.fromAsync(
      listBackups(blocks, blocks.keep(merged!), alice)
    )
    assert.equal(listed.length, 2001)
  })

  it('says which state cannot be read, and why', async () => {
    const blocks = new MemoryBlocks()
    const good = await stateOf(blocks, [[hour(1), backup]])
    const missing = await linkOf<State>('missing')
    await assert.rejects(mergeStates(blocks, [good, missing]), (error) => {
      assert.ok(error instanceof UnreadableStateError)
      assert.match(error.message, new RegExp(`^State ${missing.toString()} `))
      assert.ok(error.cause instanceof MissingBlockError)
      return true
    })
    const invalid = await blockOf<State>({ [alice]: 'not a link' })
    blocks.put(invalid)
    await assert.rejects(mergeStates(blocks, [invalid.cid, good]), (error) => {
      assert.ok(error instanceof UnreadableStateError)
      assert.match(error.message, new RegExp(invalid.cid.toString()))
      assert.ok(error.cause instanceof DecodeError)
      return true
    })
  })

  it('says which state lacks a shard of its backups', async () => {
    const blocks = new MemoryBlocks()
    const a = await stateOf(blocks, [[hour(1), backup]])
    const b = await stateOf(blocks, [
      [hour(2), backup],
      [hour(3), backup],
    ])
    const account = decodeState((await blocks.get(b))!)[alice]!
    const { backups } = decodeAccount((await blocks.get(account))!)
    blocks.delete(backups)
    await assert.rejects(mergeStates(blocks, [a, b]), {
      name: 'UnreadableStateError',
      message: new RegExp(`^State ${b.toString()} .*${backups.toString()}`),
    })
  })

  it('refuses states that together have too many accounts', async () => {
    const blocks = new MemoryBlocks()
    const account = await linkOf<Account>('account')
    const stateWith = async (from: number) => {
      const dids = Array.from({ length: 600 }, (_, i) => `did:web:n${from + i}`)
      const block = await encodeState(
        Object.fromEntries(dids.map((did) => [did, account]))
      )
      blocks.put(block)
      return block.cid
    }
    await assert.rejects(
      mergeStates(blocks, [await stateWith(0), await stateWith(500)]),
      TooLargeError
    )
  })

  it('drops what another agent left from before the pruning', async () => {
    const blocks = new MemoryBlocks()
    const a = await stateOf(
      blocks,
      [
        [hour(1), backup],
        [hour(5), backup],
      ],
      hour(4)
    )
    const b = await stateOf(blocks, [[hour(2), backup]], hour(3))
    const merged = blocks.keep(await mergeStates(blocks, [a, b]))
    const listed = await Array.fromAsync(listBackups(blocks, merged, alice))
    assert.deepEqual(
      listed.map(({ timestamp }) => timestamp),
      [hour(5)]
    )
    const root = await stateOf(blocks, [[hour(5), backup]], hour(4))
    assert.equal(merged.toString(), root.toString())
  })
})

const backup = await linkOf<Backup>('backup')

/** A state with one account that has these backups, whatever they are. */
async function stateOf(
  blocks: MemoryBlocks,
  entries: [string, Link][],
  prunedBefore?: string
): Promise<Link<State>> {
  const authorizations = await encodeAuthorizations({})
  const account = await encodeAccount({
    authorizations: authorizations.cid,
    backups: blocks.keep(await buildPail<Backup>(entries)),
    prunedBefore,
  })
  const state = await encodeState({ [alice]: account.cid })
  blocks.put(authorizations, account, state)
  return state.cid
}

/** Plays a history on the real thing and on the model at the same time. */
class Player {
  readonly #backups: Link<Backup>[]

  constructor(backups: Link<Backup>[]) {
    this.#backups = backups
  }

  async history(operations: Operation[]) {
    const blocks = new MemoryBlocks()
    const empty = await encodeState({})
    blocks.put(empty)
    const states = Array.from({ length: REPLICAS }, () => empty.cid)
    const models = Array.from({ length: REPLICAS }, (): Model => new Map())
    for (const operation of operations) {
      const expected = this.#applyToModel(models, operation)
      let revision
      try {
        revision = await this.#applyToState(blocks, states, operation)
      } catch (error) {
        assert.equal((error as Error).name, expected)
        continue
      }
      assert.ok(typeof expected !== 'string', `${expected as string} was due`)
      assertAllNeeded(revision)
      models[operation.replica] = expected
      states[operation.replica] = blocks.keep(revision)
      assert.equal(show(await readModel(blocks, revision.root)), show(expected))
    }
    return { blocks, states, models }
  }

  async #applyToState(
    blocks: MemoryBlocks,
    states: Link<State>[],
    operation: Operation
  ): Promise<Revision<State>> {
    const state = states[operation.replica]!
    switch (operation.kind) {
      case 'add':
        return addBackup(blocks, state, {
          account: operation.account,
          timestamp: TIMES[operation.time]!,
          backup: this.#backups[operation.backup]!,
        })
      case 'remove':
        return removeBackup(blocks, state, {
          account: operation.account,
          timestamp: TIMES[operation.time]!,
        })
      case 'prune':
        return prune(blocks, state, {
          account: operation.account,
          before: TIMES[operation.time]!,
        })
      case 'authorize':
        return setAuthorization(blocks, state, operation)
      case 'recover':
        return setRecovery(blocks, state, operation)
      case 'share':
        return addShares(blocks, state, {
          ...operation,
          shares: [[TIMES[operation.time]!, operation.keys]],
        })
      case 'merge':
        return mergeStates(blocks, [
          state,
          ...operation.others.map((i) => states[i]!),
        ])
    }
  }

  /** The model after the operation, or the name of the error that is due. */
  #applyToModel(models: Model[], operation: Operation): Model | string {
    const model = structuredClone(models[operation.replica]!)
    if (operation.kind === 'merge') {
      return operation.others.map((i) => models[i]!).reduce(mergeModels, model)
    }
    const known = model.get(operation.account)
    const account: ModelAccount = known ?? {
      agents: new Map(),
      backups: new Map(),
      prunedBefore: '',
    }
    model.set(operation.account, account)
    if (operation.kind === 'authorize') {
      const { agent, authorization } = operation
      const grant = grantOf(authorization)
      const existing = account.agents.get(agent)
      account.agents.set(agent, existing ? greater(existing, grant) : grant)
      return model
    }
    if (operation.kind === 'recover') {
      if (known === undefined) return 'AccountNotFoundError'
      const { recipient = '' } = operation
      const [seq, before] = account.recovery ?? [0, '']
      if (recipient !== before) account.recovery = [seq + 1, recipient]
      return model
    }
    const timestamp = TIMES[operation.time]!
    if (operation.kind === 'share') {
      if (known === undefined) return 'AccountNotFoundError'
      if (timestamp < account.prunedBefore) return model
      const key = `${timestamp}/${operation.agent}`
      account.shares ??= new Map()
      const shared = account.shares.get(key)
      const { keys } = shared
        ? dagCbor.decode<Share>(Buffer.from(shared, 'hex'))
        : { keys: {} }
      const share = { version: 1, keys: { ...keys, ...operation.keys } }
      account.shares.set(
        key,
        Buffer.from(dagCbor.encode(share)).toString('hex')
      )
      return model
    }
    const existing = account.backups.get(timestamp)
    if (operation.kind === 'add') {
      if (timestamp < account.prunedBefore) return 'PrunedError'
      if (existing === REMOVED) return 'RemovedError'
      const backup = hex(this.#backups[operation.backup]!)
      const winner = existing && existing > backup ? existing : backup
      account.backups.set(timestamp, winner)
      return model
    }
    if (known === undefined) return 'AccountNotFoundError'
    if (operation.kind === 'remove') {
      if (existing === undefined) return 'BackupNotFoundError'
      account.backups.set(timestamp, REMOVED)
      return model
    }
    if (timestamp > account.prunedBefore) account.prunedBefore = timestamp
    dropPruned(account)
    return model
  }
}

function mergeModels(a: Model, b: Model): Model {
  const merged = structuredClone(a)
  for (const [did, other] of structuredClone(b)) {
    const account = merged.get(did)
    if (account === undefined) {
      merged.set(did, other)
      continue
    }
    for (const [agent, grant] of other.agents) {
      const own = account.agents.get(agent)
      account.agents.set(agent, own ? greater(own, grant) : grant)
    }
    for (const [timestamp, backup] of other.backups) {
      const own = account.backups.get(timestamp) ?? ''
      account.backups.set(timestamp, own > backup ? own : backup)
    }
    for (const [key, share] of other.shares ?? []) {
      account.shares ??= new Map()
      const own = account.shares.get(key)
      account.shares.set(
        key,
        own !== undefined && cidHex(own) > cidHex(share) ? own : share
      )
    }
    if (other.shares) account.shares ??= new Map()
    account.recovery = greaterRecovery(account.recovery, other.recovery)
    if (other.prunedBefore > account.prunedBefore) {
      account.prunedBefore = other.prunedBefore
    }
    dropPruned(account)
  }
  return merged
}

function greaterRecovery(
  a: ModelRecovery | undefined,
  b: ModelRecovery | undefined
): ModelRecovery | undefined {
  if (!a || !b) return a ?? b
  if (a[0] !== b[0]) return a[0] > b[0] ? a : b
  return a[1] > b[1] ? a : b
}

/** The CID of a block of DAG-CBOR, all in hexadecimal. */
function cidHex(block: string): string {
  const digest = createHash('sha256').update(Buffer.from(block, 'hex'))
  return `01711220${digest.digest('hex')}`
}

function dropPruned({ backups, prunedBefore, shares }: ModelAccount): void {
  for (const key of shares?.keys() ?? []) {
    if (key < prunedBefore) shares?.delete(key)
  }
  for (const timestamp of backups.keys()) {
    if (timestamp < prunedBefore) backups.delete(timestamp)
  }
}

function greater(a: ModelGrant, b: ModelGrant): ModelGrant {
  for (const i of [0, 1, 2] as const) {
    if (a[i] > b[i]) return a
    if (a[i] < b[i]) return b
  }
  return a
}

function grantOf(authorization: Authorization): ModelGrant {
  const bytes = Buffer.from(dagCbor.encode(authorization)).toString('hex')
  return [authorization.seq, authorization.expiration, bytes]
}

function hex(link: UnknownLink): string {
  if (link.toString() === TOMBSTONE.toString()) return REMOVED
  return Buffer.from(link.bytes).toString('hex')
}

/** Reads a state with nothing but the pail library and a CBOR decoder. */
async function readModel(
  blocks: MemoryBlocks,
  root: Link<State>
): Promise<Model> {
  const load = <T>(link: UnknownLink): T =>
    dagCbor.decode(blocks.blocks.get(link.toString())!.bytes)
  const model: Model = new Map()
  for (const [did, link] of Object.entries(load<State>(root))) {
    const account = load<Account>(link)
    const agents = Object.entries(load<Authorizations>(account.authorizations))
    const backups = new Map<string, string>()
    for await (const [timestamp, backup] of Library.entries(
      blocks as PailFetcher,
      account.backups as Link as ShardLink
    )) {
      backups.set(timestamp, hex(backup))
    }
    model.set(did, {
      agents: new Map(
        agents.map(([agent, link]) => [agent, grantOf(load(link))])
      ),
      backups,
      prunedBefore: account.prunedBefore ?? '',
      recovery: account.recovery && [
        account.recovery.seq,
        account.recovery.recipient ?? '',
      ],
      shares: account.shares && (await readShares(blocks, account.shares)),
    })
  }
  return model
}

async function readShares(
  blocks: MemoryBlocks,
  root: Link
): Promise<Map<string, string>> {
  const shares = new Map<string, string>()
  for await (const [key, share] of Library.entries(
    blocks as PailFetcher,
    root as ShardLink
  )) {
    const { bytes } = blocks.blocks.get(share.toString())!
    shares.set(key, Buffer.from(bytes).toString('hex'))
  }
  return shares
}

async function pailOf(
  entries: Iterable<[string, UnknownLink]>
): Promise<ShardLink> {
  const blocks = new MemoryBlocks()
  const empty = await ShardBlock.create()
  blocks.put(empty)
  let pail: ShardLink = empty.cid
  for (const [key, value] of entries) {
    const put = await Library.put(blocks as PailFetcher, pail, key, value)
    blocks.put(...put.additions)
    pail = put.root
  }
  return pail
}

function linkFrom(hex: string): UnknownLink {
  return CID.decode(Uint8Array.from(Buffer.from(hex, 'hex')))
}

/** The root that the model must have, made without the code under test. */
async function rootOf(model: Model): Promise<string> {
  const state: Record<string, UnknownLink> = {}
  for (const [did, account] of model) {
    const { agents, backups, prunedBefore, recovery, shares } = account
    const grants: Record<string, UnknownLink> = {}
    for (const [agent, [, , bytes]] of agents) {
      const block = await blockOf(Uint8Array.from(Buffer.from(bytes, 'hex')))
      grants[agent] = block.cid
    }
    const block = await blockOf({
      authorizations: (await blockOf(grants)).cid,
      backups: await pailOf(
        [...backups].map(([timestamp, backup]) => [
          timestamp,
          backup === REMOVED ? TOMBSTONE : linkFrom(backup),
        ])
      ),
      ...(prunedBefore === '' ? {} : { prunedBefore }),
      ...(recovery
        ? {
            recovery: {
              seq: recovery[0],
              ...(recovery[1] === '' ? {} : { recipient: recovery[1] }),
            },
          }
        : {}),
      ...(shares
        ? {
            shares: await pailOf(
              [...shares].map(([key, share]) => [key, linkFrom(cidHex(share))])
            ),
          }
        : {}),
    })
    state[did] = block.cid
  }
  return (await blockOf(state)).cid.toString()
}

/** Every new block but the root is linked to by another new block. */
function assertAllNeeded({ root, additions }: Revision<State>): void {
  const linked = new Set<string>([root.toString()])
  for (const { bytes } of additions) {
    for (const link of linksOf(dagCbor.decode(bytes))) linked.add(link)
  }
  for (const { cid } of additions) {
    assert.ok(linked.has(cid.toString()), `${cid.toString()} is not needed`)
  }
}

function linksOf(value: unknown): string[] {
  const cid = CID.asCID(value)
  if (cid) return [cid.toString()]
  return typeof value === 'object' && value !== null
    ? Object.values(value).flatMap(linksOf)
    : []
}

function show(model: Model): string {
  const sorted = <T>(map: Map<string, T>) =>
    [...map].sort(([a], [b]) => (a < b ? -1 : 1))
  return JSON.stringify(
    sorted(model).map(([did, account]) => [
      did,
      sorted(account.agents),
      sorted(account.backups),
      account.prunedBefore,
      account.recovery ?? null,
      account.shares ? sorted(account.shares) : null,
    ])
  )
}
