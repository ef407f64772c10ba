import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CarReader } from '@ipld/car'
import type { Client } from '@storacha/client'
import * as UploadCapabilities from '@storacha/capabilities/upload'
import { Client as IndexingClient } from '@storacha/indexing-service-client'
import { DID, Message } from '@ucanto/core'
import { CAR } from '@ucanto/transport'
import { base58btc } from 'multiformats/bases/base58'
import { equals } from 'multiformats/bytes'
import type * as Digest from 'multiformats/hashes/digest'
import { sha256 } from 'multiformats/hashes/sha2'
import * as Link from 'multiformats/link'
import { createBytes } from './seed.ts'
import { createStorachaClient } from './storacha-client.ts'
import { startStoracha } from './storacha.ts'
import type { Storacha } from './storacha.ts'

const MIB = 1024 ** 2

/** A client with a space of its own that has storage. */
async function createClientWithSpace(storacha: Storacha) {
  const client = await createStorachaClient(storacha)
  const space = await client.createSpace('test', {
    skipGatewayAuthorization: true,
  })
  await client.addSpace(await space.createAuthorization(client.agent))
  await client.setCurrentSpace(space.did())
  await storacha.provision(space.did())
  return { client, space: space.did() }
}

async function upload(client: Client, bytes: Uint8Array<ArrayBuffer>) {
  const shards: Link.Link[] = []
  const root = await client.uploadFile(new Blob([bytes]), {
    // The types want `undefined`, which hashes pieces nevertheless.
    pieceHasher: null as never,
    retries: 0,
    onShardStored: ({ cid }) => {
      shards.push(cid)
    },
  })
  return { root, shards }
}

function ipfsURL(
  storacha: Storacha,
  cid: { toString(): string },
  format: 'raw' | 'car'
): string {
  return `${storacha.url}/ipfs/${cid.toString()}?format=${format}`
}

/** Name of the error with which the upload service answered. */
async function refusal(uploading: Promise<unknown>): Promise<unknown> {
  const error = await uploading.then(
    () => assert.fail('the upload succeeded'),
    (error: Error) => error
  )
  return (error.cause as Error | undefined)?.name
}

