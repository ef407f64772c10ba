import assert from 'node:assert/strict'
import { join } from 'node:path'
import { delegate, DID } from '@ucanto/core'
import type { Delegation, Signer } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import {
  Backup as Capabilities,
  BACKUP_ABILITIES,
  SCHEDULE_ABILITIES,
} from '../../src/capabilities/index.ts'
import { Backup, Revocation } from '../../src/client/index.ts'
import type { ScheduleInput } from '../../src/client/schedule.ts'
import { systemTime } from '../../src/node/index.ts'
import { decodeDelegations } from '../../src/service/authority.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import {
  allow,
  blockOf,
  createActors,
  seconds,
  startTestService,
  type Space,
  type TestService,
} from './harness.ts'

const ACCOUNT = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const OTHER_ACCOUNT = 'did:plc:vwzwgnygau7ed7b7wt5ux7y2'
const MINUTE = 60_000
const HOUR = 60 * MINUTE

describe('schedule handlers', () => {
  const resources = new AsyncDisposableStack()
  let service: TestService
  let stores: Stores
  let alice: Signer
  let bob: ed25519.EdSigner
  let mallory: ed25519.EdSigner
  let space: Space
  let proofs: Delegation[]
  let delegation: Delegation
  /** Milliseconds that the service's time is ahead. */
  let ahead = 0

  before(async () => {
    service = resources.use(
      await startTestService(
        {},
        {},
        { time: { ...systemTime, now: () => Date.now() + ahead } }
      )
    )
    stores = resources.use(
      await openStores({
        path: join(service.config.dataFolder, 'service.sqlite'),
      })
    )
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    ahead = 0
    ;({ alice, bob, mallory, space } = await createActors())
    proofs = [await allow(space, alice, ['backup/*'])]
    delegation = await allow(space, service.agent, SCHEDULE_ABILITIES)
  })

  const now = () => Date.now() + ahead
  const config = () => ({ issuer: alice, with: space.did(), proofs })
  const options = () => ({ ...service, nonce: crypto.randomUUID() })

  const attempt = (input: Partial<ScheduleInput> = {}) =>
    Backup.schedule(
      config(),
      {
        account: ACCOUNT,
        delegation,
        ...(input.cron === undefined ? { every: 3600 } : {}),
        ...input,
      } as ScheduleInput,
      options()
    )
  const schedule = async (input: Partial<ScheduleInput> = {}) => {
    const { ok, error } = await attempt(input)
    assert.equal(error, undefined)
    return ok.schedule
  }
  const list = async () => {
    const { ok, error } = await Backup.schedules(config(), service)
    assert.equal(error, undefined)
    return ok.schedules
  }
  const pause = (until?: number) =>
    Backup.pause(config(), { account: ACCOUNT, until }, options())
  const resume = () => Backup.resume(config(), { account: ACCOUNT }, options())
  const unschedule = () =>
    Backup.unschedule(config(), { account: ACCOUNT }, options())

  /** As a scheduler does it: claims the schedule and ends the claim. */
  const settle = async (
    settlement: Omit<Parameters<Stores['schedules']['settle']>[3], 'now'>
  ) => {
    const due = await stores.schedules.claimDue({
      now: Number.MAX_SAFE_INTEGER / 2,
      limit: 1000,
      owner: 'test',
      lease: 0,
    })
    assert.ok(due.some((each) => each.space === space.did()))
    await stores.schedules.settle(space.did(), ACCOUNT, 'test', {
      ...settlement,
      now: now(),
    })
  }

  describe('schedule', () => {
    it('answers with the schedule and its next time', async () => {
      const before = Date.now()
      const made = await schedule({ include: ['blobs'] })
      const { next, created, ...rest } = made
      assert.ok(next! > before && next! <= Date.now() + HOUR)
      assert.ok(created >= before && created <= Date.now())
      assert.deepEqual(rest, {
        account: ACCOUNT,
        every: 3600,
        include: ['blobs'],
        state: 'active',
        delegation: { cid: delegation.cid },
      })
      assert.deepEqual(await list(), [made])
    })

    it('keeps the clock of a timezone', async () => {
      const made = await schedule({
        cron: '0 4 * * *',
        timezone: 'Asia/Kathmandu',
      })
      assert.equal(made.cron, '0 4 * * *')
      assert.equal(made.timezone, 'Asia/Kathmandu')
      assert.equal(made.every, undefined)
      // A quarter to six hours before Greenwich, all the year.
      assert.match(new Date(made.next!).toISOString(), /T22:15:/)
      assert.equal((await schedule({ cron: '0 4 * * *' })).timezone, 'UTC')
    })

    it('keeps the delegation whole, as it was given', async () => {
      const toBob = await allow(space, bob, ['*'], {
        expiration: seconds(7200),
      })
      delegation = await allow(bob, service.agent, SCHEDULE_ABILITIES, {
        with: space.did(),
        proofs: [toBob],
      })
      const made = await schedule()
      assert.equal(made.delegation.expiration, toBob.expiration)
      const kept = await stores.schedules.delegation(space.did(), ACCOUNT)
      assert.equal(kept?.expiration, toBob.expiration * 1000)
      const [stored, ...others] = decodeDelegations(kept.bytes)
      assert.deepEqual(others, [])
      const blocks = (each: Delegation) =>
        [...each.export()].map(({ cid, bytes }) => [`${cid}`, [...bytes]])
      assert.deepEqual(blocks(stored!), blocks(delegation))
    })

    it('changes nothing when it is asked for again', async () => {
      const one = await schedule()
      ahead += 2 * MINUTE
      const two = await schedule()
      assert.deepEqual(two, one)
      assert.deepEqual(await list(), [two])
    })

    it('leaves due what is due', async () => {
      const { next } = await schedule()
      ahead = next! - Date.now() + 3 * HOUR
      assert.equal((await schedule()).next, next)
    })

    it('goes on at a regular time when it is asked for in the middle of a run', async () => {
      const { next } = await schedule()
      await stores.schedules.claimDue({
        now: next!,
        limit: 1000,
        owner: 'one',
        lease: HOUR,
      })
      ahead = next! - Date.now() + MINUTE
      assert.equal((await schedule()).next, next! + HOUR)
    })

    it('replaces the rhythm, the parts and the delegation', async () => {
      const { created } = await schedule({ include: [] })
      delegation = await allow(space, service.agent, SCHEDULE_ABILITIES, {
        expiration: seconds(100 * 24 * 3600),
      })
      const made = await schedule({ cron: '0 4 * * *' })
      assert.deepEqual(made, {
        account: ACCOUNT,
        cron: '0 4 * * *',
        timezone: 'UTC',
        state: 'active',
        next: made.next,
        delegation: { cid: delegation.cid, expiration: delegation.expiration },
        created,
      })
      assert.deepEqual(await list(), [made])
    })

    it('goes on with what was stopped', async () => {
      await schedule()
      const reason = { name: 'DelegationExpired', message: 'it has expired' }
      await settle({ state: 'stopped', reason })
      const [stopped] = await list()
      assert.equal(stopped?.state, 'stopped')
      assert.deepEqual(stopped.reason, reason)
      assert.equal(stopped.next, undefined)
      const made = await schedule()
      assert.equal(made.state, 'active')
      assert.equal(made.reason, undefined)
      assert.ok(made.next! > now())
    })

    it('tries again what has paused by itself', async () => {
      await schedule()
      const reason = { name: 'AccountDeactivated', message: 'deactivated' }
      await settle({ state: 'paused', reason, next: now() + 9 * HOUR })
      assert.deepEqual((await list())[0]?.reason, reason)
      const made = await schedule()
      assert.equal(made.state, 'active')
      assert.ok(made.next! <= now() + HOUR)
    })

    it('leaves paused what somebody has paused', async () => {
      await schedule()
      await pause()
      delegation = await allow(space, service.agent, SCHEDULE_ABILITIES, {
        expiration: seconds(9999),
      })
      const made = await schedule()
      assert.equal(made.state, 'paused')
      assert.equal(made.next, undefined)
      assert.equal(made.delegation.expiration, delegation.expiration)
      const until = seconds(8 * 3600)
      delegation = await allow(space, service.agent, SCHEDULE_ABILITIES)
      await pause(until)
      const daily = await schedule({ every: 24 * 3600 })
      assert.equal(daily.pausedUntil, until * 1000)
      assert.ok(daily.next! >= until * 1000)
    })

    const rhythms: [object, RegExp][] = [
      [{ every: undefined }, /either by every, in seconds, or by cron/],
      [{ every: 3600, cron: '0 4 * * *' }, /either by every/],
      [{ every: 299 }, /may be from 300/],
      [{ cron: 'tomorrow' }, /not a cron expression; write five fields/],
      [{ cron: '0 4 * * *', timezone: 'Mars' }, /"Mars" is not a timezone/],
    ]
    for (const [rhythm, message] of rhythms) {
      it(`refuses times that cannot be kept: ${JSON.stringify(rhythm)}`, async () => {
        const { error } = await attempt(rhythm)
        assert.equal(error?.name, 'InvalidRhythm')
        assert.match(error.message, message)
        assert.deepEqual(await list(), [])
      })
    }

    it('has a shortest interval that is configured', async () => {
      await using strict = await startTestService({
        minScheduleInterval: '3600',
      })
      const delegation = await allow(space, strict.agent, SCHEDULE_ABILITIES)
      const at = (every: number) =>
        Backup.schedule(
          config(),
          { account: ACCOUNT, every, delegation },
          strict
        )
      assert.match((await at(3599)).error!.message, /from 3600 to/)
      assert.ok((await at(3600)).ok)
    })

    describe('refuses a delegation', () => {
      const refused = async (
        delegation: Delegation,
        name: string,
        message: RegExp,
        input: Partial<ScheduleInput> = {}
      ) => {
        const { error } = await attempt({ ...input, delegation })
        assert.equal(error?.name, name, error?.message)
        assert.match(error.message, message)
        assert.deepEqual(await list(), [])
      }

      for (const lacking of SCHEDULE_ABILITIES) {
        it(`without ${lacking}`, async () => {
          await refused(
            await allow(
              space,
              service.agent,
              SCHEDULE_ABILITIES.filter((can) => can !== lacking)
            ),
            'InsufficientDelegation',
            new RegExp(`does not allow ${lacking} in ${space.did()}`)
          )
        })
      }

      it('that is named and not attached', async () => {
        const receipt = await Capabilities.schedule
          .invoke({
            issuer: alice,
            audience: service.connection.id,
            with: space.did(),
            nb: { account: ACCOUNT, every: 3600, delegation: delegation.cid },
            proofs,
          })
          .execute(service.connection)
        assert.equal(receipt.out.error?.name, 'InsufficientDelegation')
        assert.match(receipt.out.error.message, /is not attached/)
      })

      it('that is none', async () => {
        const block = await blockOf({ not: 'a delegation' })
        const invocation = Capabilities.schedule.invoke({
          issuer: alice,
          audience: service.connection.id,
          with: space.did(),
          nb: { account: ACCOUNT, every: 3600, delegation: block.cid },
          proofs,
        })
        invocation.attach(block)
        const { out } = await invocation.execute(service.connection)
        assert.equal(out.error?.name, 'InsufficientDelegation')
        assert.match(out.error.message, /cannot be read/)
      })

      it('to somebody else, or to the did:web', async () => {
        for (const audience of [bob.did(), service.did]) {
          await refused(
            await allow(space, audience, SCHEDULE_ABILITIES),
            'DelegationAudienceMismatch',
            new RegExp(`is for ${audience}; delegate to .*${service.agent}`)
          )
        }
      })

      it('of another Space', async () => {
        const other = await ed25519.generate()
        await refused(
          await allow(other, service.agent, SCHEDULE_ABILITIES),
          'DelegationSpaceMismatch',
          new RegExp(`is for ${other.did()}; .* Space ${space.did()}`)
        )
      })

      it('of which a part is of another Space', async () => {
        const other = await ed25519.generate()
        const toBob = [
          await allow(space, bob, ['*']),
          await allow(other, bob, ['*']),
        ]
        const delegation = await delegate({
          issuer: bob,
          audience: DID.parse(service.agent),
          capabilities: SCHEDULE_ABILITIES.map((can) => ({
            can: can,
            with: can === 'upload/add' ? other.did() : space.did(),
          })) as never,
          proofs: toBob,
          expiration: Infinity,
        })
        await refused(
          delegation,
          'InsufficientDelegation',
          /does not allow upload\/add in/
        )
      })

      it('that the Space did not give', async () => {
        await refused(
          await allow(mallory, service.agent, SCHEDULE_ABILITIES, {
            with: space.did(),
          }),
          'InsufficientDelegation',
          /does not allow backup\/run, space\/blob\/add, .*clock\/advance in/
        )
      })

      it('that has expired, or a proof of it', async () => {
        const expiration = seconds(-1)
        const expired = new RegExp(
          `has expired on ${new Date(expiration * 1000).toISOString()}`
        )
        await refused(
          await allow(space, service.agent, SCHEDULE_ABILITIES, { expiration }),
          'DelegationExpired',
          expired
        )
        const toBob = await allow(space, bob, ['*'], { expiration })
        await refused(
          await allow(bob, service.agent, SCHEDULE_ABILITIES, {
            with: space.did(),
            proofs: [toBob],
          }),
          'DelegationExpired',
          expired
        )
      })

      it('that ends before the first run', async () => {
        const cron = '0 4 1 1 *'
        const next = (await schedule({ cron })).next!
        await unschedule()
        const until = (expiration: number) =>
          allow(space, service.agent, SCHEDULE_ABILITIES, { expiration })
        const last = Math.floor(next / 1000)
        await refused(
          await until(last),
          'DelegationEndsTooSoon',
          new RegExp(`before the first run on ${new Date(next).toISOString()}`),
          { cron }
        )
        assert.ok(
          (await attempt({ cron, delegation: await until(last + 1) })).ok
        )
      })

      it('that begins later', async () => {
        await refused(
          await allow(space, service.agent, SCHEDULE_ABILITIES, {
            notBefore: seconds(60),
          }),
          'InsufficientDelegation',
          /not valid before/
        )
      })

      it('that names another account, itself or in a proof', async () => {
        const nb = { account: OTHER_ACCOUNT }
        const part = async (
          issuer: Signer,
          to: string,
          proofs?: Delegation[]
        ) =>
          delegate({
            issuer,
            audience: DID.parse(to),
            capabilities: [
              { can: 'backup/run', with: space.did(), nb },
              ...BACKUP_ABILITIES.map((can) => ({ can, with: space.did() })),
            ] as never,
            ...(proofs ? { proofs } : {}),
            expiration: Infinity,
          })
        const message = new RegExp(
          `backup/run for ${OTHER_ACCOUNT}, not for ${ACCOUNT}`
        )
        const direct = await part(space, service.agent)
        await refused(direct, 'DelegationAccountMismatch', message)
        const toBob = await part(space, bob.did())
        await refused(
          await allow(bob, service.agent, SCHEDULE_ABILITIES, {
            with: space.did(),
            proofs: [toBob],
          }),
          'DelegationAccountMismatch',
          message
        )
        const made = await attempt({
          delegation: direct,
          account: OTHER_ACCOUNT,
        })
        assert.equal(made.error, undefined)
      })

      it('that allows fewer parts', async () => {
        delegation = await delegate({
          issuer: space,
          audience: DID.parse(service.agent),
          capabilities: [
            { can: 'backup/run', with: space.did(), nb: { include: [] } },
            ...BACKUP_ABILITIES.map((can) => ({ can, with: space.did() })),
          ] as never,
          expiration: Infinity,
        })
        for (const include of [undefined, ['blobs' as const]]) {
          await refused(
            delegation,
            'InsufficientDelegation',
            /does not allow backup\/run .*limits include to \[\]/s,
            { include }
          )
        }
        assert.deepEqual((await schedule({ include: [] })).include, [])
      })

      it('that was revoked', async () => {
        const revoked = await Revocation.revoke(
          { issuer: space },
          delegation,
          service
        )
        assert.ok(revoked.ok)
        await refused(
          delegation,
          'DelegationRevoked',
          new RegExp(`was revoked; delegate again .*${delegation.cid}`)
        )
      })

      it('that is too large to be kept', async () => {
        const ballast = await delegate({
          issuer: mallory,
          audience: bob,
          capabilities: [{ can: 'x/y', with: mallory.did() }],
          facts: [{ ballast: 'x'.repeat(300_000) }],
          expiration: Infinity,
        })
        const toBob = await allow(space, bob, ['*'])
        await refused(
          await allow(bob, service.agent, SCHEDULE_ABILITIES, {
            with: space.did(),
            proofs: [toBob, ballast],
          }),
          'InsufficientDelegation',
          /bytes with its proofs, and at most 262144 are kept/
        )
      })
    })

    it('leaves what there is when it refuses', async () => {
      const made = await schedule()
      const { error } = await attempt({
        delegation: await allow(space, service.agent, BACKUP_ABILITIES),
      })
      assert.equal(error?.name, 'InsufficientDelegation')
      assert.deepEqual(await list(), [made])
    })

    it('takes a delegation that covers more', async () => {
      delegation = await allow(space, service.agent, ['*'])
      assert.equal((await schedule()).state, 'active')
    })

    it('keeps no more than are configured for a Space', async () => {
      await using strict = await startTestService({ schedulesPerSpace: '1' })
      const delegation = await allow(space, strict.agent, SCHEDULE_ABILITIES)
      const at = (
        account: typeof ACCOUNT | typeof OTHER_ACCOUNT,
        every = 3600
      ) => Backup.schedule(config(), { account, every, delegation }, strict)
      assert.ok((await at(ACCOUNT)).ok)
      const { error } = await at(OTHER_ACCOUNT)
      assert.equal(error?.name, 'TooManySchedules')
      assert.match(
        error.message,
        /as many schedules as this service keeps for one, 1; end/
      )
      assert.equal((await at(ACCOUNT, 7200)).ok?.schedule.every, 7200)
    })
  })

  describe('who may ask', () => {
    it('is nobody to whom it was not delegated', async () => {
      await schedule()
      const foreign = await allow(mallory, bob, ['backup/*'], {
        with: space.did(),
      })
      const config = { issuer: bob, with: space.did(), proofs: [foreign] }
      const account = { account: ACCOUNT } as const
      for (const { error } of [
        await Backup.schedule(
          config,
          { ...account, every: 3600, delegation },
          service
        ),
        await Backup.schedules(config, service),
        await Backup.pause(config, account, service),
        await Backup.resume(config, account, service),
        await Backup.unschedule(config, account, service),
      ]) {
        assert.equal(error?.name, 'Unauthorized')
      }
      assert.equal((await list())[0]?.state, 'active')
    })

    it('may be limited to one account', async () => {
      proofs = [
        await allow(space, alice, ['backup/schedule', 'backup/pause'], {
          nb: { account: OTHER_ACCOUNT },
        }),
      ]
      const { error } = await attempt()
      assert.match(error!.message, new RegExp(`for account ${OTHER_ACCOUNT}`))
      assert.ok((await attempt({ account: OTHER_ACCOUNT })).ok)
      assert.equal((await pause()).error?.name, 'Unauthorized')
    })

    it('learns nothing of other Spaces', async () => {
      await schedule()
      const theirs = await ed25519.generate()
      const config = { issuer: theirs, with: theirs.did() }
      assert.deepEqual((await Backup.schedules(config, service)).ok, {
        schedules: [],
      })
      const account = { account: ACCOUNT } as const
      for (const { error } of [
        await Backup.pause(config, account, service),
        await Backup.resume(config, account, service),
      ]) {
        assert.equal(error?.name, 'ScheduleNotFound')
        assert.match(error.message, /make one with backup\/schedule/)
      }
      assert.deepEqual(
        (await Backup.unschedule(config, account, service)).ok,
        {}
      )
      assert.equal((await list()).length, 1)
    })
  })

  describe('schedules', () => {
    it('lists them in the order of their accounts, with their last runs', async () => {
      const later = await schedule({ account: OTHER_ACCOUNT })
      await schedule()
      const lastRun = {
        run: `${delegation.cid}`,
        finished: 7,
        outcome: 'failed',
        error: { name: 'HostError', message: 'no answer' },
      } as const
      await settle({ state: 'active', next: now() + HOUR, lastRun })
      const listed = await list()
      assert.deepEqual(
        listed.map(({ account }) => account),
        [ACCOUNT, OTHER_ACCOUNT]
      )
      const { run, ...rest } = listed[0]!.lastRun!
      assert.equal(run.toString(), lastRun.run)
      assert.deepEqual({ ...rest, run: lastRun.run }, lastRun)
      assert.deepEqual(listed[1], later)
    })
  })

  describe('pause and resume', () => {
    it('pauses until it is resumed, at a regular time', async () => {
      const { next, ...made } = await schedule()
      for (let times = 0; times < 2; times += 1) {
        const { ok } = await pause()
        assert.deepEqual(ok?.schedule, { ...made, state: 'paused' })
      }
      ahead = 8 * HOUR + 5 * MINUTE
      for (let times = 0; times < 2; times += 1) {
        const { ok } = await resume()
        assert.equal(ok?.schedule.state, 'active')
        const resumed = ok.schedule.next!
        assert.ok(resumed > now() && resumed <= now() + HOUR)
        assert.equal((resumed - next!) % HOUR, 0)
      }
    })

    it('pauses for some time, and comes back by itself', async () => {
      const { next } = await schedule()
      const until = seconds(8 * 3600)
      const paused = (await pause(until)).ok!.schedule
      assert.equal(paused.state, 'paused')
      assert.equal(paused.pausedUntil, until * 1000)
      assert.ok(paused.next! >= until * 1000)
      assert.ok(paused.next! < until * 1000 + HOUR)
      assert.equal((paused.next! - next!) % HOUR, 0)
      ahead = 9 * HOUR
      const [back] = await list()
      assert.equal(back?.state, 'active')
      assert.equal(back.pausedUntil, undefined)
      assert.equal(back.next, paused.next)
    })

    it('refuses a pause that has no end to come', async () => {
      const made = await schedule()
      for (const until of [0, seconds(-1), seconds(400 * 86_400), 2 ** 52]) {
        const { error } = await pause(until)
        assert.equal(error?.name, 'InvalidPause')
        assert.match(error.message, new RegExp(`within a year; ${until} does`))
      }
      assert.deepEqual(await list(), [made])
    })

    it('leaves stopped what was stopped', async () => {
      await schedule()
      await settle({ state: 'stopped' })
      assert.equal((await pause()).ok?.schedule.state, 'stopped')
    })

    it('goes on with what was stopped if the delegation holds', async () => {
      await schedule()
      await settle({ state: 'stopped', reason: { name: 'X', message: 'y' } })
      const resumed = (await resume()).ok!.schedule
      assert.equal(resumed.state, 'active')
      assert.equal(resumed.reason, undefined)
      assert.ok(resumed.next! > now())

      await settle({ state: 'stopped', reason: { name: 'X', message: 'y' } })
      await Revocation.revoke({ issuer: space }, delegation, service)
      assert.equal((await resume()).error?.name, 'DelegationRevoked')
      assert.equal((await list())[0]?.state, 'stopped')
    })

    it('does not resume what an expired delegation has stopped', async () => {
      delegation = await allow(space, service.agent, SCHEDULE_ABILITIES, {
        expiration: seconds(2 * 3600),
      })
      await schedule()
      await settle({ state: 'stopped' })
      ahead = 3 * HOUR
      assert.equal((await resume()).error?.name, 'DelegationExpired')
    })

    it('stands against what a run that goes on comes to', async () => {
      const { next } = await schedule()
      await stores.schedules.claimDue({
        now: next!,
        limit: 1000,
        owner: 'one',
        lease: HOUR,
      })
      await pause()
      await stores.schedules.settle(space.did(), ACCOUNT, 'one', {
        state: 'active',
        next: next! + HOUR,
        now: now(),
      })
      assert.equal((await list())[0]?.state, 'paused')
    })
  })

  describe('unschedule', () => {
    it('forgets the schedule and the delegation', async () => {
      const made = await schedule()
      const other = await schedule({ account: OTHER_ACCOUNT })
      assert.deepEqual((await unschedule()).ok, { schedule: made })
      assert.deepEqual((await unschedule()).ok, {})
      assert.deepEqual(await list(), [other])
      assert.equal(
        await stores.schedules.delegation(space.did(), ACCOUNT),
        undefined
      )
    })
  })

  it('keeps what was acknowledged when the service is started again', async () => {
    const made = await schedule()
    await using again = await startTestService({
      dataFolder: service.config.dataFolder,
    })
    const { ok } = await Backup.schedules(config(), {
      connection: again.connection,
    })
    assert.deepEqual(ok?.schedules, [made])
  })
})
