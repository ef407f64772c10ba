import * as dagPB from '@ipld/dag-pb'
import { LRUCache } from 'lru-cache'
import { CID } from 'multiformats/cid'
import {
  decodeJSONText,
  JSON_CODE,
  entries,
  isPlain,
  isSealed,
  loadBlockIndex,
  readBackup,
  readMissingBlob,
  type BlockIndexReader,
} from '../space/index.ts'
import { DigestTable } from '../space/digest-table.ts'
import { bytesEqual } from './bytes.ts'
import { encodeCarHeader, encodeCarSection } from './car.ts'
import { decodeCommit, verifyCommit } from './commit.ts'
import { GatewayError, InvalidRepoError } from './errors.ts'
import type {
  Backup,
  DID,
  Identity,
  Link,
  MissingBlob,
  PlainPart,
  SealedPart,
  Slice,
  SpaceReader,
  UnknownLink,
} from './interface.ts'
import { decodeMstNode } from './mst.ts'
import { collectBlobs, type ReferredBlobs } from './repo.ts'
import { digestOf, type CreateSha256 } from './sha256.ts'

/** What is read of a shard at once, in bytes: blocks lie in reading order. */
const WINDOW_SIZE = 1024 * 1024
/** Slices from this size on are read alone, in bytes. */
const ALONE_SIZE = 256 * 1024
const CACHED_WINDOWS = 16
const MAX_JSON_SIZE = 2 * 1024 * 1024
const RAW_CODE = 0x55
const DAG_PB_CODE = 0x70
/** Levels of a UnixFS file: enough for a million leaves at two per node. */
const MAX_FILE_DEPTH = 20

/**
 * Reads one backup out of the Space. Every block is checked against its CID,
 * wherever it came from.
 *
 * @example
 * ```ts
 * const backup = await openBackup(space, link, { createSha256 })
 * for await (const chunk of backup.car()) file.write(chunk)
 * for await (const [cid, root] of backup.blobs()) {
 *   for await (const chunk of backup.blob(cid, root)) …
 * }
 * ```
 */
export class BackupReader {
  readonly value: Backup
  readonly link: Link<Backup>
  readonly #space: SpaceReader
  readonly #index: BlockIndexReader
  readonly #createSha256: CreateSha256
  readonly #windows = new LRUCache<string, Window>({ max: CACHED_WINDOWS })

  constructor(
    space: SpaceReader,
    link: Link<Backup>,
    value: Backup,
    index: BlockIndexReader,
    createSha256: CreateSha256
  ) {
    this.value = value
    this.link = link
    this.#space = space
    this.#index = index
    this.#createSha256 = createSha256
  }

