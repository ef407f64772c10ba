import assert from 'node:assert/strict'
import type { Signer } from '@ucanto/interface'
import { ClockError } from '../../src/backup/index.ts'
import { createClock } from '../../src/client/clock.ts'
import { Clock, connect } from '../../src/client/index.ts'
import {
  allow,
  createActors,
  eventOf,
  seconds,
  startTestService,
  type Space,
  type TestService,
} from '../service/harness.ts'

describe('client of the clock', () => {
  let service: TestService
  let alice: Signer
  let mallory: Signer
  let space: Space

  before(async () => {
    service = await startTestService()
  })

  after(() => service[Symbol.asyncDispose]())

  beforeEach(async () => {
    ;({ alice, mallory, space } = await createActors())
  })

  const configOf = async (issuer = alice) => ({
    issuer,
    with: space.did(),
    proofs: [await allow(space, alice, ['clock/*'])],
  })

  it('asks for the head and advances it', async () => {
    const config = await configOf()
    const event = await eventOf('event')
    const options = { connection: service.connection, nonce: 'n' }
    const advanced = await Clock.advance(config, event.cid, {
      ...options,
      blocks: [event],
    })
    assert.deepEqual(advanced.ok?.head.map(String), [event.cid.toString()])
    const { ok } = await Clock.head(config, options)
    assert.deepEqual(ok, advanced.ok)
  })

  it('says until when an invocation is valid', async () => {
    const config = await configOf()
    const event = await eventOf('event')
    const options = {
      connection: service.connection,
      expiration: seconds(-10),
    }
    const { error: head } = await Clock.head(config, options)
    assert.match(head!.message, /expired/)
    const { error: advance } = await Clock.advance(config, event.cid, {
      ...options,
      blocks: [event],
    })
    assert.match(advance!.message, /expired/)
  })

  it('asks whom it is told to', async () => {
    const config = { ...(await configOf()), audience: mallory }
    const { error } = await Clock.head(config, service)
    assert.equal(error?.name, 'InvalidAudience')
  })

  describe('createClock', () => {
    it('is a clock as backups use it', async () => {
      const clock = createClock(await configOf(), service)
      assert.deepEqual(await clock.head(), [])
      const event = await eventOf('event')
      const head = await clock.advance(event.cid, [event])
      assert.deepEqual(head.map(String), [event.cid.toString()])
      assert.deepEqual(await clock.head(), head)
    })

    it('throws what the service refuses', async () => {
      const clock = createClock(await configOf(mallory), service)
      const event = await eventOf('event')
      for (const [asking, message] of [
        [clock.head(), /^reading the head of the clock was refused: Unauth/],
        [
          clock.advance(event.cid, [event]),
          /^advancing the clock was refused: Unauthorized: /,
        ],
      ] as const) {
        await assert.rejects(asking, (error) => {
          assert.ok(error instanceof ClockError)
          assert.match(error.message, message)
          assert.ok(error.message.length < 600)
          assert.ok(error.cause)
          return true
        })
      }
    })

    it('names why the service did not take an event', async () => {
      const clock = createClock(await configOf(), service)
      const event = await eventOf('event')
      await assert.rejects(clock.advance(event.cid, []), {
        name: 'ClockError',
        message: /MissingBlock/,
      })
    })

    it('throws when there is no service', async () => {
      const clock = createClock(await configOf(), {
        connection: connect({
          url: new URL('http://127.0.0.1:9'),
          did: service.did,
        }),
      })
      await assert.rejects(clock.head(), {
        name: 'ClockError',
        message:
          /^reading the head of the clock failed: http:\/\/127\.0\.0\.1:9\/ cannot be reached; check/,
      })
    })

    it('asks nothing when it was stopped', async () => {
      const clock = createClock(await configOf(), service)
      const event = await eventOf('event')
      const signal = AbortSignal.abort(new Error('enough'))
      for (const asking of [
        clock.head({ signal }),
        clock.advance(event.cid, [event], { signal }),
      ]) {
        await assert.rejects(asking, { message: 'enough' })
      }
      assert.deepEqual(await clock.head(), [])
    })
  })
})
