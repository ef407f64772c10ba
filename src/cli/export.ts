import { createHash } from 'node:crypto'
import { createWriteStream } from 'node:fs'
import {
  mkdir,
  mkdtemp,
  readdir,
  rename,
  rm,
  writeFile,
} from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { CID } from 'multiformats/cid'
import type { BackupReader, PrivatePart } from '../backup/index.ts'
import { collectBlobs, type ReferredBlobs } from '../backup/repo.ts'
import { encodeCarHeader, encodeCarSection } from '../backup/car.ts'
import { PRIVATE_PARTS, type MissingBlob } from '../space/index.ts'
import { FolderNotEmptyError, NotSealedForUsError } from './errors.ts'
import type { PartOpener } from './private-parts.ts'
import { handleIn } from './target.ts'

/** Blobs that are read at the same time. */
const CONCURRENCY = 4

const REPO_FILE = 'repo.car'
const DOCUMENT_FILE = 'did-document.json'
const LOG_FILE = 'plc-log.json'
const MANIFEST_FILE = 'manifest.json'
const BLOBS_FOLDER = 'blobs'
/** For its owner only, as are the files in it. */
const PRIVATE_FOLDER = 'private'

/** What lies in an exported folder: its `manifest.json`. Sizes in bytes. */
export interface Manifest {
  version: 1
  /** DID of the account. */
  account: string
  /** What the account called itself; nobody has checked it. */
  handle?: string
  /** Key of the backup in the Space, if it was given. */
  timestamp?: string
  rev: string
  /** CID of the commit. */
  commit: string
  /** Whether the account's key of that time signed, or one from before. */
  signature: string
  repo: { file: string; bytes: number; sha256: string }
  records: number
  blobs: ExportedBlob[]
  /** Blobs that were not to be had when the backup was made. */
  missing: ({ cid: string } & MissingBlob)[]
  /** Private parts, also those that are not in the backup. */
  private: ExportedPart[]
  /** Blobs and parts that the backup has and that could not be read now. */
  unreadable: { cid: string; message: string }[]
}

export interface ExportedPart {
  part: PrivatePart
  /** What came of it when the backup was made. */
  outcome: string
  detail?: string
  /** Path in the folder, if it was written. */
  file?: string
  bytes?: number
  /** Why it was not written although the backup has it. */
  message?: string
}

export interface ExportedBlob {
  cid: string
  /** Path in the folder. */
  file: string
  size: number
  /** As the records say. */
  mimeType?: string
}

/** How far an export is. Sizes in bytes. */
export interface ExportProgress {
  records: number
  repoBytes: number
  blobs: number
  blobBytes: number
}

export interface ExportOptions {
  /** Key of the backup in the Space, for the manifest. */
  timestamp?: string
  /** Write into a folder that has other files, and over those of the same name. */
  force?: boolean
  /** Opens private parts; without it, none are written. */
  parts?: PartOpener
  onProgress?: (progress: Readonly<ExportProgress>) => void
  signal?: AbortSignal
}

/**
 * Writes a backup into a folder: the repository as a CAR, each blob in a file
 * of its own, the DID document and its log, and a manifest. All bytes are
 * checked against their CIDs on the way. The folder appears when everything is
 * in it; what was begun and not finished is removed.
 *
 * A blob that cannot be read is named in the manifest, and the rest is written.
 *
 * @throws {@link FolderNotEmptyError} {@link GatewayError}
 *   {@link InvalidRepoError}
 */
export async function exportBackup(
  backup: BackupReader,
  folder: string,
  { timestamp, force = false, parts, onProgress, signal }: ExportOptions = {}
): Promise<Manifest> {
  const target = resolve(folder)
  const existing = await filesIn(target)
  if (existing.length > 0 && !force) {
    throw new FolderNotEmptyError(
      `the folder ${folder} is not empty; name another one, or write over what is in it with --force`
    )
  }
  await mkdir(dirname(target), { recursive: true })
  const partial = await mkdtemp(`${target}.partial-`)
  try {
    const manifest = await writeAll(backup, partial, {
      timestamp,
      parts,
      onProgress,
      signal,
    })
    signal?.throwIfAborted()
    await moveFiles(partial, target, { replace: existing.length > 0 })
    return manifest
  } finally {
    await rm(partial, { recursive: true, force: true })
  }
}

