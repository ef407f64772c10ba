import type { Block, BlockFetcher, UnknownLink } from './interface.ts'

/** Blocks that were just made, before those that can be fetched. */
export class BlockOverlay implements BlockFetcher {
  readonly #blocks = new Map<string, Block>()
  readonly #below: BlockFetcher

  constructor(below: BlockFetcher) {
    this.#below = below
  }

  put(blocks: Block[]): void {
    for (const block of blocks) this.#blocks.set(block.cid.toString(), block)
  }

  async get(link: UnknownLink): Promise<Block | undefined> {
    return this.#blocks.get(link.toString()) ?? this.#below.get(link)
  }
}
