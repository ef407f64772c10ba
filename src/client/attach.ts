import type { Block, Delegation, Link } from '@ucanto/interface'

/**
 * Facts that name the blocks of a delegation: links in the facts make what is
 * attached part of an invocation.
 */
export function factsOf(delegation: Delegation): Record<string, Link>[] {
  const links = [...delegation.export()].map(
    ({ cid }) => [cid.toString(), cid] as const
  )
  return [Object.fromEntries(links)]
}

/** Attaches a delegation with all of its proofs. */
export function attach(
  invocation: { attach(block: Block): void },
  delegation: Delegation
): void {
  for (const block of delegation.export()) invocation.attach(block)
}
