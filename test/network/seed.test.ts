import assert from 'node:assert/strict'
import { CarReader } from '@ipld/car'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { startPds, startPlc } from './pds.ts'
import type { Account, Pds, Plc } from './pds.ts'
import { createBytes, seedAccount } from './seed.ts'

describe('seedAccount', () => {
  let plc: Plc
  let pds: Pds
  let alice: Account

  before(async () => {
    plc = await startPlc()
    pds = await startPds({ plcUrl: plc.url })
    alice = await pds.createAccount({ handle: 'alice.test' })
  })

  after(async () => {
    await pds[Symbol.asyncDispose]()
    await plc[Symbol.asyncDispose]()
  })

  it('writes records into the repository', async () => {
    const { records } = await seedAccount(alice.agent, {
      posts: 230,
      likes: 120,
      follows: 60,
    })
    assert.equal(records, 410)
    const { data } = await alice.agent.com.atproto.sync.getRepo({
      did: alice.did,
    })
    const car = await CarReader.fromBytes(data)
    let blocks = 0
    for await (const _ of car.blocks()) blocks++
    assert.ok(blocks > 410, `${blocks} blocks`)
    for (const [collection, count] of [
      ['app.bsky.feed.post', 100],
      ['app.bsky.feed.like', 100],
      ['app.bsky.graph.follow', 60],
    ] as const) {
      const { data } = await alice.agent.com.atproto.repo.listRecords({
        repo: alice.did,
        collection,
        limit: 100,
      })
      assert.equal(data.records.length, count, collection)
    }
  })

  it('uploads blobs that the account keeps, small and large', async () => {
    const sizes = [1, 70_000, 2_500_000, 6_000_000]
    const { blobs } = await seedAccount(alice.agent, {
      blobs: sizes,
      salt: 'a',
    })
    assert.deepEqual(
      blobs.map(({ size }) => size),
      sizes
    )
    assert.deepEqual(
      [...new Set(blobs.map(({ mimeType }) => mimeType))],
      ['image/jpeg', 'video/mp4', 'application/octet-stream']
    )
    const { sync } = alice.agent.com.atproto
    const { data } = await sync.listBlobs({ did: alice.did })
    assert.deepEqual(data.cids.sort(), blobs.map(({ cid }) => cid).sort())
    for (const { cid, size } of blobs) {
      const { data } = await sync.getBlob({ did: alice.did, cid })
      assert.equal(data.length, size)
      assert.equal(
        CID.createV1(raw.code, await sha256.digest(data)).toString(),
        cid
      )
    }
  })

  it('makes the same blobs of the same salt', () => {
    assert.deepEqual(createBytes(100, 'a'), createBytes(100, 'a'))
    assert.notDeepEqual(createBytes(100, 'a'), createBytes(100, 'b'))
  })
})
