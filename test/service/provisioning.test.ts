import assert from 'node:assert/strict'
import type { Delegation, Signer } from '@ucanto/interface'
import { DID } from '@ucanto/core'
import { Clock } from '../../src/client/index.ts'
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
      { provisioningPolicy: policy, provisioningMaxAge: '60' },
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
