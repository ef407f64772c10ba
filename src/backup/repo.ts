import * as dagCBOR from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { DigestTable } from '../space/digest-table.ts'
import { bytesEqual } from './bytes.ts'
import { readRepoCar, repoCidBytes } from './car.ts'
import { decodeCommit, verifyCommit } from './commit.ts'
import { IncompleteRepoError, InvalidRepoError } from './errors.ts'
import type { Commit, CommitSignature, Identity, Spool } from './interface.ts'
import { decodeMstNode } from './mst.ts'
import { digestOf, type CreateSha256 } from './sha256.ts'

const DIGEST_SIZE = 32
const MIME_TYPE = new TextEncoder().encode('mimeType')

/** A repository that was checked from its signature to its last record. */
export interface VerifiedRepo {
  commit: Commit
  /** CID of the commit. */
  root: CID
  signature: CommitSignature
  /** Number of records among the new blocks. */
  records: number
  /** Blobs that new records refer to. */
  blobs: ReferredBlobs
  /** Size of the CAR in bytes. */
  received: number
  /** The new blocks that belong to the tree, parents before children. */
  blocks(): AsyncGenerator<{ digest: Uint8Array; bytes: Uint8Array }>
}

/** CID of a blob, as text → its media type, as the record says. */
export type ReferredBlobs = Map<string, string | undefined>

/** What is known of the blocks of earlier backups. */
export interface KnownBlocks {
  has(digest: Uint8Array): boolean
}

/**
 * Reads a repository from a CAR and verifies it: every block has the hash of
 * its CID, the commit is signed by the account, and the tree below it is
 * complete, where every node and record either came with the CAR or is known.
 * What is known was verified when it became known, with all that is below it.
 *
 * Blocks that came but do not belong to the tree are left out.
 *
 * @param chunks - the CAR as it comes in
 * @param options.spool - where the unverified blocks are kept; the caller
 *   closes it when it is done with the blocks
 * @throws {@link InvalidRepoError} the host sent something wrong
 * @throws {@link IncompleteRepoError} a block is missing, as when the account
 *   changed during the read
 */
export async function verifyRepo(
  chunks: AsyncIterable<Uint8Array>,
  {
    identity,
    known,
    spool,
    createSha256,
  }: {
    identity: Identity
    known: KnownBlocks
    spool: Spool
    createSha256: CreateSha256
  }
): Promise<VerifiedRepo> {
  const { root, blocks, received } = await readRepoCar(chunks)
  const table = new DigestTable()
  for await (const { digest, bytes } of blocks) {
    if (!bytesEqual(digestOf(createSha256, bytes), digest)) {
      throw new InvalidRepoError(
        `the host sent a block whose bytes are not those of its CID ${cidOf(digest)}`
      )
    }
    if (table.has(digest)) continue
    const offset = spool.size
    await spool.write(digest)
    await spool.write(bytes)
    table.set(digest, offset, bytes.length)
  }
  if (!root) {
    throw new IncompleteRepoError(
      'the host answered without a commit, as if nothing had changed; the next run reads the account again'
    )
  }

  const read = async (digest: Uint8Array) => {
    const place = table.get(digest)
    if (!place) return undefined
    const [offset, length] = place
    return spool.read(offset + DIGEST_SIZE, length)
  }
  const commitBytes = await read(root.multihash.digest)
  if (!commitBytes) {
    throw new IncompleteRepoError('the host did not send the commit')
  }
  const commit = decodeCommit(commitBytes, identity.did)
  const signature = await verifyCommit(commitBytes, identity)

  const visited = new DigestTable()
  const order: number[] = []
  const blobs: ReferredBlobs = new Map()
  let records = 0

  /** Whether the block is new and seen for the first time. */
  const visit = (cid: CID) => {
    const digest = cid.multihash.digest
    if (visited.has(digest)) return false
    const place = table.get(digest)
    if (!place) {
      if (known.has(digest)) return false
      throw new IncompleteRepoError(
        `the host did not send the block ${cid} of revision ${commit.rev}; the account may have changed while it was read`
      )
    }
    visited.set(digest, 0, 0)
    if (!known.has(digest)) order.push(place[0], place[1])
    return true
  }

  visit(root)
  const nodes = [CID.asCID(commit.data)]
  for (let cid = nodes.pop(); cid !== undefined; cid = nodes.pop()) {
    if (!cid || !visit(cid)) continue
    const bytes = await read(cid.multihash.digest)
    if (!bytes) continue
    const node = decodeMstNode(bytes)
    // The stack is taken from its end: the left subtree comes out first.
    for (const { right } of node.entries.toReversed()) nodes.push(right)
    nodes.push(node.left)
    for (const { record } of node.entries) {
      if (!visit(record)) continue
      records++
      const recordBytes = await read(record.multihash.digest)
      if (recordBytes) collectBlobs(recordBytes, blobs)
    }
  }

  return {
    commit,
    root,
    signature,
    records,
    blobs,
    received: received(),
    async *blocks() {
      for (let i = 0; i < order.length; i += 2) {
        const section = await spool.read(
          order[i] ?? 0,
          (order[i + 1] ?? 0) + DIGEST_SIZE
        )
        yield {
          digest: section.subarray(0, DIGEST_SIZE),
          bytes: section.subarray(DIGEST_SIZE),
        }
      }
    },
  }
}

/**
 * Adds the blobs that a record refers to. A record that is not
 * DAG-CBOR refers to none; it is kept as it is, its author signed it.
 *
 * @see https://atproto.com/specs/data-model#blob-type
 */
export function collectBlobs(record: Uint8Array, blobs: ReferredBlobs): void {
  if (!includes(record, MIME_TYPE)) return
  let value: unknown
  try {
    value = dagCBOR.decode(record)
  } catch {
    return
  }
  const queue = [value]
  for (let item = queue.pop(); item !== undefined; item = queue.pop()) {
    if (item === null || typeof item !== 'object') continue
    if (item instanceof Uint8Array || CID.asCID(item)) continue
    if (Array.isArray(item)) {
      for (const part of item as unknown[]) queue.push(part)
      continue
    }
    const { $type, ref, cid, mimeType } = item as Record<string, unknown>
    if ($type === 'blob') {
      const link = CID.asCID(ref)
      if (link) blobs.set(link.toString(), textOf(mimeType))
    } else if (typeof cid === 'string' && typeof mimeType === 'string') {
      // Form of blobs before the blob type had a name of its own.
      blobs.set(cid, mimeType)
    } else {
      for (const part of Object.values(item) as unknown[]) queue.push(part)
    }
  }
}

function textOf(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}

function includes(bytes: Uint8Array, part: Uint8Array): boolean {
  const first = part[0] ?? 0
  for (
    let i = bytes.indexOf(first);
    i >= 0 && i + part.length <= bytes.length;
    i = bytes.indexOf(first, i + 1)
  ) {
    if (part.every((byte, k) => bytes[i + k] === byte)) return true
  }
  return false
}

function cidOf(digest: Uint8Array): string {
  return CID.decode(repoCidBytes(digest)).toString()
}