async function writeAll(
  backup: BackupReader,
  folder: string,
  {
    timestamp,
    parts,
    onProgress,
    signal,
  }: Pick<ExportOptions, 'timestamp' | 'parts' | 'onProgress' | 'signal'>
): Promise<Manifest> {
  const progress = { records: 0, repoBytes: 0, blobs: 0, blobBytes: 0 }
  const step = (changes: Partial<ExportProgress>) => {
    signal?.throwIfAborted()
    Object.assign(progress, changes)
    onProgress?.(progress)
  }
  await mkdir(join(folder, BLOBS_FOLDER))

  const mimeTypes: ReferredBlobs = new Map()
  const repo = await writeTo(
    join(folder, REPO_FILE),
    carOf(backup, (record) => {
      collectBlobs(record, mimeTypes)
      step({ records: progress.records + 1 })
    }),
    (bytes) => step({ repoBytes: progress.repoBytes + bytes })
  )

  const blobs: ExportedBlob[] = []
  const unreadable: Manifest['unreadable'] = []
  const writeBlob = async (
    cid: string,
    root: Parameters<BackupReader['blob']>[1]
  ) => {
    // It is the backup that names the file: nothing but a CID gets through.
    const file = `${BLOBS_FOLDER}/${CID.parse(cid).toString()}`
    const path = join(folder, file)
    let written = 0
    try {
      const { bytes } = await writeTo(path, backup.blob(cid, root), (bytes) => {
        written += bytes
        step({ blobBytes: progress.blobBytes + bytes })
      })
      const mimeType = mimeTypes.get(cid)
      blobs.push({
        cid,
        file,
        size: bytes,
        ...(mimeType === undefined ? {} : { mimeType }),
      })
      step({ blobs: progress.blobs + 1 })
    } catch (error) {
      signal?.throwIfAborted()
      if (isOfFileSystem(error)) throw error
      await rm(path, { force: true })
      step({ blobBytes: progress.blobBytes - written })
      unreadable.push({
        cid,
        message: error instanceof Error ? error.message : String(error),
      })
    }
  }
  await inParallel(backup.blobs(), ([cid, root]) => writeBlob(cid, root))

  const written: ExportedPart[] = []
  for (const part of PRIVATE_PARTS) {
    const record = backup.value.private?.[part]
    if (!record) continue
    const { outcome, detail } = record
    const exported: ExportedPart = {
      part,
      outcome,
      ...(detail === undefined ? {} : { detail }),
    }
    written.push(exported)
    if (outcome !== 'ok' || !parts) continue
    const file = privateFile(part)
    await mkdir(join(folder, PRIVATE_FOLDER), { recursive: true, mode: 0o700 })
    try {
      const { bytes } = await writeTo(
        join(folder, file),
        await parts.open(part),
        () => step({}),
        0o600
      )
      Object.assign(exported, { file, bytes })
    } catch (error) {
      signal?.throwIfAborted()
      if (isOfFileSystem(error)) throw error
      await rm(join(folder, file), { force: true })
      exported.message = error instanceof Error ? error.message : String(error)
      if (!(error instanceof NotSealedForUsError)) {
        unreadable.push({ cid: part, message: exported.message })
      }
    }
  }

  const missing: Manifest['missing'] = []
  for await (const [cid, why] of backup.missing()) missing.push({ cid, ...why })

  const document = await backup.document()
  const log = await backup.log()
  await writeFile(join(folder, DOCUMENT_FILE), document)
  if (log !== undefined) await writeFile(join(folder, LOG_FILE), log)

  const { value } = backup
  const handle = handleIn(document)
  const manifest: Manifest = {
    version: 1,
    account: value.account,
    ...(handle === undefined ? {} : { handle }),
    ...(timestamp === undefined ? {} : { timestamp }),
    rev: value.rev,
    commit: value.repo.toString(),
    signature: value.signature,
    repo: { file: REPO_FILE, ...repo },
    records: progress.records,
    blobs: blobs.sort(byCid),
    missing: missing.sort(byCid),
    private: written,
    unreadable: unreadable.sort(byCid),
  }
  await writeFile(
    join(folder, MANIFEST_FILE),
    `${JSON.stringify(manifest, null, 2)}\n`
  )
  return manifest
}

