import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { create as createDigest } from 'multiformats/hashes/digest'
import PQueue from 'p-queue'
import {
  encodeJSONText,
  findRecovery,
  isInForce,
  isPlain,
  isSealed,
  listAuthorizations,
  MAX_BLOCK_SIZE,
  MAX_DETAIL_LENGTH,
  openPart,
  recipientOf,
  sealFileKey,
  sealPart,
  type BlockFetcher,
} from '../space/index.ts'
import { writeUnixFS } from './blob.ts'
import { bytesEqual } from './bytes.ts'
import {
  BackupError,
  PartNotGrantedError,
  PartNotOfferedError,
} from './errors.ts'
import type {
  AbsentPart,
  AccountReader,
  AccountSession,
  CallOptions,
  CreateSpool,
  DID,
  Identity,
  JSONText,
  Link,
  PlainPart,
  PrivatePart,
  PrivatePartRecord,
  PrivateParts,
  PrivateReader,
  SealedPart,
  Spool,
  State,
  Time,
} from './interface.ts'
import type { Packer } from './packer.ts'
import type { BackupReader } from './read.ts'
import { SHA2_256_CODE, type CreateSha256 } from './sha256.ts'
import { chunksOf, streamOf } from './streams.ts'

/** Parts that are read at the same time. */
const CONCURRENCY = 3
/** What is read of a spool at once, in bytes. */
const CHUNK_SIZE = 1024 * 1024
/** What is told of an error that is not one of ours, and may name anything. */
const UNTOLD =
  'the program that made the backup failed, and its log has the reason'

/** What a run needs of the world for what only the owner may read. */
export interface PrivateContext {
  /**
   * Opens the way into an account.
   *
   * @returns nothing if the owner has not granted it
   * @throws {@link PartNotGrantedError} when the grant has ended
   */
  session(
    account: DID,
    options: CallOptions
  ): Promise<AccountSession | undefined>
  reader: PrivateReader
  /** Reads accounts that their host gives to nobody but the owner. */
  accounts(session: AccountSession): AccountReader
  /** The agent's own identity, see `deriveIdentity`. */
  identity(account: DID): Promise<CryptoKey>
  /**
   * Whether the run ends with an error, for whoever runs it to try again. All
   * others are of one part alone, and are noted in its place.
   */
  endsRun?: (error: unknown) => boolean
  /**
   * Seals nothing: everybody who knows the Space reads it. Only where the user
   * says so.
   */
  plain?: boolean
}

/** The way into an account, or why there is none. */
export type Access =
  { session: AccountSession } | { session?: undefined; absent: AbsentPart }

type OnWarning = (message: string, error: unknown) => void

/**
 * Opens the way into an account; there may be none, which ends nothing.
 *
 * @throws what {@link PrivateContext.endsRun} says of
 */
export async function openAccess(
  context: PrivateContext | undefined,
  account: DID,
  {
    signal,
    onWarning,
  }: { signal: AbortSignal; onWarning?: OnWarning | undefined }
): Promise<Access> {
  try {
    const session = await context?.session(account, { signal })
    if (session && session.account !== account) {
      throw new TypeError(`the grant is for ${session.account}`)
    }
    return session ? { session } : { absent: { outcome: 'not-granted' } }
  } catch (error) {
    signal.throwIfAborted()
    if (context?.endsRun?.(error)) throw error
    return {
      absent: asAbsent(error, () =>
        onWarning?.('the grant of the account could not be used', error)
      ),
    }
  }
}

/** What the private parts of one run are read and sealed with. */
export interface PrivateOptions {
  /** Not there if this agent cannot read any. */
  context: PrivateContext | undefined
  parts: PrivatePart[]
  identity: Identity
  access: Access
  blocks: BlockFetcher
  state: Link<State> | undefined
  /** The last backup, whose parts are taken over where they are the same. */
  previous: BackupReader | undefined
  createSpool: CreateSpool
  createSha256: CreateSha256
  signal: AbortSignal
  time: Pick<Time, 'now'>
  onWarning?: OnWarning | undefined
}

/** A part that is not in the Space yet. */
interface NewPart {
  spool: Spool
  digest: Uint8Array
  detail: string | undefined
}

/**
 * The private parts of one run. Each is sealed on its way into a spool, so that
 * nothing of it lies about; one that cannot be had is noted with its outcome,
 * and ends nothing.
 */
