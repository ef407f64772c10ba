import type { Journal } from '../backup/interface.ts'
import { decodeJournalEntry, encodeJournalEntry } from '../backup/journal.ts'
import type { JournalStore } from '../stores/index.ts'

/** The journal of one account's backups into a Space, in the agent's store. */
export function createJournal(
  store: JournalStore,
  space: string,
  account: string
): Journal {
  return {
    load: async () =>
      (await store.load(space, account)).map(decodeJournalEntry),
    append(entry) {
      const key = entry.shard
        ? entry.shard.digest.join()
        : entry.blobs.map(([cid]) => cid).join()
      return store.append(space, account, key, encodeJournalEntry(entry))
    },
    clear: () => store.clear(space, account),
  }
}
