import type { Block, Invocation } from '@ucanto/interface'

/** A failure with a literal name, as handlers answer it. */
export function failure<Name extends string>(
  name: Name,
  message: string
): { ok?: undefined; error: { name: Name; message: string } } {
  return { error: { name, message } }
}

/** Blocks that came with an invocation. Their hashes were checked before. */
export function attachedBlocks(invocation: Invocation): Map<string, Block> {
  const blocks = new Map<string, Block>()
  for (const block of invocation.iterateIPLDBlocks()) {
    blocks.set(`${block.cid}`, block)
  }
  return blocks
}