export class PrivateBackup {
  /** What came of each part that was asked for. */
  readonly records: PrivateParts = {}
  /** Preferences as the RFC has them, if they are not sealed. */
  preferences: Link<JSONText> | undefined
  readonly #added = new Map<PrivatePart, NewPart>()
  readonly #options: PrivateOptions
  #recipients: string[] = []
  #own: CryptoKey | undefined

  constructor(options: PrivateOptions) {
    this.#options = options
  }

  /** Whether there is anything that the last backup does not have. */
  get isNew(): boolean {
    return this.#added.size > 0
  }

  /** Reads and seals all parts. */
  async read(): Promise<void> {
    const { parts, access } = this.#options
    if (!access.session) {
      for (const part of parts) this.records[part] = access.absent
      return
    }
    try {
      await this.#prepare()
    } catch (error) {
      const absent = this.#absentFor(error, 'private parts')
      for (const part of parts) this.records[part] = absent
      return
    }
    const { session } = access
    const queue = new PQueue({ concurrency: CONCURRENCY })
    const reading = parts.map((part) =>
      queue.add(() => this.#readPart(session, part))
    )
    const results = await Promise.allSettled(reading)
    for (const result of results) {
      if (result.status === 'rejected') throw result.reason
    }
    const ordered = parts.map((part) => [part, this.records[part]])
    Object.assign(this.records, Object.fromEntries(ordered))
  }

  /** Puts what is new into shards. */
  async pack(packer: Packer): Promise<void> {
    for (const [part, { spool, digest, detail }] of this.#added) {
      const record = {
        outcome: 'ok' as const,
        ...(detail === undefined ? {} : { detail }),
        size: spool.size,
      }
      if (!this.#options.context?.plain) {
        const sealed = await packFile(packer, spool, digest)
        this.records[part] = { ...record, sealed, recipients: this.#recipients }
        continue
      }
      const isJSONBlock = part === 'preferences' && spool.size <= MAX_BLOCK_SIZE
      const plain = isJSONBlock
        ? await packJSON(packer, spool)
        : await packFile(packer, spool, digest)
      this.records[part] = { ...record, plain }
      if (isJSONBlock) this.preferences = plain as Link<JSONText>
    }
  }

  /** Frees what holds the parts. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(
      [...this.#added.values()].map(({ spool }) => spool.close())
    )
  }

  /** @throws what ends the run */
  #absentFor(error: unknown, what: string): AbsentPart {
    const { signal, context, onWarning } = this.#options
    signal.throwIfAborted()
    if (context?.endsRun?.(error)) throw error
    return asAbsent(error, () =>
      onWarning?.(`${what} could not be backed up`, error)
    )
  }

  async #prepare(): Promise<void> {
    const { context, blocks, state, identity, time, onWarning } = this.#options
    if (!context || context.plain) return
    this.#own = await context.identity(identity.did)
    // Whoever else is let go or late, this agent can open what it seals.
    const recipients = new Set([await recipientOf(this.#own)])
    const add = async (recipient: string, whose: string) => {
      try {
        // Some that look valid cannot be sealed for: one must not spoil all.
        await sealFileKey(recipient, { fileKey: new Uint8Array(16) })
        recipients.add(recipient)
      } catch (error) {
        onWarning?.(
          `private parts are not sealed for ${whose}: its recipient is not valid`,
          error
        )
      }
    }
    const recovery = await findRecovery(blocks, state, identity.did)
    if (recovery !== undefined) await add(recovery, 'the recovery key')
    const agents = await listAuthorizations(blocks, state, identity.did)
    const now = time.now()
    for (const { agent, authorization } of agents) {
      const { recipient } = authorization
      if (recipient === undefined) continue
      if (isInForce(authorization, now)) await add(recipient, agent)
    }
    this.#recipients = [...recipients].sort()
  }

  async #readPart(session: AccountSession, part: PrivatePart): Promise<void> {
    const { context, identity, signal, createSpool, createSha256 } =
      this.#options
    const spool = createSpool()
    try {
      const { chunks, detail } = await (context as PrivateContext).reader.read(
        identity,
        session,
        part,
        { signal }
      )
      const content = createSha256()
      const stored = createSha256()
      for await (const chunk of await this.#seal(hashed(chunks, content))) {
        stored.update(chunk)
        await spool.write(chunk)
      }
      signal.throwIfAborted()
      const same = await this.#findSame(part, {
        digest: content.digest(),
        size: spool.size,
      })
      if (same) {
        this.records[part] = same
        if (part === 'preferences') {
          this.preferences = this.#options.previous?.value.preferences
        }
        await spool.close()
        return
      }
      this.#added.set(part, { spool, digest: stored.digest(), detail })
      // Its place in the Space is not known yet.
      this.records[part] = { outcome: 'failed' }
    } catch (error) {
      await spool.close()
      this.records[part] = this.#absentFor(error, part)
    }
  }

