import { decodeJournalEntry, encodeJournalEntry } from '../backup/journal.ts'
import type { Journal, JournalEntry } from '../backup/interface.ts'
import { createNativeSha256 } from '../node/index.ts'
import type { JournalStore } from '../stores/index.ts'

/** The journal of runs of one account into one Space. */
export function createJournal(
  store: JournalStore,
  space: string,
  account: string
): Journal {
  return {
    load: async () =>
      (await store.load(space, account)).map(decodeJournalEntry),
    append: (entry) =>
      store.append(space, account, keyOf(entry), encodeJournalEntry(entry)),
    clear: () => store.clear(space, account),
  }
}

/** The same shard is noted once. Short: databases index it. */
function keyOf({ shard, blobs }: JournalEntry): string {
  if (shard) return toHex(shard.digest)
  const hash = createNativeSha256()
  hash.update(encodeJournalEntry({ blobs }))
  return toHex(hash.digest())
}

function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