/** The repository as a CAR; each record is shown on the way. */
async function* carOf(
  backup: BackupReader,
  onRecord: (bytes: Uint8Array) => void
): AsyncGenerator<Uint8Array> {
  yield encodeCarHeader([CID.parse(backup.value.repo.toString())])
  for await (const block of backup.repo()) {
    if (block.kind === 'record') {
      onRecord(block.bytes)
      if (block.repeated) continue
    }
    yield encodeCarSection(block.cid.bytes, block.bytes.length)
    yield block.bytes
  }
}

async function writeTo(
  path: string,
  chunks: AsyncIterable<Uint8Array>,
  onBytes: (bytes: number) => void,
  mode = 0o666
): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash('sha256')
  let bytes = 0
  await pipeline(
    chunks,
    async function* (chunks: AsyncIterable<Uint8Array>) {
      for await (const chunk of chunks) {
        hash.update(chunk)
        bytes += chunk.length
        onBytes(chunk.length)
        yield chunk
      }
    },
    createWriteStream(path, { flags: 'wx', mode })
  )
  return { bytes, sha256: hash.digest('hex') }
}

/** Does something with each of the items, a few at a time. */
async function inParallel<T>(
  items: AsyncIterable<T>,
  act: (item: T) => Promise<void>
): Promise<void> {
  const iterator = items[Symbol.asyncIterator]()
  let stopped = false
  const work = async () => {
    try {
      while (!stopped) {
        const next = await iterator.next()
        if (next.done) return
        await act(next.value)
      }
    } catch (error) {
      stopped = true
      throw error
    }
  }
  const workers = await Promise.allSettled(
    Array.from({ length: CONCURRENCY }, work)
  )
  for (const worker of workers) {
    if (worker.status === 'rejected') throw worker.reason as Error
  }
}

/**
 * Puts what was written in its place: at once where there is nothing yet, and
 * file by file, the manifest last, where there is.
 */
async function moveFiles(
  from: string,
  to: string,
  { replace }: { replace: boolean }
): Promise<void> {
  if (!replace) {
    await rename(from, to)
    return
  }
  const files: string[] = []
  // There must not be private parts of another backup.
  for (const part of PRIVATE_PARTS) {
    await rm(join(to, privateFile(part)), { force: true })
  }
  for (const folder of [BLOBS_FOLDER, PRIVATE_FOLDER]) {
    const names = await filesIn(join(from, folder))
    if (names.length === 0) continue
    const mode = folder === PRIVATE_FOLDER ? 0o700 : 0o777
    await mkdir(join(to, folder), { recursive: true, mode })
    files.push(...names.map((name) => join(folder, name)))
  }
  files.push(REPO_FILE, DOCUMENT_FILE, LOG_FILE, MANIFEST_FILE)
  for (const file of files) {
    try {
      await rename(join(from, file), join(to, file))
    } catch (error) {
      if (file !== LOG_FILE || codeOf(error) !== 'ENOENT') throw error
      // An account without a log: there must not be one of another account.
      await rm(join(to, LOG_FILE), { force: true })
    }
  }
}

/** Names in a folder; none, if there is no folder. */
async function filesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return []
    if (codeOf(error) !== 'ENOTDIR') throw error
    throw new FolderNotEmptyError(
      `${folder} is a file; name a folder to write the backup to`,
      { cause: error }
    )
  }
}

function privateFile(part: PrivatePart): string {
  const extension = part === 'conversations' ? 'jsonl' : 'json'
  return `${PRIVATE_FOLDER}/${part}.${extension}`
}

function byCid(a: { cid: string }, b: { cid: string }): number {
  return a.cid < b.cid ? -1 : 1
}

function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code
}

/** Whether a file could not be written, as with a disk that is full. */
function isOfFileSystem(error: unknown): boolean {
  return error instanceof Error && 'syscall' in error
}