  async #seal(
    chunks: AsyncIterable<Uint8Array>
  ): Promise<AsyncIterable<Uint8Array>> {
    if (this.#options.context?.plain) return chunks
    return chunksOf(await sealPart(this.#recipients, streamOf(chunks)))
  }

  /**
   * The part in the last backup, if it has the same content and is sealed for
   * all that it would be sealed for now.
   */
  async #findSame(
    part: PrivatePart,
    found: { digest: Uint8Array; size: number }
  ): Promise<PrivatePartRecord | undefined> {
    const { previous, createSha256, signal, onWarning, context } = this.#options
    const record = previous?.value.private?.[part]
    if (!previous || !isComparable(record, this.#recipients, context?.plain)) {
      return undefined
    }
    // Whom it is sealed for adds to the size: the same ones, the same.
    const sameRecipients =
      isPlain(record) || record.recipients.length === this.#recipients.length
    if (sameRecipients && record.size !== found.size) return undefined
    const hash = createSha256()
    try {
      const file = previous.privateFile(record)
      const opened =
        isSealed(record) && this.#own
          ? chunksOf(await openPart(this.#own, streamOf(file)))
          : file
      for await (const chunk of opened) {
        signal.throwIfAborted()
        hash.update(chunk)
      }
    } catch (error) {
      signal.throwIfAborted()
      onWarning?.(
        `the last backup of ${part} cannot be read, so that it is backed up again`,
        error
      )
      return undefined
    }
    return bytesEqual(hash.digest(), found.digest) ? record : undefined
  }
}

function isComparable(
  record: PrivatePartRecord | undefined,
  recipients: string[],
  plain: boolean | undefined
): record is SealedPart | PlainPart {
  if (plain) return isPlain(record)
  return (
    isSealed(record) &&
    recipients.every((recipient) => record.recipients.includes(recipient))
  )
}

/**
 * What is noted in the place of a part. It is in the Space for ever, for all to
 * read: of what is not ours nothing is said, as it may name hosts or users of a
 * database.
 *
 * @param onUntold - called if the error is not in what is noted
 */
function asAbsent(error: unknown, onUntold: () => void): AbsentPart {
  if (!(error instanceof BackupError)) {
    onUntold()
    return { outcome: 'failed', detail: UNTOLD }
  }
  const outcome =
    error instanceof PartNotGrantedError
      ? 'not-granted'
      : error instanceof PartNotOfferedError
        ? 'not-offered'
        : 'failed'
  return {
    outcome,
    // Half of a character is none.
    detail: error.message.slice(0, MAX_DETAIL_LENGTH).toWellFormed(),
  }
}

async function* hashed(
  chunks: AsyncIterable<Uint8Array>,
  hash: { update(bytes: Uint8Array): void }
): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    hash.update(chunk)
    yield chunk
  }
}

async function* partsOf(spool: Spool): AsyncGenerator<Uint8Array> {
  for (let offset = 0; offset < spool.size; offset += CHUNK_SIZE) {
    yield await spool.read(offset, Math.min(CHUNK_SIZE, spool.size - offset))
  }
}

async function packFile(
  packer: Packer,
  spool: Spool,
  digest: Uint8Array
): Promise<CID> {
  const cid = CID.createV1(raw.code, createDigest(SHA2_256_CODE, digest))
  return writeUnixFS(
    {
      cid: cid.toString(),
      size: spool.size,
      parts: () => partsOf(spool),
      close: () => spool.close(),
    },
    ({ cid, bytes }) => packer.addBlock(cid.bytes, cid.multihash.digest, bytes)
  )
}

async function packJSON(packer: Packer, spool: Spool): Promise<Link> {
  const text = new TextDecoder('utf-8', {
    fatal: true,
    ignoreBOM: true,
  }).decode(await spool.read(0, spool.size))
  const { cid, bytes } = await encodeJSONText(text)
  await packer.addBlock(cid.bytes, cid.multihash.digest, bytes)
  return cid
}
