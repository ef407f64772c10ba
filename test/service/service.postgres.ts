import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Delegation, DID } from '@ucanto/core'
import type { Principal } from '@ucanto/interface'
import pg from 'pg'
import { BACKUP_ABILITIES, SPACE_INFO } from '../../src/capabilities/index.ts'
import { Backup, Clock, connect } from '../../src/client/index.ts'
import {
  readConfig,
  startService,
  type RunningService,
} from '../../src/service/index.ts'
import { seedAccount, startNetwork } from '../network/index.ts'
import { createStorachaClient } from '../network/storacha-client.ts'

describe('two services on one PostgreSQL', () => {
  it('share their runs and their clocks', async () => {
    const serverUrl = process.env.TEST_DATABASE_URL
    assert.ok(serverUrl, 'run: npm run test:postgres')
    await using resources = new AsyncDisposableStack()
    const schema = `test_${randomUUID().replaceAll('-', '')}`
    const url = new URL(serverUrl)
    url.searchParams.set('options', `-c search_path=${schema}`)
    const databaseUrl = url.href.replaceAll('+', '%20')
    const database = new pg.Client(databaseUrl)
    await database.connect()
    await database.query(`create schema ${schema}`)
    resources.defer(async () => {
      await database.query(`drop schema ${schema} cascade`)
      await database.query(`drop schema if exists pgboss_${schema} cascade`)
      await database.end()
    })

    const network = resources.use(await startNetwork())
    const folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-test-'))
    resources.defer(() => rm(folder, { recursive: true }))
    const start = () =>
      startService(
        readConfig(
          {
            port: '0',
            dataFolder: folder,
            logLevel: 'error',
          },
          { ...network.environment, DATABASE_URL: databaseUrl }
        )
      )
    const first = resources.use(await start())
    const second = resources.use(await start())
    assert.equal(first.agent, second.agent)

    const alice = await network.pds.createAccount({ handle: 'alice.test' })
    await seedAccount(alice.agent, { posts: 20, blobs: [1000, 2000] })
    const client = await createStorachaClient(network.storacha)
    const space = await client.createSpace('backups', {
      skipGatewayAuthorization: true,
    })
    await network.storacha.provision(space.did())
    const delegate = (audience: Principal, abilities: readonly string[]) =>
      Delegation.delegate({
        issuer: space.signer,
        audience,
        capabilities: abilities.map((can) => ({
          can,
          with: space.did(),
        })) as never,
        expiration: Infinity,
      })
    const issuer = client.agent.issuer
    const agent = {
      issuer,
      with: space.did(),
      proofs: [await delegate(issuer, ['backup/*', 'clock/*', SPACE_INFO])],
      agent: first.agent,
    }
    const at = ({ url, agent }: RunningService) => ({
      connection: connect({ url, did: agent }),
    })
    const input = {
      account: alice.did as `did:plc:${string}`,
      delegation: await delegate(DID.parse(first.agent), BACKUP_ABILITIES),
    }

    const [one, other] = await Promise.all([
      Backup.run(agent, input, at(first)),
      Backup.run(agent, input, at(second)),
    ])
    assert.ok(one.ok && other.ok)
    assert.equal(one.ok.run.toString(), other.ok.run.toString())

    for (;;) {
      const { ok } = await Backup.status(agent, { run: one.ok.run }, at(second))
      const run = ok?.runs[0]
      assert.ok(run && run.state !== 'failed')
      if (run.state === 'done') {
        assert.equal(run.attempts, 1)
        assert.equal(run.outcome?.records, 22)
        break
      }
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    const heads = await Promise.all(
      [first, second].map((service) => Clock.head(agent, at(service)))
    )
    assert.equal(heads[0]?.ok?.head.length, 1)
    assert.deepEqual(
      heads[0]?.ok?.head.map(String),
      heads[1]?.ok?.head.map(String)
    )
  })
})
