import assert from 'node:assert/strict'
import type { JournalEntry } from '../../src/backup/interface.ts'
import { createJournal } from '../../src/service/journal.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'

const SPACE = 'did:key:z6MkSpace'
const ACCOUNT = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'

describe('journal of a run', () => {
  let stores: Stores

  beforeEach(async () => {
    stores = await openStores({ path: ':memory:' })
  })

  afterEach(() => stores[Symbol.asyncDispose]())

  const shard = (fill: number): JournalEntry => ({
    shard: {
      digest: new Uint8Array(34).fill(fill),
      size: 1000,
      location: 'https://storage.example/shard',
      slices: [
        { digest: new Uint8Array(32).fill(fill), offset: 10, length: 20 },
      ],
    },
    blobs: [[`blob ${fill}`, `root ${fill}`]],
  })

  it('gives back what was noted, in order', async () => {
    const journal = createJournal(stores.journal, SPACE, ACCOUNT)
    const entries = [
      shard(1),
      { blobs: [['blob', 'root']] } satisfies JournalEntry,
      shard(2),
      { blobs: [['other', 'root']] } satisfies JournalEntry,
    ]
    for (const entry of entries) await journal.append(entry)
    assert.deepEqual(await journal.load(), entries)
  })

  it('notes each thing once', async () => {
    const journal = createJournal(stores.journal, SPACE, ACCOUNT)
    const blobs: JournalEntry = { blobs: [['blob', 'root']] }
    for (const entry of [shard(1), blobs, shard(1), blobs]) {
      await journal.append(entry)
    }
    assert.deepEqual(await journal.load(), [shard(1), blobs])
  })

  it('is of one account in one Space', async () => {
    const journal = createJournal(stores.journal, SPACE, ACCOUNT)
    const others = [
      createJournal(stores.journal, `${SPACE}2`, ACCOUNT),
      createJournal(stores.journal, SPACE, `${ACCOUNT}2`),
    ]
    await journal.append(shard(1))
    for (const other of others) {
      assert.deepEqual(await other.load(), [])
      await other.clear()
    }
    assert.equal((await journal.load()).length, 1)
    await journal.clear()
    assert.deepEqual(await journal.load(), [])
  })

  it('has short keys however many blobs there are', async () => {
    const keys: string[] = []
    const journal = createJournal(
      {
        ...stores.journal,
        append: async (_space, _account, key) => void keys.push(key),
      },
      SPACE,
      ACCOUNT
    )
    await journal.append({
      blobs: Array.from({ length: 1000 }, (_, i) => [`blob ${i}`, `root ${i}`]),
    })
    await journal.append(shard(1))
    assert.ok(keys.length === 2 && keys.every((key) => key.length <= 68))
  })
})
