import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { startNetwork } from './index.ts'
import { findFreePort } from './loopback-server.ts'

describe('startNetwork', () => {
  it('tells programs where everything is', async () => {
    await using network = await startNetwork()
    const { plc, pds, storacha, environment } = network
    assert.deepEqual(environment, {
      BLUESKY_BACKUPS_UPLOAD_SERVICE_URL: storacha.url,
      BLUESKY_BACKUPS_UPLOAD_SERVICE_DID: storacha.did,
      BLUESKY_BACKUPS_RECEIPTS_URL: `${storacha.url}/receipt/`,
      BLUESKY_BACKUPS_GATEWAY_URLS: storacha.url,
      BLUESKY_BACKUPS_INDEXER_URL: storacha.url,
      BLUESKY_BACKUPS_PLC_URL: plc.url,
      BLUESKY_BACKUPS_HANDLE_RESOLVER_URL: pds.url,
      BLUESKY_BACKUPS_TRUSTED_AUTHORITIES: `${storacha.did}=${storacha.didKey}`,
      BLUESKY_BACKUPS_ALLOW_PRIVATE_NETWORK: 'true',
      BLUESKY_BACKUPS_HOST_RATE: '0',
      STORACHA_SERVICE_URL: storacha.url,
      STORACHA_SERVICE_DID: storacha.did,
      STORACHA_RECEIPTS_URL: `${storacha.url}/receipt/`,
      PDS_URL: pds.url,
    })
    for (const url of [plc.url, pds.url, storacha.url]) {
      const { status } = await fetch(url, { method: 'OPTIONS' })
      assert.equal(status, 204)
    }
  })

  it('runs beside other networks', async () => {
    await using one = await startNetwork()
    await using two = await startNetwork()
    const { did } = await one.pds.createAccount({ handle: 'alice.test' })
    const other = await two.pds.createAccount({ handle: 'alice.test' })
    assert.notEqual(did, other.did)
    assert.equal((await fetch(`${two.plc.url}/${did}`)).status, 404)
  })

  it('listens where it is told to', async () => {
    const port = await findFreePort()
    await using network = await startNetwork({ pds: { port } })
    assert.equal(network.pds.url, `http://localhost:${port}`)
  })

  it('closes what it has started when a part does not start', async () => {
    await using network = await startNetwork()
    const taken = Number(new URL(network.storacha.url).port)
    const port = await findFreePort()
    await assert.rejects(
      startNetwork({ pds: { port }, storacha: { port: taken } }),
      { code: 'EADDRINUSE' }
    )
    await assert.rejects(fetch(`http://localhost:${port}`))
  })

  it('lets the process end', async () => {
    const program = `
      import { seedAccount, startNetwork } from './test/network/index.ts'
      await using network = await startNetwork()
      const { agent } = await network.pds.createAccount({ handle: 'alice.test' })
      await seedAccount(agent, { posts: 1, blobs: [10] })
      await fetch(network.storacha.url + '/.well-known/did.json')
      console.log(network.pds.url)
    `
    const { stdout, stderr } = await promisify(execFile)(
      process.execPath,
      ['--input-type=module', '--eval', program],
      { timeout: 20_000 }
    )
    assert.equal(stderr, '')
    assert.match(stdout, /^http:\/\/localhost:\d+\n$/)
    await assert.rejects(fetch(stdout.trim()))
  })
})
