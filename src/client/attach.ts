import { delegate, DID } from '@ucanto/core'
import type { Block, Delegation, Link } from '@ucanto/interface'
import { SPACE_INFO } from '../capabilities/index.ts'
import type { InvocationConfig, InvocationOptions } from './connection.ts'

/** Seconds for which a service may ask about the Space. */
const INFO_LIFETIME = 60 * 60

/** What goes along with an invocation. */
export interface Attachments {
  /**
   * Facts that name all of the blocks: links in the facts make what is attached
   * part of an invocation.
   */
  facts: Record<string, Link>[]
  /** Attaches the blocks. */
  attachTo(invocation: { attach(block: Block): void }): void
}

/**
 * Collects what goes along with an invocation: what it acts upon and, if the
 * service's agent is known, what allows it to ask whether the Space has a
 * storage provider.
 *
 * @param options.delegation - goes along with all of its proofs
 */
export async function attachmentsOf(
  { issuer, with: space, proofs = [], agent }: InvocationConfig,
  { expiration }: InvocationOptions,
  {
    blocks = [],
    delegation,
  }: { blocks?: Block[]; delegation?: Delegation | undefined } = {}
): Promise<Attachments> {
  const info =
    agent === undefined
      ? undefined
      : await delegate({
          issuer,
          audience: DID.parse(agent),
          capabilities: [{ can: SPACE_INFO, with: space }],
          expiration:
            expiration ?? Math.floor(Date.now() / 1000) + INFO_LIFETIME,
          proofs,
        })
  const attached = [
    ...blocks,
    ...(delegation?.export() ?? []),
    ...(info?.export() ?? []),
  ]
  const links = attached.map(({ cid }) => [cid.toString(), cid] as const)
  return {
    facts:
      attached.length === 0
        ? []
        : [
            {
              ...Object.fromEntries(links),
              ...(info ? { [SPACE_INFO]: info.cid } : {}),
            },
          ],
    attachTo(invocation) {
      for (const block of attached) invocation.attach(block)
    },
  }
}
