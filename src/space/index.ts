/**
 * The state of Bluesky Backups in a Space, as IPLD blocks.
 *
 * Everything is a function from values to values: blocks are read through the
 * {@link BlockFetcher} that is passed in, and what is new comes back as
 * `{ root, additions }`, for the caller to store before anything links to it.
 *
 * @example
 * ```js
 * import * as Space from 'bluesky-backups/space'
 *
 * const blocks = new Map()
 * const fetcher = { get: async (link) => blocks.get(link.toString()) }
 * const store = (additions) => {
 *   for (const block of additions) blocks.set(block.cid.toString(), block)
 * }
 *
 * // The head of the Space's clock; it is empty as long as the clock is new.
 * const merged = await Space.mergeHeads(fetcher, [])
 * store(merged.additions)
 *
 * const account = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
 * const timestamp = new Date().toISOString()
 * // Here any block stands for the backup, see `encodeBackup`.
 * const backup = (await Space.emptyPail()).root
 * const added = await Space.addBackup(fetcher, merged.state, {
 *   account,
 *   timestamp,
 *   backup,
 * })
 * store(added.additions)
 *
 * // What the clock is advanced to.
 * const event = await Space.createEvent(added.root, merged.heads)
 * store([event])
 *
 * const { state } = await Space.mergeHeads(fetcher, [event.cid])
 * for await (const listed of Space.listBackups(fetcher, state, account)) {
 *   console.log(listed.timestamp, listed.backup.toString())
 * }
 * ```
 *
 * @packageDocumentation
 */
export type * from './interface.ts'
export { decodeAccount, encodeAccount, readAccount } from './account.ts'
export {
  MAX_AUTHORIZATIONS,
  decodeAuthorization,
  decodeAuthorizations,
  encodeAuthorization,
  encodeAuthorizations,
  isInForce,
  readAuthorization,
  readAuthorizations,
} from './authorization.ts'
export { decodeBackup, encodeBackup, readBackup } from './backup.ts'
export {
  decodeBlockIndex,
  decodeBlockIndexSegment,
  encodeBlockIndex,
  encodeBlockIndexSegment,
  readBlockIndex,
} from './block-index-codec.ts'
export {
  BlockIndexReader,
  type DigestSlice,
  loadBlockIndex,
} from './block-index-reader.ts'
export {
  type NewShard,
  type NewSlice,
  appendToBlockIndex,
} from './block-index.ts'
export {
  JSON_CODE,
  MAX_BLOCK_SIZE,
  decodeJSONText,
  encodeJSONText,
  verifyBlock,
} from './codec.ts'
export { DigestTable } from './digest-table.ts'
export {
  AccountNotFoundError,
  AgentNotFoundError,
  BackupNotFoundError,
  DecodeError,
  InvalidRecipientError,
  MissingBlockError,
  NonDeterministicSignerError,
  PrunedError,
  RemovedError,
  ReplayedAuthorizationError,
  TooLargeError,
  UnknownVersionError,
  UnreadableStateError,
  UnsealError,
} from './errors.ts'
export {
  MAX_EVENT_SIZE,
  MAX_PARENTS,
  type MergedHeads,
  createEvent,
  decodeEvent,
  encodeEvent,
  mergeHeads,
  readEvent,
} from './event.ts'
export {
  type ListedBackup,
  accounts,
  findRecovery,
  findShare,
  latestBackup,
  listAuthorizations,
  listBackups,
} from './list.ts'
export { mergeStates } from './merge.ts'
export {
  MAX_DETAIL_LENGTH,
  decodeMissingBlob,
  encodeMissingBlob,
  readMissingBlob,
} from './missing-blob.ts'
export {
  type AgentAuthorization,
  addBackup,
  addShares,
  letGo,
  prune,
  removeBackup,
  setAuthorization,
  setRecovery,
} from './mutate.ts'
export {
  type EntriesOptions,
  buildPail,
  emptyPail,
  entries,
  getEntry,
  putAll,
} from './pail.ts'
export {
  type FileKey,
  MAX_HEADER_SIZE,
  createRecoveryIdentity,
  findFileKey,
  openFileKey,
  openPart,
  parseRecipient,
  recipientOf,
  sealFileKey,
  sealPart,
} from './private-part.ts'
export { PRIVATE_PARTS, isPlain, isSealed } from './private-parts.ts'
export {
  MAX_SEALED_SIZE,
  type SealingAgent,
  type SealingSubject,
  deriveIdentity,
  openAuthorization,
  sealAuthorization,
} from './sealing.ts'
export { decodeShare, encodeShare, readShare } from './share.ts'
export { MAX_ACCOUNTS, decodeState, encodeState, readState } from './state.ts'
export { TOMBSTONE, isTombstone } from './tombstone.ts'
export { shouldYield, yieldToOthers } from './yielding.ts'
