import assert from 'node:assert/strict'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { Backup, connect } from '../../src/client/index.ts'
import { SCHEDULER_POLICY } from '../../src/scheduler/index.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import { seedAccount, startNetwork } from '../network/index.ts'
import { allow, createActors, startTestService, until } from './harness.ts'
import { createPostgresStore, databaseServer } from './slow-stores.ts'

const POLICIES = {
  policy: { ...RUNNER_POLICY, poll: 100 },
  schedulerPolicy: { ...SCHEDULER_POLICY, sweep: 100, poll: 50 },
}

describe('a service of several roles on one PostgreSQL', () => {
  it('takes schedules in one process, and makes the backups in another', async () => {
    assert.ok(databaseServer, 'run: npm run test:postgres')
    await using resources = new AsyncDisposableStack()
    const store = resources.use(await createPostgresStore(databaseServer))
    const network = resources.use(await startNetwork())
    const start = async (role: string) =>
      resources.use(
        await startTestService(
          { role, dataFolder: store.dataFolder, minScheduleInterval: '1' },
          { ...network.environment, DATABASE_URL: store.databaseUrl! },
          POLICIES
        )
      )
    const { url, agent, ...api } = await start('api')
    const account = await network.pds.createAccount({ handle: 'alice.test' })
    await seedAccount(account.agent, { posts: 3 })
    const { alice, space } = await createActors()
    await network.storacha.provision(space.did())
    const config = {
      issuer: alice,
      with: space.did(),
      proofs: [await allow(space, alice, ['backup/*'])],
    }
    const connection = connect({ url, did: agent })
    const { ok, error } = await Backup.schedule(
      config,
      {
        account: account.did as `did:plc:${string}`,
        every: 1,
        delegation: await allow(space, agent, [
          'backup/run',
          ...BACKUP_ABILITIES,
        ]),
      },
      { connection }
    )
    assert.equal(error, undefined, error?.message)
    assert.equal(ok.schedule.lastRun, undefined)
    const runs = async () => {
      const { ok } = await Backup.status(
        config,
        {},
        { connection, nonce: crypto.randomUUID() }
      )
      return ok?.runs ?? []
    }
    // It is due, and nobody is there to see it.
    await new Promise((resolve) => setTimeout(resolve, 1500))
    assert.deepEqual(await runs(), [])
    await start('scheduler')
    await new Promise((resolve) => setTimeout(resolve, 500))
    assert.deepEqual(await runs(), [])
    const worker = await start('worker')
    await until(
      async () => (await runs()).some(({ state }) => state === 'done'),
      20_000
    )
    assert.doesNotMatch(worker.logged() + api.logged(), /"level":(50|60)/)
  })
})
