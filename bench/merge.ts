import { MemoryBlockstore } from '@web3-storage/pail/block'
import * as CRDT from '@web3-storage/pail/crdt'
import * as dagCBOR from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import {
  addBackup,
  createEvent,
  mergeHeads,
  type Backup,
  type Block,
  type EventLink,
  type Link,
  type State,
} from '../src/space/index.ts'
import {
  median,
  timesAsMuch,
  timesLess,
  type Measurement,
} from './measurement.ts'

const ROUNDS = 15
const PEER = '@web3-storage/pail/crdt'
/** Events that the other writer made meanwhile, where both are measured. */
const STALE = [10, 100]
/** Where the peer would take minutes: its time grows with the third power. */
const VERY_STALE = 1_000
const LIMIT_MS = 10
const ACCOUNT = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const HOUR = 3_600_000
const START = Date.UTC(2025, 2, 12)

/** A merge by a writer who has missed events of another. */
export async function run(say: (line: string) => void): Promise<Measurement[]> {
  const measurements: Measurement[] = []
  for (const events of STALE) {
    const ours = await timeOurs(events)
    const theirs = await timeTheirs(events)
    say(
      `${events} events stale: ours ${ours.toFixed(2)} ms, theirs ${theirs.toFixed(1)} ms`
    )
    measurements.push(
      timesLess(
        {
          what: `time of a merge, ${events} events stale`,
          ours,
          peer: PEER,
          theirs,
          unit: 'ms',
        },
        1
      )
    )
  }
  measurements.push(
    timesAsMuch(
      {
        what: `time of a merge, ${VERY_STALE} events stale`,
        ours: await timeOurs(VERY_STALE),
        peer: `the limit of ${LIMIT_MS} ms`,
        theirs: LIMIT_MS,
        unit: 'ms',
      },
      1
    )
  )
  return measurements
}

/** @returns milliseconds */
async function timeOurs(events: number): Promise<number> {
  const stored = new Map<string, Block>()
  const fetcher = {
    get: async (link: { toString(): string }) => stored.get(link.toString()),
  }
  const keep = (blocks: Block[]) => {
    for (const block of blocks) stored.set(block.cid.toString(), block)
  }
  /** One more backup on top of what a writer knows. */
  const write = async (
    writer: { state?: Link<State>; head: EventLink[] },
    number: number
  ) => {
    const { root, additions } = await addBackup(fetcher, writer.state, {
      account: ACCOUNT,
      timestamp: new Date(START + number * HOUR).toISOString(),
      backup: (await linkOf({ number })) as Link<Backup>,
    })
    const event = await createEvent(root, writer.head)
    keep([...additions, event])
    return { state: root, head: [event.cid] }
  }
  const base = await write({ head: [] }, 0)
  let other = base
  for (let number = 1; number <= events; number++) {
    other = await write(other, number)
  }
  const stale = await write(base, events + 1)
  const heads = [...other.head, ...stale.head]
  return timeOf(ROUNDS, () => mergeHeads(fetcher, heads))
}

/** @returns milliseconds */
async function timeTheirs(events: number): Promise<number> {
  const blocks = new MemoryBlockstore()
  const write = async (
    head: Parameters<typeof CRDT.put>[1],
    number: number
  ) => {
    const {
      event,
      additions,
      head: next,
    } = await CRDT.put(
      blocks,
      head,
      new Date(START + number * HOUR).toISOString(),
      await linkOf({ number })
    )
    if (event) blocks.putSync(event.cid, event.bytes)
    for (const { cid, bytes } of additions) blocks.putSync(cid, bytes)
    return next
  }
  const base = await write([], 0)
  let other = base
  for (let number = 1; number <= events; number++) {
    other = await write(other, number)
  }
  const stale = await write(base, events + 1)
  return timeOf(3, () => CRDT.root(blocks, [...other, ...stale]))
}

async function timeOf(
  rounds: number,
  act: () => Promise<unknown>
): Promise<number> {
  const times: number[] = []
  for (let round = 0; round < rounds; round++) {
    const started = performance.now()
    await act()
    times.push(performance.now() - started)
  }
  return median(times)
}

async function linkOf(value: unknown): Promise<CID> {
  return CID.createV1(dagCBOR.code, await sha256.digest(dagCBOR.encode(value)))
}
