import assert from 'node:assert/strict'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { Backup } from '../../src/client/index.ts'
import { SCHEDULER_POLICY } from '../../src/scheduler/index.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import {
  seedAccount,
  startNetwork,
  startUnwellHost,
  type Network,
} from '../network/index.ts'
import { allow, createActors, startTestService, until } from './harness.ts'

const OPTIONS = {
  policy: { ...RUNNER_POLICY, progress: 20, poll: 50 },
  schedulerPolicy: { ...SCHEDULER_POLICY, sweep: 50, poll: 20, busy: 100 },
  fetchLimits: { small: { timeout: 60_000 } },
}

describe('hosts that do not answer', () => {
  let network: Network

  before(async () => {
    network = await startNetwork()
  })

  after(() => network[Symbol.asyncDispose]())

  for (const [sentence, runsOf] of Object.entries({
    'leave room for another, however many runs of one are asked for': [6],
    'leave room for another, though there are two': [3, 3],
  })) {
    it(sentence, async () => {
      await using resources = new AsyncDisposableStack()
      const service = resources.use(
        await startTestService(
          { minScheduleInterval: '1' },
          network.environment,
          OPTIONS
        )
      )
      const { space } = await createActors()
      await network.storacha.provision(space.did())
      const config = { issuer: space, with: space.did() }
      const delegation = await allow(space, service.agent, [
        'backup/run',
        ...BACKUP_ABILITIES,
      ])
      const fresh = () => ({ ...service, nonce: crypto.randomUUID() })
      const runNow = async (did: string) => {
        const account = did as `did:plc:${string}`
        const { ok, error } = await Backup.run(
          config,
          { account, delegation },
          fresh()
        )
        assert.equal(error, undefined, error?.message)
        return ok.run
      }
      const runs = async () =>
        (await Backup.status(config, {}, fresh())).ok!.runs

      for (const count of runsOf) {
        const unwell = resources.use(
          await startUnwellHost({ plcUrl: network.plc.url })
        )
        unwell.ailment = () => 'hangs'
        for (let i = 0; i < count; i++) {
          const { did } = await unwell.pds.createAccount({
            handle: `account${i}.test`,
          })
          await runNow(did)
        }
        await until(() => unwell.asked.length > 0)
      }
      const well = await network.pds.createAccount({
        handle: `well-${runsOf.length}.test`,
      })
      await seedAccount(well.agent, { posts: 1 })
      const run = await runNow(well.did)
      await until(async () =>
        (await runs()).some(
          (each) => `${each.run}` === `${run}` && each.state === 'done'
        )
      )
      // Schedules find the room as well.
      const account = well.did as `did:plc:${string}`
      const { error } = await Backup.schedule(
        config,
        { account, every: 1, delegation },
        fresh()
      )
      assert.equal(error, undefined, error?.message)
      await until(async () => {
        const { ok } = await Backup.schedules(config, fresh())
        return ok?.schedules[0]?.lastRun?.outcome === 'unchanged'
      })
      const { length } = (await runs()).filter(
        ({ state }) => state === 'running'
      )
      assert.ok(length >= 2)
    })
  }
})
