import { startNetwork, seedAccount } from './test/network/index.ts'
import { createStorachaClient } from './test/network/storacha-client.ts'
import { readConfig, startService } from './src/service/index.ts'
import { discover, connect, Backup, Clock } from './src/client/index.ts'
import { BACKUP_ABILITIES } from './src/capabilities/index.ts'
import { DID } from '@ucanto/core'
import { mkdtemp } from 'node:fs/promises'
import { openBackup, verifyBackup } from './src/backup/index.ts'
import { createSpaceReader } from './src/storacha/index.ts'
import { createNativeSha256 } from './src/node/index.ts'
import { readIdentity } from './src/atproto/index.ts'
import { listBackups, mergeHeads } from './src/space/index.ts'
const t0 = performance.now(); const log = (...a) => console.log(Math.round(performance.now() - t0), ...a)
await using network = await startNetwork()
log('network')
const dir = await mkdtemp('/tmp/bb-')
await using service = await startService(readConfig({ port: '0', dataFolder: dir, logLevel: 'info' }, network.environment))
log('service', service.url.href, service.did)
const alice = await network.pds.createAccount({ handle: 'alice.test' })
const sizes = [5_500_000, 1_500_000, ...Array.from({ length: 58 }, (_, i) => 20_000 + i * 3000)]
await seedAccount(alice.agent, { posts: 1000, likes: 600, follows: 340, blobs: sizes })
log('seeded')
const client = await createStorachaClient(network.storacha)
const account = await client.login('alice@example.com')
const space = await client.createSpace('backups', { account, skipGatewayAuthorization: true })
await client.setCurrentSpace(space.did())
log('space', space.did())
const info = await discover(service.url)
const connection = connect({ url: service.url, did: info.did })
const delegation = await space.createAuthorization ? await (await import('@ucanto/core')).Delegation.delegate({ issuer: space.signer, audience: DID.parse(info.agent), capabilities: BACKUP_ABILITIES.map(can => ({ can, with: space.did() })), expiration: Math.floor(Date.now() / 1000) + 3600 }) : null
const own = await (await import('@ucanto/core')).Delegation.delegate({ issuer: space.signer, audience: client.agent.issuer, capabilities: [{ can: 'clock/*', with: space.did() }, { can: 'backup/*', with: space.did() }], expiration: Infinity })
const conf = { issuer: client.agent.issuer, with: space.did(), proofs: [own] }
async function once() {
  const t = performance.now()
  const started = await Backup.run(conf, { account: alice.did, delegation }, { connection })
  if (started.error) throw started.error
  for (;;) {
    const { ok, error } = await Backup.status(conf, { run: started.ok.run }, { connection })
    if (error) throw error
    const run = ok.runs[0]
    if (run.state === 'done' || run.state === 'failed') { log(run.state, JSON.stringify(run.outcome ?? run.error), Math.round(performance.now() - t)); break }
    await new Promise(r => setTimeout(r, 50))
  }
}
await once()
await alice.agent.post({ text: 'hi' })
await once()
await once()
const reader = createSpaceReader({ gateways: [new URL(network.storacha.url)], fetch, createSha256: createNativeSha256 })
const head = await Clock.head(conf, { connection })
const { state } = await mergeHeads(reader, head.ok.head)
for await (const { timestamp, backup } of listBackups(reader, state, alice.did)) {
  const opened = await openBackup(reader, backup, { createSha256: createNativeSha256 })
  const result = await verifyBackup(opened, { keys: (did, doc, plc) => readIdentity(did, doc, plc, { allowPrivateNetwork: true }) })
  log(timestamp, JSON.stringify(result))
}
