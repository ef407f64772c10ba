import assert from 'node:assert/strict'
import { UnixFS } from '@storacha/upload-client'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { fetchBlob, writeUnixFS } from '../../src/backup/blob.ts'
import {
  decodeJournalEntry,
  encodeJournalEntry,
} from '../../src/backup/journal.ts'
import {
  BlobTakenDownError,
  createMemorySpool,
  createSha256,
  type Spool,
} from '../../src/backup/index.ts'
import { createBytes } from '../network/index.ts'
import { chunksOf } from './harness.ts'

const MEBIBYTE = 1024 * 1024

describe('blob', () => {
  let open: Spool[] = []

  const options = {
    createSpool: () => {
      const spool = createMemorySpool()
      const close = spool.close.bind(spool)
      open.push(spool)
      spool.close = async () => {
        open = open.filter((other) => other !== spool)
        await close()
      }
      return spool
    },
    createSha256,
    maxSize: 10 * MEBIBYTE,
  }

  async function cidOf(bytes: Uint8Array): Promise<string> {
    return CID.createV1(raw.code, await sha256.digest(bytes)).toString()
  }

  for (const size of [
    0,
    1,
    MEBIBYTE - 1,
    MEBIBYTE,
    MEBIBYTE + 1,
    5 * MEBIBYTE + 7,
  ]) {
    it(`of ${size} bytes becomes the file that others make of it`, async () => {
      const bytes = createBytes(size, 'blob')
      const cid = await cidOf(bytes)
      const blob = await fetchBlob(
        cid,
        async () => chunksOf(bytes, 70_001),
        options
      )
      const blocks: string[] = []
      const root = await writeUnixFS(blob, async (block) => {
        blocks.push(block.cid.toString())
      })
      const theirs = await UnixFS.encodeFile(new Blob([bytes]))
      assert.equal(root.toString(), theirs.cid.toString())
      assert.deepEqual(
        blocks,
        theirs.blocks.map((block) => block.cid.toString())
      )
      if (size <= MEBIBYTE) assert.equal(root.toString(), cid)
      await blob.close()
      assert.equal(open.length, 0)
    })
  }

  it('is refused as soon as it is too large', async () => {
    let taken = 0
    async function* endless() {
      for (;;) {
        taken += MEBIBYTE
        yield new Uint8Array(MEBIBYTE)
      }
    }
    await assert.rejects(
      fetchBlob(await cidOf(new Uint8Array(1)), async () => endless(), options),
      { name: 'MissingBlobError', reason: 'too-large' }
    )
    assert.ok(taken <= 12 * MEBIBYTE)
    assert.equal(open.length, 0)
  })

  it('says why there is none', async () => {
    const cid = await cidOf(new Uint8Array(1))
    const failing = (error: unknown) => async () => {
      throw error
    }
    const rows: [unknown, string][] = [
      [new BlobTakenDownError('withheld'), 'taken-down'],
      [new Error('x'.repeat(1000)), 'failed'],
      ['not an error', 'failed'],
    ]
    for (const [thrown, reason] of rows) {
      await assert.rejects(
        fetchBlob(cid, failing(thrown), options),
        (error) => {
          const { reason: why, message } = error as Error & { reason: string }
          assert.equal(why, reason)
          assert.ok(message.length <= 256)
          return true
        }
      )
    }
  })

  it('stops when the run is stopped', async () => {
    const stop = new AbortController()
    await assert.rejects(
      fetchBlob(
        await cidOf(new Uint8Array(1)),
        async () => {
          stop.abort(new Error('enough'))
          throw new Error('cut off')
        },
        { ...options, signal: stop.signal }
      ),
      /enough/
    )
  })

  it('fails to be written with the reason of the writer', async () => {
    const bytes = createBytes(3 * MEBIBYTE, 'blob')
    const blob = await fetchBlob(
      await cidOf(bytes),
      async () => chunksOf(bytes),
      options
    )
    await assert.rejects(
      writeUnixFS(blob, async () => {
        throw new Error('the disk is full')
      }),
      /the disk is full/
    )
    await blob.close()
  })
})

describe('entries of a journal', () => {
  it('are what was encoded', () => {
    const digest = new Uint8Array(32).fill(7)
    for (const entry of [
      { blobs: [['a', 'b'] as [string, string]] },
      {
        shard: {
          digest: new Uint8Array(34),
          size: 10,
          slices: [{ digest, offset: 1, length: 2 }],
        },
        blobs: [],
      },
      {
        shard: {
          digest: new Uint8Array(34),
          size: 10,
          location: 'https://a.test/b',
          slices: [],
        },
        blobs: [],
      },
    ]) {
      assert.deepEqual(decodeJournalEntry(encodeJournalEntry(entry)), entry)
    }
  })
})
