import assert from 'node:assert/strict'
import type { Delegation, Link, Signer } from '@ucanto/interface'
import {
  BACKUP_ABILITIES,
  SCHEDULE_ABILITIES,
} from '../../src/capabilities/index.ts'
import type { Backup as Protocol } from '../../src/capabilities/index.ts'
import { Backup } from '../../src/client/index.ts'
import {
  allow,
  createActors,
  seconds,
  startServer,
  startTestService,
  type Space,
  type TestService,
} from '../service/harness.ts'

const ACCOUNT = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'

describe('client of backups', () => {
  const resources = new AsyncDisposableStack()
  let service: TestService
  let alice: Signer
  let space: Space
  let delegation: Delegation

  before(async () => {
    const silence = resources.use(await startServer(() => {}))
    service = resources.use(
      await startTestService({ plcUrl: silence.url.href })
    )
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    ;({ alice, space } = await createActors())
    delegation = await allow(space, service.agent, BACKUP_ABILITIES)
  })

  const config = async (abilities = ['backup/*']) => ({
    issuer: alice,
    with: space.did(),
    proofs: [await allow(space, alice, abilities)],
  })

  it('starts runs and asks how far they are', async () => {
    const started = await Backup.run(
      await config(),
      { account: ACCOUNT, include: ['blobs'], delegation },
      service
    )
    assert.equal(started.error, undefined)
    // What is answered has types, by which wrong uses do not compile.
    const run: Link = started.ok.run
    const status = await Backup.status(await config(), { run }, service)
    assert.equal(status.error, undefined)
    const runs: Protocol.RunStatus[] = status.ok.runs
    assert.equal(runs[0]?.run.toString(), run.toString())
    const all = await Backup.status(await config(), {}, service)
    assert.equal(all.ok?.runs.length, 1)
  })

  it('brings a delegation with all its proofs', async () => {
    const { bob } = await createActors()
    const toBob = await allow(space, bob, BACKUP_ABILITIES)
    const { ok } = await Backup.run(
      await config(),
      {
        account: ACCOUNT,
        delegation: await allow(bob, service.agent, BACKUP_ABILITIES, {
          with: space.did(),
          proofs: [toBob],
        }),
      },
      service
    )
    assert.ok(ok)
  })

  it('answers failures by name', async () => {
    const { error } = await Backup.run(
      await config(),
      { account: ACCOUNT },
      service
    )
    const name: string | undefined = error?.name
    assert.equal(name, 'InsufficientDelegation')
  })

  it('says until when an invocation is valid, and whom it is for', async () => {
    const options = { ...service, expiration: seconds(-10), nonce: 'n' }
    const input = { account: ACCOUNT, delegation } as const
    for (const { error } of [
      await Backup.run(await config(), input, options),
      await Backup.status(await config(), {}, options),
    ]) {
      assert.match(error!.message, /expired/)
    }
    const toAlice = { ...(await config()), audience: alice }
    for (const { error } of [
      await Backup.run(toAlice, input, service),
      await Backup.status(toAlice, {}, service),
    ]) {
      assert.equal(error?.name, 'InvalidAudience')
    }
  })

  describe('schedules', () => {
    const account = { account: ACCOUNT } as const
    let given: Delegation

    beforeEach(async () => {
      given = await allow(space, service.agent, SCHEDULE_ABILITIES)
    })

    it('are made, listed, paused, resumed and ended', async () => {
      const made = await Backup.schedule(
        await config(),
        { ...account, every: 3600, include: ['blobs'], delegation: given },
        service
      )
      assert.equal(made.error, undefined)
      // What is answered has types, by which wrong uses do not compile.
      const schedule: Protocol.Schedule = made.ok.schedule
      assert.equal(schedule.every, 3600)
      assert.deepEqual(schedule.include, ['blobs'])
      const listed = await Backup.schedules(await config(), service)
      assert.deepEqual(listed.ok, { schedules: [schedule] })
      const paused = await Backup.pause(await config(), account, service)
      assert.equal(paused.ok?.schedule.state, 'paused')
      const until = seconds(3600)
      const short = await Backup.pause(
        await config(),
        { ...account, until },
        service
      )
      assert.equal(short.ok?.schedule.pausedUntil, until * 1000)
      const resumed = await Backup.resume(await config(), account, service)
      assert.equal(resumed.ok?.schedule.state, 'active')
      const ended = await Backup.unschedule(await config(), account, service)
      assert.deepEqual(ended.ok?.schedule, resumed.ok?.schedule)
    })

    it('may go by the clock on a wall', async () => {
      const cron = { cron: '0 4 * * *', timezone: 'Europe/Berlin' }
      const { ok } = await Backup.schedule(
        await config(),
        { ...account, ...cron, delegation: given },
        service
      )
      assert.equal(ok?.schedule.cron, cron.cron)
      assert.equal(ok.schedule.timezone, cron.timezone)
    })

    it('come with all proofs of the delegation', async () => {
      const { bob } = await createActors()
      const toBob = await allow(space, bob, SCHEDULE_ABILITIES)
      const delegation = await allow(bob, service.agent, SCHEDULE_ABILITIES, {
        with: space.did(),
        proofs: [toBob],
      })
      const { ok } = await Backup.schedule(
        await config(),
        { ...account, every: 3600, delegation },
        service
      )
      assert.equal(`${ok?.schedule.delegation.cid}`, `${delegation.cid}`)
    })

    it('say until when an invocation is valid, and whom it is for', async () => {
      const input = { ...account, every: 3600, delegation: given }
      const all = async (
        config: Parameters<typeof Backup.schedules>[0],
        options: Parameters<typeof Backup.schedules>[1]
      ) => [
        await Backup.schedule(config, input, options),
        await Backup.schedules(config, options),
        await Backup.pause(config, account, options),
        await Backup.resume(config, account, options),
        await Backup.unschedule(config, account, options),
      ]
      const late = { ...service, expiration: seconds(-10), nonce: 'n' }
      for (const { error } of await all(await config(), late)) {
        assert.match(error!.message, /expired/)
      }
      const toAlice = { ...(await config()), audience: alice }
      for (const { error } of await all(toAlice, service)) {
        assert.equal(error?.name, 'InvalidAudience')
      }
    })

    it('answer failures by name', async () => {
      const { error } = await Backup.pause(await config(), account, service)
      const name: string | undefined = error?.name
      assert.equal(name, 'ScheduleNotFound')
    })
  })
})
