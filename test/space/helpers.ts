import * as dagCbor from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import type {
  Block,
  BlockFetcher,
  DID,
  Link,
  UnknownLink,
} from '../../src/space/interface.ts'

export const alice: DID = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
export const bob: DID = 'did:plc:z72i7hdynmk6r22z27h6tvur'
export const phone: DID =
  'did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH'
export const laptop: DID =
  'did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp'

/** Blocks in memory, which count how often they are read. */
export class MemoryBlocks implements BlockFetcher {
  readonly blocks = new Map<string, Block>()
  reads = 0

  async get(link: UnknownLink): Promise<Block | undefined> {
    this.reads++
    return this.blocks.get(link.toString())
  }

  put(...blocks: Block[]): void {
    for (const block of blocks) this.blocks.set(block.cid.toString(), block)
  }

  delete(link: UnknownLink): void {
    this.blocks.delete(link.toString())
  }

  /** Stores what was added, and gives back the root. */
  keep<T>({ root, additions }: { root: Link<T>; additions: Block[] }): Link<T> {
    this.put(...additions)
    return root
  }

  async readsOf(action: () => Promise<unknown>): Promise<number> {
    const before = this.reads
    await action()
    return this.reads - before
  }
}

/** SHA-256 of a number: the same digest for the same number. */
export async function digestOf(value: number | string): Promise<Uint8Array> {
  const { digest } = await sha256.digest(new TextEncoder().encode(`${value}`))
  return digest
}

/** A link to a block that does not exist. */
export async function linkOf<T = never>(
  value: number | string,
  code = 0x71
): Promise<Link<T>> {
  const bytes = new TextEncoder().encode(`${value}`)
  return CID.createV1(code, await sha256.digest(bytes)) as Link as Link<T>
}

/** A block of any value, whatever the schema says. */
export async function blockOf<T = never>(
  value: unknown,
  code: number = dagCbor.code
): Promise<Block<T>> {
  const bytes = value instanceof Uint8Array ? value : dagCbor.encode(value)
  const cid = CID.createV1(code, await sha256.digest(bytes))
  return { cid: cid as Link as Link<T>, bytes }
}

/** The n-th hour of a time that had many. */
export function hour(n: number): string {
  return new Date(Date.UTC(2025, 0, 1) + n * 3_600_000).toISOString()
}
