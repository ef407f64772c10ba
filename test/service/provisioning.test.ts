import assert from 'node:assert/strict'
import type { Delegation, Signer } from '@ucanto/interface'
import { DID, invoke } from '@ucanto/core'
import { ed25519 } from '@ucanto/principal'
import pino from 'pino'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { Authorization, Backup, Clock } from '../../src/client/index.ts'
import {
  createProvisioning,
  REFUSAL_AGE,
} from '../../src/service/provisioning.ts'
import type { KnownSpace } from '../../src/stores/index.ts'
import { startStoracha, type Storacha } from '../network/index.ts'
import {
  allow,
  createActors,
  eventOf,
  startTestService,
  type Space,
  type TestService,
} from './harness.ts'

describe('provisioning', () => {
  let storacha: Storacha
  let alice: Signer
  let space: Space
  let now: number

  before(async () => {
    storacha = await startStoracha()
  })

  after(() => storacha[Symbol.asyncDispose]())

  beforeEach(async () => {
    ;({ alice, space } = await createActors())
    now = Date.now()
  })

  afterEach(() => {
    storacha.faults.down = false
  })

  const start = (policy = 'require') =>
    startTestService(
      {
        provisioningPolicy: policy,
        provisioningMaxAge: '60',
        revocationsPolicy: 'off',
      },
      {
        BLUESKY_BACKUPS_UPLOAD_SERVICE_URL: storacha.url,
        BLUESKY_BACKUPS_UPLOAD_SERVICE_DID: storacha.did,
        BLUESKY_BACKUPS_RECEIPTS_URL: storacha.receiptsUrl,
      },
      {
        time: {
          now: () => now,
          sleep: (_ms, signal) =>
            new Promise((_resolve, reject) => {
              signal?.addEventListener('abort', () => {
                reject(signal.reason as Error)
              })
            }),
        },
      }
    )

  /** Name of the failure of an advance, if it fails. */
  const advance = async (
    service: TestService,
    { tell = true, proofs }: { tell?: boolean; proofs?: Delegation[] } = {}
  ) => {
    const event = await eventOf(crypto.randomUUID())
    const { error } = await Clock.advance(
      {
        issuer: alice,
        with: space.did(),
        proofs: proofs ?? [await allow(space, alice, ['clock/*', 'space/*'])],
        ...(tell ? { agent: service.agent } : {}),
      },
      event.cid,
      { connection: service.connection, blocks: [event] }
    )
    return error && `${error.name}: ${error.message}`
  }

  it('lets Spaces in that have a provider', async () => {
    await using service = await start()
    await storacha.provision(space.did())
    assert.equal(await advance(service), undefined)
  })

  it('keeps out those that have none, until they have one', async () => {
    await using service = await start()
    assert.match(
      (await advance(service)) ?? '',
      /^SpaceNotProvisioned: .*provision the Space there first/
    )
    await storacha.provision(space.did())
    now += REFUSAL_AGE
    assert.equal(await advance(service), undefined)
  })

  it('is asked of agents that do not tell, unless the Space is known', async () => {
    await using service = await start()
    await storacha.provision(space.did())
    assert.match(
      (await advance(service, { tell: false })) ?? '',
      /^SpaceNotProvisioned: .*attach a delegation of space\/info/
    )
    assert.equal(await advance(service), undefined)
    assert.equal(await advance(service, { tell: false }), undefined)
    now += 3_600_000
    assert.equal(await advance(service, { tell: false }), undefined)
  })

  it('does not take the word of who may not say it', async () => {
    await using service = await start()
    await storacha.provision(space.did())
    const proofs = [await allow(space, alice, ['clock/*'])]
    assert.match(
      (await advance(service, { proofs })) ?? '',
      /^SpaceNotProvisioned: .*does not tell about/
    )
  })

  it('takes a delegation to the service among the proofs', async () => {
    await using service = await start()
    await storacha.provision(space.did())
    const proofs = [
      await allow(space, alice, ['clock/*']),
      await allow(space, DID.parse(service.agent), ['space/info']),
    ]
    assert.equal(await advance(service, { tell: false, proofs }), undefined)
  })

  it('does not keep a known Space out while the upload service is down', async () => {
    await using service = await start()
    await storacha.provision(space.did())
    storacha.faults.down = true
    assert.match((await advance(service)) ?? '', /^ServiceUnavailable/)
    storacha.faults.down = false
    assert.equal(await advance(service), undefined)
    storacha.faults.down = true
    now += 3_600_000
    assert.equal(await advance(service), undefined)
  })

  const ACCOUNT = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'

  /** Everything that makes the service do something for a Space. */
  const useAll = async (service: TestService, { tell = true } = {}) => {
    const config = {
      issuer: alice,
      with: space.did(),
      proofs: [
        await allow(space, alice, ['backup/*', 'authorization/*', 'space/*']),
      ],
      ...(tell ? { agent: service.agent } : {}),
    }
    const delegation = await allow(space, service.agent, [
      'backup/run',
      ...BACKUP_ABILITIES,
    ])
    const account = ACCOUNT
    const options = () => ({ ...service, nonce: crypto.randomUUID() })
    const answers = {
      run: await Backup.run(config, { account, delegation }, options()),
      schedule: await Backup.schedule(
        config,
        { account, every: 3600, delegation },
        options()
      ),
      request: await Authorization.request(
        config,
        { account, delegation },
        options()
      ),
      share: await Authorization.share(
        config,
        { account, agent: alice.did() as `did:key:${string}`, delegation },
        options()
      ),
    }
    return Object.fromEntries(
      Object.entries(answers).map(([name, { error }]) => [name, error?.name])
    )
  }

  it('is required of Spaces that are backed up into, scheduled or authorized', async () => {
    await using service = await start()
    const refused = {
      run: 'SpaceNotProvisioned',
      schedule: 'SpaceNotProvisioned',
      request: 'SpaceNotProvisioned',
      share: 'SpaceNotProvisioned',
    }
    assert.deepEqual(await useAll(service, { tell: false }), refused)
    assert.deepEqual(await useAll(service), refused)
    await storacha.provision(space.did())
    now += REFUSAL_AGE
    const { run, schedule, request, share } = await useAll(service)
    assert.equal(run, undefined)
    assert.equal(schedule, undefined)
    // What comes next cannot be had here.
    assert.notEqual(request, 'SpaceNotProvisioned')
    assert.notEqual(share, 'SpaceNotProvisioned')
  })

  it('is required of a schedule that goes on', async () => {
    await using service = await start()
    await storacha.provision(space.did())
    await useAll(service)
    const config = {
      issuer: alice,
      with: space.did(),
      proofs: [await allow(space, alice, ['backup/*', 'space/*'])],
      agent: service.agent,
    }
    const options = () => ({ ...service, nonce: crypto.randomUUID() })
    await Backup.pause(config, { account: ACCOUNT }, options())
    const { ok } = await Backup.resume(config, { account: ACCOUNT }, options())
    assert.equal(ok?.schedule.state, 'active')
  })

  it('is asked once in a while of an agent that goes on asking', async () => {
    await using service = await start()
    const before = storacha.stats.requests
    const names = async () =>
      Promise.all(
        Array.from({ length: 20 }, async () =>
          (await advance(service))?.replace(/:.*/, '')
        )
      )
    assert.deepEqual(new Set(await names()), new Set(['SpaceNotProvisioned']))
    assert.deepEqual(new Set(await names()), new Set(['SpaceNotProvisioned']))
    assert.equal(storacha.stats.requests - before, 1)
    now += REFUSAL_AGE
    await names()
    assert.equal(storacha.stats.requests - before, 2)
  })

  it('is not asked of delegations that do not allow asking', async () => {
    await using service = await start()
    const before = storacha.stats.requests
    const proofs = [
      await allow(space, alice, ['clock/*']),
      await allow(space, DID.parse(service.agent), ['upload/add']),
    ]
    assert.match(
      (await advance(service, { tell: false, proofs })) ?? '',
      /^SpaceNotProvisioned: .*attach a delegation of space\/info/
    )
    assert.equal(storacha.stats.requests, before)
  })

  describe('of an invocation by the service itself', () => {
    const check = async (
      can: 'backup/run' | 'clock/advance',
      known?: KnownSpace
    ) => {
      const agent = await ed25519.generate()
      const kept = new Map<string, KnownSpace>()
      if (known) kept.set(space.did(), known)
      const provisioning = createProvisioning({
        store: {
          get: async (space) => kept.get(space),
          put: async (space, known) => void kept.set(space, known),
        },
        agent,
        connect: () => assert.fail('the upload service is not asked'),
        policy: 'require',
        maxAge: 60_000,
        time: { now: () => now, sleep: async () => {} },
        logger: pino({ level: 'silent' }),
      })
      const invocation = await invoke({
        issuer: agent,
        audience: agent,
        capability: { can, with: space.did() },
        proofs: [await allow(space, agent, [can])],
      }).delegate()
      const { error } = await provisioning.check(space.did(), invocation)
      return { error: error?.name, kept: kept.get(space.did()) }
    }

    it('believes an advance, which comes after the upload service took the backup', async () => {
      const known = { provisioned: true, checked: now }
      assert.deepEqual(await check('clock/advance'), {
        error: undefined,
        kept: known,
      })
    })

    it('believes nothing because of a scheduled run', async () => {
      assert.deepEqual(await check('backup/run'), {
        error: undefined,
        kept: undefined,
      })
      const old = { provisioned: true, checked: now - 3_600_000 }
      assert.deepEqual(await check('backup/run', old), {
        error: undefined,
        kept: old,
      })
    })

    it('refuses a scheduled run into a Space that lost its provider, for a while', async () => {
      const lost = { provisioned: false, checked: now - 30_000 }
      assert.deepEqual(await check('backup/run', lost), {
        error: 'SpaceNotProvisioned',
        kept: lost,
      })
      const old = { provisioned: false, checked: now - 90_000 }
      assert.equal((await check('backup/run', old)).error, undefined)
    })
  })

  it('is only logged if so configured', async () => {
    await using service = await start('warn')
    assert.equal(await advance(service), undefined)
    assert.match(service.logged(), /the Space is not provisioned/)
    assert.equal(await advance(service, { tell: false }), undefined)
    storacha.faults.down = true
    assert.equal(await advance(service), undefined)
  })

  it('is not looked at if so configured', async () => {
    await using service = await start('off')
    storacha.faults.down = true
    assert.equal(await advance(service), undefined)
    assert.doesNotMatch(service.logged(), /provisioned/)
  })
})
