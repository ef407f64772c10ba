import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { AtpAgent, XRPCError } from '@atproto/api'
import { startPds, startPlc } from './pds.ts'
import type { Pds, Plc, Read } from './pds.ts'
import { seedAccount } from './seed.ts'

describe('PLC directory and PDS', () => {
  let plc: Plc
  let pds: Pds

  before(async () => {
    plc = await startPlc()
    pds = await startPds({ plcUrl: plc.url })
  })

  after(async () => {
    await pds[Symbol.asyncDispose]()
    await plc[Symbol.asyncDispose]()
  })

  it('creates an account and logs in', async () => {
    const { did, agent, password } = await pds.createAccount({
      handle: 'alice.test',
    })
    assert.equal(agent.session?.did, did)

    const other = new AtpAgent({ service: pds.url })
    await other.login({ identifier: 'alice.test', password })
    assert.equal(other.session?.did, did)
  })

  it('publishes the identity in the directory', async () => {
    const { did } = await pds.createAccount({ handle: 'bob.test' })
    const response = await fetch(`${plc.url}/${did}`)
    const document = await response.json()
    assert.deepEqual(document.alsoKnownAs, ['at://bob.test'])
    assert.equal(document.service[0].serviceEndpoint, pds.url)
  })

  it('resolves handles of its accounts', async () => {
    const { did } = await pds.createAccount({ handle: 'carol.test' })
    const agent = new AtpAgent({ service: pds.url })
    const { data } = await agent.resolveHandle({ handle: 'carol.test' })
    assert.equal(data.did, did)
    await assert.rejects(agent.resolveHandle({ handle: 'nobody.test' }), {
      error: 'HandleNotFound',
    })
  })

  it('shares the directory with other PDSes', async () => {
    await using other = await startPds({ plcUrl: plc.url })
    const { did } = await other.createAccount({ handle: 'dave.test' })
    const response = await fetch(`${plc.url}/${did}/log/audit`)
    const log = await response.json()
    assert.equal(log[0].operation.services.atproto_pds.endpoint, other.url)
  })

  it('takes the settings it is given', async () => {
    await using other = await startPds({
      plcUrl: plc.url,
      settings: { blobUploadLimit: 10 },
    })
    const { agent } = await other.createAccount({ handle: 'erin.test' })
    await assert.rejects(agent.uploadBlob(new Uint8Array(11)), XRPCError)
  })

  it('tells when data of an account is asked for, and when that is over', async () => {
    const reads: Read[] = []
    const held = Promise.withResolvers<void>()
    await using watched = await startPds({
      plcUrl: plc.url,
      onRead(read) {
        reads.push(read)
        return read.method === 'getRepo' ? { ready: held.promise } : undefined
      },
    })
    const { did } = await watched.createAccount({ handle: 'grace.test' })
    const anybody = new AtpAgent({ service: watched.url })
    await anybody.com.atproto.sync.getLatestCommit({ did })
    const leaving = new AbortController()
    const left = anybody.com.atproto.sync.getRepo(
      { did },
      { signal: leaving.signal }
    )
    const stayed = anybody.com.atproto.sync.getRepo({ did })
    while (reads.length < 3) await sleep(5)
    assert.deepEqual(
      reads.map(({ did, method, over }) => [did, method, over.aborted]),
      [
        [did, 'getLatestCommit', true],
        [did, 'getRepo', false],
        [did, 'getRepo', false],
      ]
    )
    leaving.abort()
    await assert.rejects(left)
    const isOver = ({ method, over }: Read) =>
      method === 'getRepo' && over.aborted
    while (!reads.some(isOver)) await sleep(5)
    held.resolve()
    assert.ok((await stayed).success)
    while (!reads.every(({ over }) => over.aborted)) await sleep(5)
  })

  it('takes accounts down and puts them back', async () => {
    const { did, agent } = await pds.createAccount({ handle: 'mallory.test' })
    const anybody = new AtpAgent({ service: pds.url })
    await agent.post({ text: 'Hello' })
    await pds.takedownAccount(did)
    await assert.rejects(anybody.com.atproto.sync.getRepo({ did }), {
      error: 'RepoTakendown',
    })
    await pds.takedownAccount(did, false)
    assert.ok((await anybody.com.atproto.sync.getRepo({ did })).success)
  })

  it('takes blobs down and puts them back', async () => {
    const { did, agent } = await pds.createAccount({ handle: 'oscar.test' })
    const { blobs } = await seedAccount(agent, { blobs: [10] })
    const { cid } = blobs[0]!
    const anybody = new AtpAgent({ service: pds.url })
    await pds.takedownBlob(did, cid)
    await assert.rejects(anybody.com.atproto.sync.getBlob({ did, cid }), {
      message: 'Blob not found',
    })
    await pds.takedownBlob(did, cid, false)
    const { data } = await anybody.com.atproto.sync.getBlob({ did, cid })
    assert.equal(data.length, 10)
  })
})
