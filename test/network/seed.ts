import { createCipheriv, createHash } from 'node:crypto'
import type { AtpAgent, BlobRef } from '@atproto/api'
import { base32 } from 'multiformats/bases/base32'
import * as raw from 'multiformats/codecs/raw'
import * as Digest from 'multiformats/hashes/digest'
import { sha256 } from 'multiformats/hashes/sha2'
import { CID } from 'multiformats/cid'

/** Most records a PDS takes in one request. */
const WRITES_PER_REQUEST = 200

/** Blobs uploaded at the same time; each is held in memory. */
const CONCURRENT_UPLOADS = 4

/** The first record is from then, each other a minute younger. */
const FIRST_CREATED = Date.UTC(2025, 0, 1)

export interface Seed {
  posts?: number
  likes?: number
  follows?: number
  /** Size of each blob, in bytes. Each comes with a record that refers to it. */
  blobs?: number[]
  /** The same salt gives the same bytes in the blobs. */
  salt?: string
}

export interface SeededBlob {
  cid: string
  mimeType: string
  /** In bytes. */
  size: number
}

export interface Seeded {
  /** Number of records written. */
  records: number
  /** In the order of the sizes asked for. */
  blobs: SeededBlob[]
}

interface Write {
  collection: string
  value: Record<string, unknown>
}

/**
 * Fills an account with records and blobs. Blobs are, in turn, images of
 * posts, videos of posts, and files of a record whose schema no PDS knows.
 *
 * @param agent logged in to the account
 */
export async function seedAccount(
  agent: AtpAgent,
  { posts = 0, likes = 0, follows = 0, blobs = [], salt = '' }: Seed
): Promise<Seeded> {
  const uploads = await uploadBlobs(agent, blobs, salt)
  const writes = [
    ...times(posts, createPost),
    ...times(likes, createLike),
    ...times(follows, createFollow),
    ...uploads.map((blob, index) => createReference(index, blob)),
  ]
  for (let start = 0; start < writes.length; start += WRITES_PER_REQUEST) {
    await agent.com.atproto.repo.applyWrites({
      repo: agent.assertDid,
      // The bytes are no images, and may be larger than images may be.
      validate: false,
      writes: writes.slice(start, start + WRITES_PER_REQUEST).map((write) => ({
        $type: 'com.atproto.repo.applyWrites#create' as const,
        ...write,
      })),
    })
  }
  return {
    records: writes.length,
    blobs: uploads.map(({ ref, mimeType, size }) => ({
      cid: ref.toString(),
      mimeType,
      size,
    })),
  }
}

/**
 * Bytes that look random and are the same each time.
 *
 * @param size in bytes
 */
export function createBytes(
  size: number,
  salt: string
): Uint8Array<ArrayBuffer> {
  const key = createHash('sha256').update(salt).digest()
  const cipher = createCipheriv('aes-256-ctr', key, Buffer.alloc(16))
  return new Uint8Array(cipher.update(Buffer.alloc(size)))
}

async function uploadBlobs(
  agent: AtpAgent,
  sizes: number[],
  salt: string
): Promise<BlobRef[]> {
  const uploaded: BlobRef[] = []
  const queue = sizes.entries()
  const work = async () => {
    for (const [index, size] of queue) {
      const bytes = createBytes(size, `${salt}:${index}`)
      const { data } = await agent.uploadBlob(bytes, {
        encoding: kindOf(index).mimeType,
      })
      uploaded[index] = data.blob
    }
  }
  await Promise.all(times(CONCURRENT_UPLOADS, work))
  return uploaded
}

function createPost(index: number): Write {
  return {
    collection: 'app.bsky.feed.post',
    value: {
      $type: 'app.bsky.feed.post',
      text: `Post ${index}`,
      createdAt: createdAt(index),
    },
  }
}

function createLike(index: number): Write {
  return {
    collection: 'app.bsky.feed.like',
    value: {
      $type: 'app.bsky.feed.like',
      subject: {
        uri: `at://${createDid(index)}/app.bsky.feed.post/3l7mzncb4tk2x`,
        cid: CID.createV1(raw.code, createDigest(`post ${index}`)).toString(),
      },
      createdAt: createdAt(index),
    },
  }
}

function createFollow(index: number): Write {
  return {
    collection: 'app.bsky.graph.follow',
    value: {
      $type: 'app.bsky.graph.follow',
      subject: createDid(index),
      createdAt: createdAt(index),
    },
  }
}

function createReference(index: number, blob: BlobRef): Write {
  return kindOf(index).refer(index, blob)
}

interface BlobKind {
  mimeType: string
  refer(index: number, blob: BlobRef): Write
}

const IMAGE: BlobKind = {
  mimeType: 'image/jpeg',
  refer: (index, blob) =>
    embed(index, {
      $type: 'app.bsky.embed.images',
      images: [{ alt: `Image ${index}`, image: blob }],
    }),
}

const VIDEO: BlobKind = {
  mimeType: 'video/mp4',
  refer: (index, blob) =>
    embed(index, { $type: 'app.bsky.embed.video', video: blob }),
}

const FILE: BlobKind = {
  mimeType: 'application/octet-stream',
  refer: (index, blob) => ({
    collection: 'com.example.file',
    value: { $type: 'com.example.file', blob, createdAt: createdAt(index) },
  }),
}

function kindOf(index: number): BlobKind {
  return index % 3 === 0 ? IMAGE : index % 3 === 1 ? VIDEO : FILE
}

function embed(index: number, embedded: Record<string, unknown>): Write {
  const post = createPost(index)
  return { ...post, value: { ...post.value, embed: embedded } }
}

function createdAt(index: number): string {
  return new Date(FIRST_CREATED + index * 60_000).toISOString()
}

/** A valid DID of an account that does not exist. */
function createDid(index: number): string {
  const { digest } = createDigest(`account ${index}`)
  return `did:plc:${base32.baseEncode(digest).slice(0, 24)}`
}

function createDigest(text: string) {
  return Digest.create(sha256.code, createHash('sha256').update(text).digest())
}

function times<T>(count: number, create: (index: number) => T): T[] {
  return Array.from({ length: count }, (_, index) => create(index))
}
