import * as dagCBOR from '@ipld/dag-cbor'
import type { JournalEntry } from './interface.ts'

type EncodedEntry = [
  shard:
    | [
        digest: Uint8Array,
        size: number,
        location: string | null,
        slices: [Uint8Array, number, number][],
      ]
    | null,
  blobs: [string, string][],
]

/** Bytes of an entry, for a journal that keeps bytes. */
export function encodeJournalEntry({ shard, blobs }: JournalEntry): Uint8Array {
  const entry: EncodedEntry = [
    shard
      ? [
          shard.digest,
          shard.size,
          shard.location ?? null,
          shard.slices.map(({ digest, offset, length }) => [
            digest,
            offset,
            length,
          ]),
        ]
      : null,
    blobs,
  ]
  return dagCBOR.encode(entry)
}

/** What `encodeJournalEntry` encoded. A journal is read by who wrote it. */
export function decodeJournalEntry(bytes: Uint8Array): JournalEntry {
  const [shard, blobs] = dagCBOR.decode<EncodedEntry>(bytes)
  if (!shard) return { blobs }
  const [digest, size, location, slices] = shard
  return {
    shard: {
      digest,
      size,
      ...(location === null ? {} : { location }),
      slices: slices.map(([digest, offset, length]) => ({
        digest,
        offset,
        length,
      })),
    },
    blobs,
  }
}