  /**
   * One block of the repository or of a blob.
   *
   * @throws {@link GatewayError} if the Space does not give it
   */
  async block(link: UnknownLink): Promise<Uint8Array> {
    const digest = link.multihash.digest
    const slice = this.#index.get(digest)
    if (slice) {
      const bytes = await this.#read(slice)
      if (bytes && bytesEqual(digestOf(this.#createSha256, bytes), digest)) {
        return bytes
      }
    }
    const block = await this.#space.get(link)
    if (block) return block.bytes
    throw new GatewayError(
      `no gateway has the block ${link}; try again later, or name another gateway`
    )
  }

  /** Blocks of the repository, parents before children, the commit first. */
  async *repo(): AsyncGenerator<RepoBlock> {
    const root = CID.parse(this.value.repo.toString())
    const commitBytes = await this.block(root)
    const commit = decodeCommit(commitBytes, this.value.account)
    yield { kind: 'commit', cid: root, bytes: commitBytes }
    const seen = new DigestTable()
    const isNew = (cid: CID) => {
      if (seen.has(cid.multihash.digest)) return false
      seen.set(cid.multihash.digest, 0, 0)
      return true
    }
    const nodes = [CID.asCID(commit.data)]
    for (let cid = nodes.pop(); cid !== undefined; cid = nodes.pop()) {
      if (!cid || !isNew(cid)) continue
      const bytes = await this.block(cid)
      yield { kind: 'node', cid, bytes }
      const node = decodeMstNode(bytes)
      for (const { right } of node.entries.toReversed()) nodes.push(right)
      nodes.push(node.left)
      for (const { key, record } of node.entries) {
        yield {
          kind: 'record',
          key,
          cid: record,
          bytes: await this.block(record),
          repeated: !isNew(record),
        }
      }
    }
  }

  /** The repository as a CAR, as `com.atproto.sync.getRepo` gives it. */
  async *car(): AsyncGenerator<Uint8Array> {
    yield encodeCarHeader([CID.parse(this.value.repo.toString())])
    for await (const block of this.repo()) {
      if (block.kind === 'record' && block.repeated) continue
      yield encodeCarSection(block.cid.bytes, block.bytes.length)
      yield block.bytes
    }
  }

  /** CID of each blob and root of its UnixFS DAG. */
  blobs(): AsyncIterable<[cid: string, root: UnknownLink]> {
    return entries(this.#space, this.value.blobs)
  }

  /** Blobs that are not in the backup, and why. */
  async *missing(): AsyncGenerator<[cid: string, why: MissingBlob]> {
    if (!this.value.missing) return
    for await (const [cid, link] of entries(this.#space, this.value.missing)) {
      yield [cid, await readMissingBlob(this.#space, link as Link<MissingBlob>)]
    }
  }

  /**
   * The bytes of a blob. The last part comes only if all bytes together are
   * those of the CID.
   *
   * @throws {@link InvalidRepoError} if they are not
   */
  async *blob(cid: string, root: UnknownLink): AsyncGenerator<Uint8Array> {
    const hash = this.#createSha256()
    let held: Uint8Array | undefined
    for await (const part of this.#file(root, 0)) {
      hash.update(part)
      if (held) yield held
      held = part
    }
    if (!bytesEqual(hash.digest(), CID.parse(cid).multihash.digest)) {
      throw new InvalidRepoError(
        `the file ${root} in the Space is not the blob ${cid}`
      )
    }
    if (held) yield held
  }

  /**
   * The bytes of a private part as they are in the Space: an age file, or JSON
   * text if it is not sealed.
   *
   * @param part - of {@link value}
   * @throws {@link InvalidRepoError} if it is of another size
   */
  async *privateFile(part: SealedPart | PlainPart): AsyncGenerator<Uint8Array> {
    let size = 0
    const link = 'sealed' in part ? part.sealed : part.plain
    for await (const bytes of this.#file(link, 0)) {
      size += bytes.length
      if (size > part.size) break
      yield bytes
    }
    if (size !== part.size) {
      throw new InvalidRepoError(
        `the file ${link} in the Space has another size than its backup says`
      )
    }
  }

  /** The DID document at the time of the backup, as JSON text. */
  async document(): Promise<string> {
    return this.#json(this.value.identity.document)
  }

  /** The PLC directory's audit log at the time of the backup, as JSON text. */
  async log(): Promise<string | undefined> {
    const { log } = this.value.identity
    return log && this.#json(log)
  }

  async #json(link: UnknownLink): Promise<string> {
    return decodeJSONText(
      { cid: link as Link, bytes: await this.block(link) },
      { maxSize: MAX_JSON_SIZE }
    )
  }

  async *#file(link: UnknownLink, depth: number): AsyncGenerator<Uint8Array> {
    const bytes = await this.block(link)
    if (link.code === RAW_CODE || (link.code === JSON_CODE && depth === 0)) {
      yield bytes
      return
    }
    if (link.code !== DAG_PB_CODE || depth > MAX_FILE_DEPTH) {
      throw new InvalidRepoError(`the block ${link} is not part of a file`)
    }
    for (const { Hash } of dagPB.decode(bytes).Links) {
      yield* this.#file(Hash, depth + 1)
    }
  }

  async #read(slice: Slice): Promise<Uint8Array | undefined> {
    const { shard, offset, length } = slice
    if (length >= ALONE_SIZE) {
      return this.#space.getShardRange(shard, { offset, length })
    }
    const key = shard.digest.join()
    const window = this.#windows.get(key)
    const held = window && part(window, offset, length)
    if (held) return held
    const size = Math.min(WINDOW_SIZE, shard.size - offset)
    const bytes = await this.#space.getShardRange(shard, {
      offset,
      length: size,
    })
    if (!bytes) return undefined
    const read = { offset, bytes }
    this.#windows.set(key, read)
    return part(read, offset, length)
  }
}

/** Part of a shard that was read. */
interface Window {
  offset: number
  bytes: Uint8Array
}

function part(
  { offset: start, bytes }: Window,
  offset: number,
  length: number
): Uint8Array | undefined {
  const at = offset - start
  return at >= 0 && at + length <= bytes.length
    ? bytes.subarray(at, at + length)
    : undefined
}

export type RepoBlock = { cid: CID; bytes: Uint8Array } & (
  | { kind: 'commit' }
  | { kind: 'node' }
  | {
      kind: 'record'
      /** `collection/rkey` */
      key: string
      /** Another record of this repository has the same bytes. */
      repeated: boolean
    }
)

/**
 * Opens a backup.
 *
 * @param link - CID of the backup, as `listBackups` gives it
 * @throws {@link MissingBlockError} {@link DecodeError} {@link GatewayError}
 */
export async function openBackup(
  space: SpaceReader,
  link: Link<Backup>,
  { createSha256 }: { createSha256: CreateSha256 }
): Promise<BackupReader> {
  const value = await readBackup(space, link)
  const index = await loadBlockIndex(space, value.index)
  return new BackupReader(space, link, value, index, createSha256)
}

/** What a check of a backup found. Sizes in bytes. */
export interface Verification {
  account: DID
  rev: string
  records: number
  repoBytes: number
  blobs: number
  blobBytes: number
  /** Blobs that were not to be had when the backup was made. */
  missing: number
  problems: Problem[]
}

export interface Problem {
  /** What is affected: a CID, or `commit`. */
  subject: string
  message: string
}

/**
 * Reads all of a backup and checks it: signature, tree, records, blobs, and
 * that every blob a record refers to is there or noted as missing.
 *
 * @param options.keys - finds the account's keys in the stored DID document
 *   and PLC log
 */
export async function verifyBackup(
  backup: BackupReader,
  {
    keys,
    onProgress,
    signal,
  }: {
    keys: (
      account: DID,
      document: string,
      log: string | undefined
    ) => Promise<Pick<Identity, 'signingKey' | 'previousSigningKeys'>>
    onProgress?: (progress: Readonly<Verification>) => void
    signal?: AbortSignal
  }
): Promise<Verification> {
  const { account, rev } = backup.value
  const result: Verification = {
    account,
    rev,
    records: 0,
    repoBytes: 0,
    blobs: 0,
    blobBytes: 0,
    missing: 0,
    problems: [],
  }
  const note = (subject: string, error: unknown) => {
    signal?.throwIfAborted()
    result.problems.push({
      subject,
      message: error instanceof Error ? error.message : String(error),
    })
  }
  const step = () => {
    signal?.throwIfAborted()
    onProgress?.(result)
  }

  const referred: ReferredBlobs = new Map()
  try {
    for await (const { kind, cid, bytes } of backup.repo()) {
      step()
      result.repoBytes += bytes.length
      if (kind === 'record') {
        result.records++
        collectBlobs(bytes, referred)
      }
      if (kind !== 'commit') continue
      try {
        if (decodeCommit(bytes, account).rev !== rev) {
          note(
            cid.toString(),
            'the commit has another revision than the backup'
          )
        }
        await verifyCommit(
          bytes,
          await keys(account, await backup.document(), await backup.log())
        )
      } catch (error) {
        note('commit', error)
      }
    }
  } catch (error) {
    note('repository', error)
  }
  try {
    for await (const [cid, root] of backup.blobs()) {
      referred.delete(cid)
      try {
        for await (const bytes of backup.blob(cid, root)) {
          step()
          result.blobBytes += bytes.length
        }
        result.blobs++
      } catch (error) {
        note(cid, error)
      }
    }
    for await (const [cid] of backup.missing()) {
      referred.delete(cid)
      result.missing++
    }
  } catch (error) {
    note('list of blobs', error)
    return result
  }
  for (const [part, record] of Object.entries(backup.value.private ?? {})) {
    if (!isSealed(record) && !isPlain(record)) continue
    try {
      for await (const _ of backup.privateFile(record)) step()
    } catch (error) {
      note(part, error)
    }
  }
  if (backup.value.parts.includes('blobs')) {
    for (const cid of referred.keys()) {
      note(cid, 'a record refers to this blob; it is not in the backup')
    }
  }
  return result
}