describe('Storacha', () => {
  let storacha: Storacha

  before(async () => {
    storacha = await startStoracha()
  })

  after(() => storacha[Symbol.asyncDispose]())

  afterEach(() => {
    Object.assign(storacha.faults, {
      uploadsClosed: false,
      overQuota: false,
      failAfterBlobAdds: undefined,
      down: false,
      lyingGateway: false,
    })
  })

  describe('upload service', () => {
    it('logs in by email, creates a space and keeps a file', async () => {
      const client = await createStorachaClient(storacha)
      const account = await client.login('alice@example.com')
      assert.equal(account.did(), 'did:mailto:example.com:alice')
      const space = await client.createSpace('photos', {
        account,
        skipGatewayAuthorization: true,
      })
      await client.setCurrentSpace(space.did())
      const bytes = createBytes(100, 'login')
      const { root } = await upload(client, bytes)

      const response = await fetch(ipfsURL(storacha, root, 'raw'))
      assert.deepEqual(new Uint8Array(await response.arrayBuffer()), bytes)
      const listed = await client.capability.upload.list()
      assert.equal(listed.results[0]?.root.toString(), root.toString())
      assert.ok(storacha.mails.some(({ to }) => to === 'alice@example.com'))
    })

    it('waits for a click on the link in the mail', async () => {
      await using storacha = await startStoracha({ autoConfirm: false })
      const client = await createStorachaClient(storacha)
      const login = client.login('bob@example.com')
      while (storacha.mails.length === 0) await tick()
      const [mail] = storacha.mails
      assert.equal(mail?.to, 'bob@example.com')
      assert.ok(mail.url.startsWith(`${storacha.url}/validate-email?`))
      const response = await fetch(mail.url)
      assert.equal(response.status, 200)
      assert.equal((await login).did(), 'did:mailto:example.com:bob')
    })

    it('refuses a link that no mail had', async () => {
      await assert.rejects(storacha.confirm(`${storacha.url}/validate-email`))
    })

    it('refuses spaces without storage', async () => {
      const { client } = await createClientWithSpace(storacha)
      const space = await client.createSpace('poor', {
        skipGatewayAuthorization: true,
      })
      await client.addSpace(await space.createAuthorization(client.agent))
      await client.setCurrentSpace(space.did())
      assert.equal(
        await refusal(upload(client, createBytes(10, 'poor'))),
        'InsufficientStorage'
      )
    })

    it('provisions a space any number of times', async () => {
      const { space } = await createClientWithSpace(storacha)
      await storacha.provision(space)
      assert.deepEqual(await storacha.blobs(space), [])
    })

    it('lists the blobs of a space and counts what was uploaded', async () => {
      const { client, space } = await createClientWithSpace(storacha)
      storacha.stats.reset()
      const { shards } = await upload(client, createBytes(1000, 'count'))
      const blobs = await storacha.blobs(space)
      const digests = blobs.map(({ digest }) => digest)
      assert.ok(digests.includes(base58btc.encode(shards[0]!.multihash.bytes)))
      assert.deepEqual(digests, digests.toSorted())
      // The shard and its index.
      assert.equal(blobs.length, 2)
      assert.equal(storacha.stats.puts, 2)
      assert.equal(
        storacha.stats.bytesPut,
        blobs.reduce((total, { size }) => total + size, 0)
      )
      assert.ok(storacha.stats.requests > 2)
      storacha.stats.reset()
      assert.deepEqual(
        { ...storacha.stats, reset: undefined },
        { requests: 0, puts: 0, bytesPut: 0, reset: undefined }
      )
    })

    it('gives receipts', async () => {
      const { client, space } = await createClientWithSpace(storacha)
      const invocation = await UploadCapabilities.list
        .invoke({
          issuer: client.agent.issuer,
          audience: DID.parse(storacha.did),
          with: space,
          nb: {},
          proofs: client.proofs([{ can: 'upload/list', with: space }]),
        })
        .delegate()
      const url = new URL(invocation.cid.toString(), storacha.receiptsUrl)
      assert.equal((await fetch(url)).status, 404)
      const { headers, body } = CAR.request.encode(
        await Message.build({ invocations: [invocation] })
      )
      await fetch(storacha.url, {
        method: 'POST',
        headers,
        body: body as Uint8Array<ArrayBuffer>,
      })
      const response = await fetch(url)
      const { receipts } = await CAR.request.decode({
        headers: Object.fromEntries(response.headers),
        body: await response.bytes(),
      })
      const [receipt] = receipts.values()
      assert.equal(String(receipt?.ran.link()), String(invocation.cid))
      assert.deepEqual(receipt?.out.ok, { results: [], size: 0 })
    })

    it('tells which delegations are revoked', async () => {
      const { client } = await createClientWithSpace(storacha)
      const audience = await createStorachaClient(storacha)
      const delegation = await client.createDelegation(audience.agent, [
        'upload/list',
      ])
      const url = `${storacha.url}/revocations/${delegation.cid.toString()}`
      assert.equal((await fetch(url)).status, 404)
      await client.revokeDelegation(delegation.cid)
      const response = await fetch(url)
      assert.equal(response.status, 200)
      const car = await CarReader.fromBytes(
        new Uint8Array(await response.arrayBuffer())
      )
      assert.equal((await car.getRoots()).length, 1)
    })

    it('publishes its DID document', async () => {
      const response = await fetch(`${storacha.url}/.well-known/did.json`)
      const document = await response.json()
      assert.equal(document.id, storacha.did)
      assert.equal(
        `did:key:${document.verificationMethod[0].publicKeyMultibase}`,
        storacha.didKey
      )
    })

    it('keeps blobs in the folder it is given', async () => {
      const folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-test-'))
      try {
        const storacha = await startStoracha({ blobDirectory: folder })
        const { client, space } = await createClientWithSpace(storacha)
        await upload(client, createBytes(10, 'folder'))
        const blobs = await storacha.blobs(space)
        await storacha[Symbol.asyncDispose]()
        assert.deepEqual(
          (await readdir(folder)).sort(),
          blobs.map(({ digest }) => digest)
        )
      } finally {
        await rm(folder, { recursive: true })
      }
    })
  })

  describe('storage node', () => {
    const put = (
      digest: Digest.Digest<number, number>,
      body: Uint8Array<ArrayBuffer>
    ) =>
      fetch(`${storacha.url}/blob/${base58btc.encode(digest.bytes)}`, {
        method: 'PUT',
        body: body,
      })

    it('refuses blobs that were not allocated', async () => {
      const bytes = createBytes(10, 'not allocated')
      const response = await put(await sha256.digest(bytes), bytes)
      assert.equal(response.status, 403)
    })

    for (const [name, sent] of [
      ['wrong bytes', createBytes(10, 'wrong')],
      ['too few bytes', createBytes(9, 'right')],
      ['too many bytes', createBytes(11, 'right')],
    ] as const) {
      it(`refuses ${name}`, async () => {
        const { client } = await createClientWithSpace(storacha)
        const bytes = createBytes(10, 'right')
        const statuses: number[] = []
        // The client allocates the blob, and something else is uploaded.
        await assert.rejects(
          client.capability.blob.add(new Blob([bytes]), {
            retries: 0,
            fetch: (async (url: URL) => {
              const response = await fetch(url, {
                method: 'PUT',
                body: sent,
              })
              statuses.push(response.status)
              return response
            }) as typeof fetch,
          })
        )
        assert.deepEqual(statuses, [400])
        const { multihash } = Link.create(0x55, await sha256.digest(bytes))
        const url = `${storacha.url}/blob/${base58btc.encode(multihash.bytes)}`
        assert.equal((await fetch(url)).status, 404)
      })
    }

    it('does not take the word of a client that it uploaded', async () => {
      const { client, space } = await createClientWithSpace(storacha)
      await assert.rejects(
        client.capability.blob.add(new Blob([createBytes(10, 'never')]), {
          retries: 0,
          fetch: async () => new Response(),
        })
      )
      assert.deepEqual(await storacha.blobs(space), [])
    })

    it('is not sent what it has', async () => {
      const alice = await createClientWithSpace(storacha)
      const bob = await createClientWithSpace(storacha)
      storacha.stats.reset()
      for (const { client } of [alice, bob]) {
        await client.capability.blob.add(new Blob([createBytes(10, 'same')]))
      }
      assert.equal(storacha.stats.puts, 1)
      assert.deepEqual(
        await storacha.blobs(alice.space),
        await storacha.blobs(bob.space)
      )
    })

    it('gives whole blobs and parts of them', async () => {
      const { client } = await createClientWithSpace(storacha)
      const bytes = createBytes(6 * MIB, 'parts')
      const { digest } = await client.capability.blob.add(new Blob([bytes]))
      const url = `${storacha.url}/blob/${base58btc.encode(digest.bytes)}`
      const whole = await fetch(url)
      assert.equal(whole.headers.get('accept-ranges'), 'bytes')
      assert.ok(equals(new Uint8Array(await whole.arrayBuffer()), bytes))
      const part = await fetch(url, { headers: { range: 'bytes=5000000-' } })
      assert.equal(part.status, 206)
      assert.ok(
        equals(
          new Uint8Array(await part.arrayBuffer()),
          bytes.subarray(5_000_000)
        )
      )
      const head = await fetch(url, { method: 'HEAD' })
      assert.equal(head.headers.get('content-length'), String(bytes.length))
    })
  })

  describe('gateway', () => {
    const bytes = createBytes(5 * MIB + 3, 'gateway')
    let root: Link.UnknownLink
    let shard: Link.UnknownLink

    before(async () => {
      const { client } = await createClientWithSpace(storacha)
      const uploaded = await upload(client, bytes)
      root = uploaded.root
      shard = uploaded.shards[0]!
    })

    const get = (cid: unknown, query = '', headers = {}) =>
      fetch(`${storacha.url}/ipfs/${String(cid)}${query}`, { headers })

    it('gives a block', async () => {
      const response = await get(root, '?format=raw')
      assert.equal(response.status, 200)
      assert.equal(
        response.headers.get('content-type'),
        'application/vnd.ipld.raw'
      )
      const block = new Uint8Array(await response.arrayBuffer())
      assert.ok(
        equals((await sha256.digest(block)).bytes, root.multihash.bytes)
      )
    })

    it('gives a DAG', async () => {
      for (const [query, headers] of [
        ['?format=car', {}],
        ['', { accept: 'application/vnd.ipld.car' }],
      ] as const) {
        const response = await get(root, query, headers)
        const car = await CarReader.fromBytes(
          new Uint8Array(await response.arrayBuffer())
        )
        assert.equal(String((await car.getRoots())[0]), String(root))
        const leaves: Uint8Array[] = []
        for await (const { cid, bytes } of car.blocks()) {
          assert.ok(
            equals((await sha256.digest(bytes)).bytes, cid.multihash.bytes)
          )
          if (cid.code === 0x55) leaves.push(bytes)
        }
        assert.ok(equals(Buffer.concat(leaves), bytes))
      }
    })

    it('gives whole shards, whichever codec names them', async () => {
      for (const cid of [shard, Link.create(0x55, shard.multihash)]) {
        const response = await get(cid, '?format=raw')
        const body = new Uint8Array(await response.arrayBuffer())
        assert.ok(body.length > bytes.length)
        assert.ok(
          equals((await sha256.digest(body)).bytes, shard.multihash.bytes)
        )
      }
    })

    it('gives parts', async () => {
      const whole = await (await get(shard, '?format=raw')).bytes()
      const size = whole.length
      for (const [range, first, last] of [
        ['bytes=0-0', 0, 0],
        ['bytes=10-19', 10, 19],
        ['bytes=4500000-4999999', 4_500_000, 4_999_999],
        [`bytes=${size - 5}-`, size - 5, size - 1],
        ['bytes=-7', size - 7, size - 1],
        [`bytes=10-${size * 2}`, 10, size - 1],
        [`bytes=-${size * 2}`, 0, size - 1],
      ] as const) {
        const response = await get(shard, '?format=raw', { range })
        assert.equal(response.status, 206, range)
        assert.equal(
          response.headers.get('content-range'),
          `bytes ${first}-${last}/${size}`
        )
        const part = await response.bytes()
        assert.ok(equals(part, whole.subarray(first, last + 1)), range)
      }
    })

    it('gives parts of blocks inside shards', async () => {
      const whole = await (await get(root, '?format=raw')).bytes()
      const response = await get(root, '?format=raw', { range: 'bytes=3-8' })
      assert.deepEqual(await response.bytes(), whole.slice(3, 9))
    })

    it('gives everything when the part asked for makes no sense', async () => {
      for (const range of [
        'bytes=-',
        'bytes=8-3',
        'bytes=1-2,4-5',
        'lines=1',
      ]) {
        const response = await get(root, '?format=raw', { range })
        assert.equal(response.status, 200, range)
        await response.body?.cancel()
      }
    })

    it('refuses parts that are not there', async () => {
      for (const range of ['bytes=99999999-', 'bytes=-0']) {
        const response = await get(root, '?format=raw', { range })
        assert.equal(response.status, 416, range)
      }
    })

    it('answers what it does not know', async () => {
      const unknown = Link.create(0x55, await sha256.digest(createBytes(1, '')))
      assert.equal((await get(unknown, '?format=raw')).status, 404)
      assert.equal((await get(unknown, '?format=car')).status, 404)
      assert.equal((await get('nonsense', '?format=raw')).status, 400)
      assert.equal((await get(root)).status, 400)
      assert.equal((await fetch(`${storacha.url}/nowhere`)).status, 404)
      assert.equal(
        (await fetch(`${storacha.url}/receipt/nonsense`)).status,
        400
      )
    })

    it('breaks off when a blob is lost', async () => {
      const blobDirectory = await mkdtemp(join(tmpdir(), 'bluesky-backups-'))
      try {
        await using storacha = await startStoracha({ blobDirectory })
        const { client } = await createClientWithSpace(storacha)
        const { root } = await upload(client, createBytes(10, 'lost'))
        for (const name of await readdir(blobDirectory)) {
          await rm(join(blobDirectory, name))
        }
        for (const format of ['raw', 'car'] as const) {
          const url = ipfsURL(storacha, root, format)
          await assert.rejects(async () => (await fetch(url)).bytes())
        }
      } finally {
        await rm(blobDirectory, { recursive: true })
      }
    })

    it('answers requests without a body', async () => {
      for (const format of ['raw', 'car'] as const) {
        const response = await fetch(ipfsURL(storacha, root, format), {
          method: 'HEAD',
        })
        assert.equal(response.status, 200)
      }
    })

    it('lets pages of any origin in', async () => {
      const preflight = await fetch(storacha.url, { method: 'OPTIONS' })
      assert.equal(preflight.status, 204)
      for (const response of [preflight, await get(root, '?format=raw')]) {
        assert.equal(response.headers.get('access-control-allow-origin'), '*')
        await response.body?.cancel()
      }
    })
  })

  describe('indexer', () => {
    it('tells where blocks lie', async () => {
      const { client } = await createClientWithSpace(storacha)
      const { root, shards } = await upload(
        client,
        createBytes(3 * MIB, 'indexer')
      )
      const indexer = new IndexingClient({ serviceURL: new URL(storacha.url) })
      const { ok } = await indexer.queryClaims({ hashes: [root.multihash] })
      assert.ok(ok)
      const [index] = ok.indexes.values()
      assert.equal(String(index?.content), String(root))
      const claims = [...ok.claims.values()]
      const location = claims.find(({ type }) => type === 'assert/location')
      assert.ok(location?.type === 'assert/location')
      const [shard] = shards
      const response = await fetch(location.location[0]!)
      assert.ok(
        equals(
          (await sha256.digest(await response.bytes())).bytes,
          shard!.multihash.bytes
        )
      )
      assert.ok(claims.some(({ type }) => type === 'assert/index'))
    })

    it('knows nothing of other blocks', async () => {
      const indexer = new IndexingClient({ serviceURL: new URL(storacha.url) })
      const digest = await sha256.digest(createBytes(1, 'nobody'))
      const { ok } = await indexer.queryClaims({ hashes: [digest] })
      assert.equal(ok?.claims.size, 0)
      const response = await fetch(`${storacha.url}/claims?multihash=nonsense`)
      assert.equal(response.status, 400)
    })
  })

  describe('faults', () => {
    it('closes uploads', async () => {
      const { client, space } = await createClientWithSpace(storacha)
      const { root, shards } = await upload(client, createBytes(10, 'open'))
      const before = await storacha.blobs(space)
      storacha.faults.uploadsClosed = true
      assert.equal(
        await refusal(upload(client, createBytes(10, 'closed'))),
        'ServiceUnavailable'
      )
      assert.equal(
        await refusal(
          client.capability.index.add(shards[0] as never, { retries: 0 })
        ),
        'ServiceUnavailable'
      )
      assert.equal(
        await refusal(
          client.capability.upload.add(root, shards as never[], {
            retries: 0,
            nonce: 'not the one before',
          })
        ),
        'ServiceUnavailable'
      )
      assert.deepEqual(await storacha.blobs(space), before)
    })

    it('has no storage left', async () => {
      const { client, space } = await createClientWithSpace(storacha)
      storacha.faults.overQuota = true
      assert.equal(
        await refusal(upload(client, createBytes(10, 'full'))),
        'InsufficientStorage'
      )
      assert.deepEqual(await storacha.blobs(space), [])
    })

    it('fails after a number of blobs', async () => {
      const { client, space } = await createClientWithSpace(storacha)
      storacha.faults.failAfterBlobAdds = 1
      const add = (salt: string) =>
        client.capability.blob.add(new Blob([createBytes(10, salt)]), {
          retries: 0,
        })
      await add('first')
      assert.equal(await refusal(add('second')), 'ServiceUnavailable')
      assert.equal((await storacha.blobs(space)).length, 1)
      assert.equal(storacha.faults.failAfterBlobAdds, 0)
    })

    it('is down', async () => {
      const { client } = await createClientWithSpace(storacha)
      storacha.faults.down = true
      for (const request of [
        new Request(storacha.url, { method: 'POST', body: '' }),
        new Request(`${storacha.url}/.well-known/did.json`),
      ]) {
        assert.equal((await fetch(request)).status, 503)
      }
      storacha.faults.down = false
      await upload(client, createBytes(10, 'up'))
    })

    it('sends wrong bytes from the gateway', async () => {
      const { client } = await createClientWithSpace(storacha)
      const bytes = createBytes(2 * MIB, 'lies')
      const { root, shards } = await upload(client, bytes)
      const raw = ipfsURL(storacha, shards[0]!, 'raw')
      const car = ipfsURL(storacha, root, 'car')
      const honest = await (await fetch(raw)).bytes()
      const honestCAR = await (await fetch(car)).bytes()
      storacha.faults.lyingGateway = true
      const lie = await (await fetch(raw)).bytes()
      assert.equal(lie.length, honest.length)
      assert.ok(!equals(lie, honest))
      const lyingCAR = await (await fetch(car)).bytes()
      assert.equal(lyingCAR.length, honestCAR.length)
      assert.ok(!equals(lyingCAR, honestCAR))
    })
  })
})

function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 5))
}
