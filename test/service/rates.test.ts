import assert from 'node:assert/strict'
import type { Delegation, Signer } from '@ucanto/interface'
import { Clock } from '../../src/client/index.ts'
import {
  allow,
  createActors,
  startTestService,
  type Space,
  type TestService,
} from './harness.ts'

describe('rates', () => {
  let alice: Signer
  let bob: Signer
  let mallory: Signer
  let space: Space

  beforeEach(async () => {
    ;({ alice, bob, mallory, space } = await createActors())
  })

  const head = async (
    { connection }: TestService,
    issuer: Signer,
    proofs?: Delegation[],
    of = space
  ) => {
    const { error } = await Clock.head(
      { issuer, with: of.did(), ...(proofs ? { proofs } : {}) },
      { connection, nonce: crypto.randomUUID() }
    )
    return error as
      { name: string; message: string; retryAfter?: number } | undefined
  }

  const proofFor = async (agent: Signer) => [
    await allow(space, agent, ['clock/head']),
  ]

  it('limit each agent', async () => {
    await using service = await startTestService({ issuerRate: '3' })
    for (let i = 0; i < 3; i++) {
      assert.equal(await head(service, alice, await proofFor(alice)), undefined)
    }
    const refused = await head(service, alice, await proofFor(alice))
    assert.equal(refused?.name, 'RateLimited')
    assert.match(refused.message, /more than 3 .* this agent; try again in/)
    assert.ok(
      Number(refused.retryAfter) > 0 && Number(refused.retryAfter) <= 60
    )
    assert.equal(await head(service, bob, await proofFor(bob)), undefined)
  })

  it('limit each Space', async () => {
    await using service = await startTestService({ spaceRate: '2' })
    assert.equal(await head(service, alice, await proofFor(alice)), undefined)
    assert.equal(await head(service, bob, await proofFor(bob)), undefined)
    const refused = await head(service, space)
    assert.equal(refused?.name, 'RateLimited')
    assert.match(refused.message, /this Space/)
    const { space: other } = await createActors()
    assert.equal(await head(service, other, undefined, other), undefined)
  })

  it('are not used up by those who may do nothing', async () => {
    await using service = await startTestService({
      issuerRate: '1',
      spaceRate: '1',
    })
    for (let i = 0; i < 3; i++) {
      assert.equal((await head(service, mallory))?.name, 'Unauthorized')
    }
    assert.equal(await head(service, alice, await proofFor(alice)), undefined)
  })

  it('may be left open', async () => {
    await using service = await startTestService({
      issuerRate: '0',
      spaceRate: '0',
    })
    for (let i = 0; i < 5; i++) {
      assert.equal(await head(service, space), undefined)
    }
  })
})
