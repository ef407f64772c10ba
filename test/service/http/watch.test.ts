import assert from 'node:assert/strict'
import type { Delegation, Signer } from '@ucanto/interface'
import { Message } from '@ucanto/core'
import { CAR } from '@ucanto/transport'
import { Clock as Capabilities } from '../../../src/capabilities/index.ts'
import {
  Clock,
  Revocation,
  watch,
  type WatchOptions,
} from '../../../src/client/index.ts'
import { systemTime } from '../../../src/node/index.ts'
import {
  allow,
  createActors,
  createFolder,
  eventOf,
  startTestService,
  type Space,
  type TestService,
} from '../harness.ts'

/** Time in which the service looks a hundred times as often. */
const hasty = {
  now: () => systemTime.now(),
  sleep: (ms: number, signal?: AbortSignal) =>
    systemTime.sleep(ms / 100, signal),
}

describe('watching a clock', () => {
  let service: TestService
  let alice: Signer
  let mallory: Signer
  let space: Space
  let proof: Delegation

  beforeEach(async () => {
    ;({ alice, mallory, space } = await createActors())
    proof = await allow(space, alice, ['clock/*'])
    service = await startTestService({}, {}, { time: hasty })
  })

  afterEach(() => service[Symbol.asyncDispose]())

  const advance = async (name: string, at = service) => {
    const event = await eventOf(name)
    const { error } = await Clock.advance(
      { issuer: space, with: space.did() },
      event.cid,
      { connection: at.connection, blocks: [event] }
    )
    assert.equal(error, undefined)
    return event.cid.toString()
  }

  const watching = (
    options: { issuer?: Signer } & Partial<WatchOptions> = {}
  ) => {
    const { issuer = alice, ...rest } = options
    return watch(
      { issuer, with: space.did(), proofs: [proof] },
      { ...service, ...rest }
    )
  }

  const next = async (heads: ReturnType<typeof watching>) => {
    const { value } = await heads.next()
    assert.ok(value)
    return value.map(String)
  }

  it('gives the head at once, and each that follows', async () => {
    const heads = watching()
    assert.deepEqual(await next(heads), [])
    const one = await advance('one')
    assert.deepEqual(await next(heads), [one])
    const two = await advance('two')
    assert.deepEqual(await next(heads), [one, two].sort())
    await heads.return()
  })

  it('takes proofs that are longer than most headers', async () => {
    proof = await allow(space, alice, ['clock/*'], {
      nb: { filling: 'x'.repeat(16 * 1024) },
    })
    const heads = watching()
    assert.deepEqual(await next(heads), [])
    await heads.return()
  })

  it('sees what another process takes', async () => {
    await using folder = await createFolder()
    const flags = { dataFolder: folder.path }
    await using first = await startTestService(flags, {}, { time: hasty })
    await using second = await startTestService(flags)
    const heads = watch(
      { issuer: alice, with: space.did(), proofs: [proof] },
      first
    )
    assert.deepEqual(await next(heads), [])
    const one = await advance('one', second)
    assert.deepEqual(await next(heads), [one])
    await heads.return()
  })

  it('ends when the proof is revoked', async () => {
    const heads = watching()
    await next(heads)
    await Revocation.revoke({ issuer: space }, proof, service)
    await assert.rejects(heads.next(), {
      name: 'WatchRefusedError',
      message: /Unauthorized: .*revoked/s,
    })
  })

  it('asks anew when the invocation expires', async () => {
    const heads = watching({ lifetime: 2 })
    await next(heads)
    const following = next(heads)
    await new Promise((resolve) => setTimeout(resolve, 2500))
    const one = await advance('one')
    assert.deepEqual(await following, [one])
    await heads.return()
  })

  it('ends when the invocation expires, where it is not to ask anew', async () => {
    const heads = watching({ lifetime: 2, reconnect: false })
    await next(heads)
    await assert.rejects(heads.next(), {
      name: 'WatchRefusedError',
      message: /expired/,
    })
  })

  it('ends when the proof expires', async () => {
    const expiration = Math.floor(Date.now() / 1000) + 2
    proof = await allow(space, alice, ['clock/*'], { expiration })
    const heads = watching()
    await next(heads)
    await assert.rejects(heads.next(), {
      name: 'WatchRefusedError',
      message: /expired/,
    })
  })

  it('goes on when the service is there again', async () => {
    await using folder = await createFolder()
    const flags = { dataFolder: folder.path }
    const first = await startTestService(flags, {}, { time: hasty })
    const reconnect = { minDelay: 10, maxDelay: 100, failures: 1000 }
    const heads = watch(
      { issuer: alice, with: space.did(), proofs: [proof] },
      { ...first, reconnect }
    )
    await next(heads)
    const one = await advance('one', first)
    assert.deepEqual(await next(heads), [one])
    const following = next(heads)
    await first[Symbol.asyncDispose]()
    const { port } = first.url
    await using again = await startTestService({ ...flags, port })
    const two = await advance('two', again)
    assert.deepEqual(await following, [one, two].sort())
    await heads.return()
  })

  it('gives up when the service does not come back', async () => {
    const reconnect = { minDelay: 1, maxDelay: 2, failures: 3 }
    const heads = watching({ reconnect })
    await next(heads)
    await service[Symbol.asyncDispose]()
    await assert.rejects(heads.next(), { name: 'ServiceUnreachableError' })
  })

  it('ends with the service, where it is not to ask anew', async () => {
    const heads = watching({ reconnect: false })
    await next(heads)
    await service[Symbol.asyncDispose]()
    assert.equal((await heads.next()).done, true)
  })

  it('ends when the agent has seen enough', async () => {
    const stop = new AbortController()
    const heads = watch(
      { issuer: alice, with: space.did(), proofs: [proof] },
      { ...service, signal: stop.signal }
    )
    await next(heads)
    stop.abort(new Error('enough'))
    await assert.rejects(heads.next(), /enough|abort/)
    await advance('one')
  })

  it('is refused without a proof', async () => {
    await assert.rejects(next(watching({ issuer: mallory })), {
      name: 'ServiceUnreachableError',
      message: /403 \(Unauthorized/,
    })
  })

  describe('is refused with', () => {
    const header = async (
      can: 'head' | 'advance',
      { to = space.did(), count = 1 } = {}
    ) => {
      const invocations: object[] = []
      for (let index = 0; index < count; index++) {
        invocations.push(
          await Capabilities[can]
            .invoke({
              issuer: space,
              audience: service.connection.id,
              with: to,
              nb: { event: proof.cid },
              nonce: `${index}`,
            } as never)
            .delegate()
        )
      }
      const message = await Message.build({ invocations: invocations as never })
      const { body } = CAR.request.encode(message)
      return `UCAN ${Buffer.from(body).toString('base64url')}`
    }

    const ask = async (authorization?: string) => {
      const response = await fetch(
        new URL(`/clock/${space.did()}/events`, service.url),
        { headers: authorization === undefined ? {} : { authorization } }
      )
      const { name } = (await response.json()) as { name: string }
      return `${response.status} ${name}`
    }

    for (const [name, authorization, answer] of [
      ['nothing', async () => undefined, '401 Unauthorized'],
      ['another scheme', async () => 'Bearer abc', '401 Unauthorized'],
      ['what is no base64url', async () => 'UCAN a+b', '401 Unauthorized'],
      ['what is no CAR', async () => 'UCAN abcd', '400 InvalidBody'],
      [
        'an invocation of something else',
        () => header('advance'),
        '400 InvalidBody',
      ],
      [
        'an invocation for another Space',
        () => header('head', { to: alice.did() as never }),
        '400 InvalidBody',
      ],
      [
        'several invocations',
        () => header('head', { count: 2 }),
        '400 InvalidBody',
      ],
      ['no invocation', () => header('head', { count: 0 }), '400 InvalidBody'],
    ] as const) {
      it(name, async () => {
        assert.equal(await ask(await authorization()), answer)
      })
    }
  })
})
