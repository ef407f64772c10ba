import assert from 'node:assert/strict'
import * as dagCBOR from '@ipld/dag-cbor'
import fc from 'fast-check'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import {
  DecodeError,
  addBackup,
  addShares,
  setRecovery,
  createEvent,
  listBackups,
  mergeHeads,
  MissingBlockError,
  UnreadableStateError,
  type Block,
} from '../../src/space/index.ts'
import {
  change,
  changed,
  damage,
  damaged,
  FUZZ_CASES,
  fuzz,
  tryEncode,
} from '../fuzz.ts'
import { alice, bob, hour, linkOf, MemoryBlocks, phone } from './helpers.ts'
import { kinds } from './kinds.ts'

const CASES = Math.ceil((FUZZ_CASES * 0.4) / kinds.length)
const STATE_CASES = Math.ceil(FUZZ_CASES * 0.1)

describe('fuzzed blocks', () => {
  for (const [at, kind] of kinds.entries()) {
    const encode = kind.encode as (value: unknown) => Promise<Block>
    const next = kinds[(at + 1) % kinds.length]!
    const nextEncode = next.encode as (value: unknown) => Promise<Block>

    it(`decode to one ${kind.name} or to nothing`, async () => {
      const { bytes } = await encode(kind.value)
      const { bytes: other } = await nextEncode(next.value)
      let decoded = 0
      const check = async (mutant: Uint8Array) => {
        let result: unknown
        try {
          result = kind.decode(await blockOf(mutant))
        } catch (error) {
          assert.ok(error instanceof DecodeError, String(error))
          return
        }
        // A value has one block: what decodes is what would be encoded.
        decoded++
        const again = await encode(result)
        assert.ok(Buffer.from(again.bytes).equals(mutant))
      }
      await fuzz(
        fc.oneof(
          damage.map((how) => damaged(bytes, other, how)),
          change.map((how) => tryEncode(changed(kind.value, how)) ?? bytes)
        ),
        CASES,
        check
      )
      assert.ok(decoded > 0, 'some mutants are valid, too')
    })
  }
})

describe('fuzzed states', () => {
  it('are merged, or left in place with a reason', async () => {
    const blocks = new MemoryBlocks()
    let state: Awaited<ReturnType<typeof addBackup>>['root'] | undefined
    for (const [at, account] of [alice, bob, alice, alice].entries()) {
      const added = await addBackup(blocks, state, {
        account,
        timestamp: hour(at),
        backup: await linkOf(`backup ${at}`),
      })
      blocks.put(...added.additions)
      state = added.root
    }
    assert.ok(state)
    const recovered = await setRecovery(blocks, state, {
      account: alice,
      recipient:
        'age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p',
    })
    blocks.put(...recovered.additions)
    const shared = await addShares(blocks, recovered.root, {
      account: alice,
      agent: phone,
      shares: [[hour(0), { mutes: new Uint8Array(9) }]],
    })
    blocks.put(...shared.additions)
    state = shared.root
    const event = await createEvent(state, [])
    const added = await addBackup(blocks, state, {
      account: bob,
      timestamp: hour(9),
      backup: await linkOf('backup 9'),
    })
    blocks.put(...added.additions)
    const good = await createEvent(added.root, [])
    blocks.put(event, good)
    const reachable = await reach(blocks, event.cid as unknown as CID)
    let unreadable = 0
    let merged = 0

    await fuzz(
      fc.tuple(fc.nat(), change, damage, fc.boolean()),
      STATE_CASES,
      async ([which, how, harm, isStructured]) => {
        // One block on the way down is another; those above link to it.
        const at = which % reachable.length
        const victim = reachable[at]!
        const bytes =
          (isStructured && victim.code === dagCBOR.code
            ? tryEncode(changed(dagCBOR.decode(victim.bytes), how))
            : undefined) ?? damaged(victim.bytes, event.bytes, harm)
        const mutant = await blockOf(bytes, victim.code)
        const overlay = new MemoryBlocks()
        overlay.put(mutant)
        const root = await relink(overlay, reachable, victim.cid, mutant.cid)
        const fetcher = {
          get: async (link: { toString(): string }) =>
            (await overlay.get(link as never)) ?? blocks.get(link as never),
        }
        const heads = [root, good.cid] as never
        const result = await mergeHeads(fetcher, heads)
        assert.ok(result.state)
        for (const { error } of result.unreadable) {
          unreadable++
          assert.ok(
            error instanceof UnreadableStateError ||
              error instanceof DecodeError ||
              error instanceof MissingBlockError,
            String(error)
          )
        }
        if (result.unreadable.length === 0) merged++
        const both = new MemoryBlocks()
        both.put(...result.additions)
        // What came of it can be read, and has what the good one has.
        const listed = []
        for await (const { timestamp } of listBackups(
          {
            get: async (link) => (await both.get(link)) ?? fetcher.get(link),
          },
          result.state,
          bob
        )) {
          listed.push(timestamp)
        }
        if (result.unreadable.length > 0)
          assert.deepEqual(listed, [hour(1), hour(9)])
      }
    )
    assert.ok(unreadable > 0 && merged > 0)
  })
})

async function blockOf(
  bytes: Uint8Array,
  code: number = dagCBOR.code
): Promise<Block> {
  const cid = CID.createV1(code, await sha256.digest(bytes))
  return { cid, bytes }
}

/** All blocks below a link, itself first. */
async function reach(blocks: MemoryBlocks, root: CID) {
  const found: { cid: CID; code: number; bytes: Uint8Array }[] = []
  const open = [root]
  const seen = new Set<string>()
  for (let cid = open.shift(); cid; cid = open.shift()) {
    const block = await blocks.get(cid as never)
    if (!block || seen.has(cid.toString())) continue
    seen.add(cid.toString())
    found.push({ cid, code: cid.code, bytes: block.bytes })
    if (cid.code === dagCBOR.code) {
      open.push(...linksIn(dagCBOR.decode(block.bytes)))
    }
  }
  return found
}

function linksIn(value: unknown): CID[] {
  const link = CID.asCID(value)
  if (link) return [link]
  if (typeof value !== 'object' || value === null) return []
  return value instanceof Uint8Array
    ? []
    : Object.values(value).flatMap((part) => linksIn(part))
}

/** Puts a link in the place of another, in all blocks above it. */
async function relink(
  overlay: MemoryBlocks,
  reachable: { cid: CID; bytes: Uint8Array }[],
  from: CID,
  to: unknown
): Promise<CID> {
  const replaced = new Map([[from.toString(), to as CID]])
  // Those below come later: from the last to the first, all are up to date.
  for (const { cid, bytes } of reachable.toReversed()) {
    if (cid.code !== dagCBOR.code || cid.equals(from)) continue
    const value = dagCBOR.decode<unknown>(bytes)
    if (!linksIn(value).some((link) => replaced.has(link.toString()))) continue
    const block = await blockOf(dagCBOR.encode(withLinks(value, replaced)))
    overlay.put(block)
    replaced.set(cid.toString(), block.cid as unknown as CID)
  }
  return replaced.get(reachable[0]!.cid.toString()) ?? reachable[0]!.cid
}

function withLinks(value: unknown, replaced: Map<string, CID>): unknown {
  const link = CID.asCID(value)
  if (link) return replaced.get(link.toString()) ?? link
  if (typeof value !== 'object' || value === null) return value
  if (value instanceof Uint8Array) return value
  if (Array.isArray(value))
    return value.map((part) => withLinks(part, replaced))
  return Object.fromEntries(
    Object.entries(value).map(([key, part]) => [key, withLinks(part, replaced)])
  )
}
