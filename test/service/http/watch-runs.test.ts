import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import { join } from 'node:path'
import type { Delegation, Signer } from '@ucanto/interface'
import { Message } from '@ucanto/core'
import { CAR } from '@ucanto/transport'
import { CID } from 'multiformats/cid'
import { Backup, Clock } from '../../../src/capabilities/index.ts'
import {
  followRuns,
  Revocation,
  type WatchOptions,
} from '../../../src/client/index.ts'
import type { StatusInput } from '../../../src/client/backup.ts'
import { systemTime } from '../../../src/node/index.ts'
import { RUNNER_POLICY } from '../../../src/service/runner.ts'
import { openStores, type Stores } from '../../../src/stores/index.ts'
import {
  allow,
  blockOf,
  createActors,
  createFolder,
  seconds,
  startTestService,
  until,
  type Space,
  type TestService,
} from '../harness.ts'

/** Time in which the service looks a hundred times as often. */
const time = {
  now: () => systemTime.now(),
  sleep: (ms: number, signal?: AbortSignal) =>
    systemTime.sleep(ms / 100, signal),
}

/** What is queued stays queued: the tests say what becomes of it. */
const policy = { ...RUNNER_POLICY, poll: 1e9 }

const ALICE = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const OTHER = 'did:plc:vwzwgnygau7ed7b7wt5ux7y2'

describe('following runs', () => {
  let resources: AsyncDisposableStack
  let service: TestService
  /** Those of the service, as another process has them. */
  let stores: Stores
  let folder: string
  let alice: Signer
  let mallory: Signer
  let space: Space
  let proof: Delegation
  let count = 0

  beforeEach(async () => {
    resources = new AsyncDisposableStack()
    ;({ alice, mallory, space } = await createActors())
    proof = await allow(space, alice, ['backup/status'])
    folder = resources.use(await createFolder()).path
    service = resources.use(await start())
    stores = resources.use(
      await openStores({ path: join(folder, 'service.sqlite') })
    )
  })

  afterEach(() => resources.disposeAsync())

  const start = (flags = {}) =>
    startTestService({ dataFolder: folder, ...flags }, {}, { time, policy })

  /** Queues a run. */
  const create = async (account = ALICE, of = space.did()) => {
    const { cid } = await blockOf({ run: ++count })
    const { run } = await stores.runs.create({
      id: cid.toString(),
      space: of,
      account,
      agent: alice.did(),
      include: [],
      authority: new Uint8Array([1]),
      created: Date.now(),
    })
    return run.id
  }

  /** Lets the run that has waited the longest begin. */
  const claim = async (id: string) => {
    const run = await stores.runs.claim({
      owner: id,
      now: Date.now(),
      lease: 60_000,
    })
    assert.equal(run?.id, id)
  }

  const progress = (id: string, blobs: number) =>
    stores.runs.heartbeat(id, id, {
      leaseExpiration: Date.now() + 60_000,
      progress: { stage: 'blobs', blobs },
      now: Date.now(),
    })

  const finish = (id: string, message = 'no answer') =>
    stores.runs.finish(id, id, {
      state: 'failed',
      error: { name: 'HostError', message },
      now: Date.now(),
    })

  const following = (
    input: Pick<StatusInput, 'run' | 'account'> = {},
    options: { issuer?: Signer; of?: Space } & Partial<WatchOptions> = {}
  ) => {
    const { issuer = alice, of = space, ...rest } = options
    const config = { issuer, with: of.did(), proofs: [proof] }
    return followRuns(config, input, { ...service, ...rest })
  }

  const next = async (runs: ReturnType<typeof following>) => {
    const { value } = await runs.next()
    assert.ok(value)
    const { run, state, progress } = value
    return [run.toString(), state, ...(progress ? [progress.blobs] : [])]
  }

  it('tells how they are at once, and each change', async () => {
    const first = await create()
    const runs = following()
    assert.deepEqual(await next(runs), [first, 'queued'])
    await claim(first)
    assert.deepEqual(await next(runs), [first, 'running'])
    await progress(first, 1)
    assert.deepEqual(await next(runs), [first, 'running', 1])
    const second = await create(OTHER)
    assert.deepEqual(await next(runs), [second, 'queued'])
    await finish(first)
    assert.deepEqual(await next(runs), [first, 'failed', 1])
    await claim(second)
    await finish(second)
    const { value } = await runs.next()
    assert.equal(value?.run.toString(), second)
    assert.equal(value.error?.name, 'HostError')
    await runs.return()
  })

  it('is silent about runs that are only kept', async () => {
    const id = await create()
    await claim(id)
    await progress(id, 1)
    const runs = following()
    assert.deepEqual(await next(runs), [id, 'running', 1])
    const following_ = next(runs)
    for (let i = 0; i < 5; i++) {
      await progress(id, 1)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    await progress(id, 2)
    assert.deepEqual(await following_, [id, 'running', 2])
    await runs.return()
  })

  it('begins with those before, the oldest first', async () => {
    const ids: string[] = []
    for (let i = 0; i < 3; i++) {
      const id = await create()
      ids.push(id)
      await claim(id)
      await finish(id)
      await new Promise((resolve) => setTimeout(resolve, 2))
    }
    const runs = following()
    for (const id of ids) assert.deepEqual(await next(runs), [id, 'failed'])
    await runs.return()
  })

  it('of one ends with it', async () => {
    const id = await create()
    await create(OTHER)
    const runs = following({ run: CID.parse(id) })
    assert.deepEqual(await next(runs), [id, 'queued'])
    await claim(id)
    assert.deepEqual(await next(runs), [id, 'running'])
    await finish(id)
    assert.deepEqual(await next(runs), [id, 'failed'])
    assert.equal((await runs.next()).done, true)
    // And tells the end of one that is over.
    const late = following({ run: CID.parse(id) })
    assert.deepEqual(await next(late), [id, 'failed'])
    assert.equal((await late.next()).done, true)
  })

  it('ends the answer of the service with the run', async () => {
    const id = await create()
    await claim(id)
    await finish(id)
    const response = await ask(await header({ run: CID.parse(id) }))
    const text = await response.text()
    assert.equal(response.headers.get('content-type'), 'text/event-stream')
    assert.match(text, /^event: run\ndata: \{.*"state":"failed".*\}\n\n$/)
  })

  it('of an account says nothing of others', async () => {
    const one = await create()
    const other = await create(OTHER)
    const runs = following({ account: OTHER })
    assert.deepEqual(await next(runs), [other, 'queued'])
    await claim(one)
    await finish(one)
    await claim(other)
    assert.deepEqual(await next(runs), [other, 'running'])
    await runs.return()
  })

  it('says nothing of other Spaces', async () => {
    const theirs = (await createActors()).space
    const elsewhere = await create(ALICE, theirs.did())
    const id = await create()
    const runs = following()
    assert.deepEqual(await next(runs), [id, 'queued'])
    await claim(elsewhere)
    await claim(id)
    assert.deepEqual(await next(runs), [id, 'running'])
    await runs.return()
    await assert.rejects(next(following({ run: CID.parse(elsewhere) })), {
      name: 'ServiceUnreachableError',
      message: /404 \(RunNotFound/,
    })
  })

  it('ends when the proof is revoked in the middle', async () => {
    const id = await create()
    await claim(id)
    const runs = following()
    await next(runs)
    await Revocation.revoke({ issuer: space }, proof, service)
    await assert.rejects(
      async () => {
        for await (const _ of runs) await progress(id, Math.random())
      },
      { name: 'WatchRefusedError', message: /Unauthorized: .*revoked/s }
    )
  })

  it('ends when the proof expires', async () => {
    const expiration = seconds(2)
    proof = await allow(space, alice, ['backup/status'], { expiration })
    await create()
    const runs = following()
    await next(runs)
    await assert.rejects(runs.next(), {
      name: 'WatchRefusedError',
      message: /expired/,
    })
  })

  it('goes on when the service is there again', async () => {
    const id = await create()
    const reconnect = { minDelay: 10, maxDelay: 100, failures: 1000 }
    const runs = following({}, { reconnect })
    await next(runs)
    const follows = next(runs)
    await service[Symbol.asyncDispose]()
    await claim(id)
    await progress(id, 7)
    const { port } = service.url
    resources.use(await start({ port }))
    assert.deepEqual(await follows, [id, 'running', 7])
    await runs.return()
  })

  it('ends with the service, where it is not to ask anew', async () => {
    await create()
    const runs = following({}, { reconnect: false })
    await next(runs)
    await service[Symbol.asyncDispose]()
    assert.equal((await runs.next()).done, true)
  })

  it('ends when the agent has seen enough', async () => {
    const stop = new AbortController()
    await create()
    const runs = following({}, { signal: stop.signal })
    await next(runs)
    stop.abort(new Error('enough'))
    await assert.rejects(runs.next(), /enough/)
  })

  it('keeps quiet connections alive', async () => {
    const response = await ask(await header({}))
    const decoder = new TextDecoder()
    for await (const chunk of response.body!) {
      assert.equal(decoder.decode(chunk as Uint8Array), ':\n\n')
      break
    }
  })

  it('takes so many of a Space, and another when one has left', async () => {
    const id = await create()
    const all = Array.from({ length: 20 }, () => following())
    for (const runs of all) assert.deepEqual(await next(runs), [id, 'queued'])
    const refused = {
      name: 'ServiceUnreachableError',
      message: /503 \(TooManyWatchers: .*try again later/,
    }
    await assert.rejects(next(following()), refused)
    // Another Space does not suffer.
    const theirs = (await createActors()).space
    const there = await create(OTHER, theirs.did())
    const other = following({}, { issuer: theirs, of: theirs })
    assert.deepEqual(await next(other), [there, 'queued'])
    await other.return()

    await all.pop()!.return()
    const later = await until(async () => {
      const runs = following()
      return next(runs).then(
        () => runs,
        () => undefined
      )
    })
    for (const runs of [later, ...all]) await runs.return()
  })

  it('keeps no place for who asks for the head alone', async () => {
    const id = await create()
    const authorization = await header({})
    for (let i = 0; i < 25; i++) {
      const response = await fetch(
        new URL(`/backup/${space.did()}/events`, service.url),
        { method: 'HEAD', headers: { authorization } }
      )
      assert.equal(response.status, 200)
      assert.equal(response.headers.get('content-type'), 'text/event-stream')
    }
    const runs = following()
    assert.deepEqual(await next(runs), [id, 'queued'])
    await runs.return()
  })

  it('cuts off who takes nothing, and nobody else', async () => {
    const id = await create()
    const slow = request(
      new URL(`/backup/${space.did()}/events`, service.url),
      { headers: { authorization: await header({}) } }
    ).end()
    const [response] = (await once(slow, 'response')) as [IncomingMessage]
    response.pause()
    for (const each of [slow, response]) each.on('error', () => {})
    // More than what the system keeps for a connection.
    const filling = 'x'.repeat(4 * 1024 * 1024)
    await claim(id)
    for (let i = 0; i < 6; i++) {
      await stores.runs.heartbeat(id, id, {
        leaseExpiration: Date.now() + 60_000,
        progress: { stage: `${filling}${i}` },
        now: Date.now(),
      })
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    await progress(id, 1)
    const others = Array.from({ length: 19 }, () => following())
    for (const runs of others) {
      assert.deepEqual(await next(runs), [id, 'running', 1])
    }
    // Its place is free when it is gone.
    const last = await until(async () => {
      const runs = following()
      return next(runs).then(
        () => runs,
        () => undefined
      )
    })
    response.resume()
    await assert.rejects(once(response, 'end'), { code: 'ECONNRESET' })
    await progress(id, 2)
    for (const runs of [last, ...others]) {
      assert.deepEqual(await next(runs), [id, 'running', 2])
      await runs.return()
    }
  })

  const header = async (
    nb: object,
    {
      can = Backup.status,
      issuer = space,
      to = space.did(),
      invocations = 1,
    }: {
      can?: { invoke: unknown }
      issuer?: Signer
      to?: string
      invocations?: number
    } = {}
  ) => {
    const all: object[] = []
    for (let i = 0; i < invocations; i++) {
      all.push(
        await (can as typeof Backup.status)
          .invoke({
            issuer,
            audience: service.connection.id,
            with: to as `did:key:${string}`,
            nb,
            nonce: `${i}`,
            expiration: seconds(60),
          })
          .delegate()
      )
    }
    const message = await Message.build({ invocations: all as never })
    const { body } = CAR.request.encode(message)
    return `UCAN ${Buffer.from(body).toString('base64url')}`
  }

  const ask = (authorization?: string) =>
    fetch(new URL(`/backup/${space.did()}/events`, service.url), {
      headers: authorization === undefined ? {} : { authorization },
    })

  describe('is refused', () => {
    it('to who may not', async () => {
      await create()
      await assert.rejects(next(following({}, { issuer: mallory })), {
        name: 'ServiceUnreachableError',
        message: /403 \(Unauthorized/,
      })
    })

    it('beyond what the proof is for', async () => {
      const id = await create(OTHER)
      proof = await allow(space, alice, ['backup/status'], {
        nb: { account: ALICE },
      })
      for (const input of [{}, { account: OTHER }, { run: CID.parse(id) }]) {
        await assert.rejects(next(following(input as never)), /Unauthorized/)
      }
      const own = await create()
      const runs = following({ account: ALICE })
      assert.deepEqual(await next(runs), [own, 'queued'])
      await runs.return()
    })

    for (const [name, authorization, answer] of [
      ['with nothing', async () => undefined, '401 Unauthorized'],
      ['with another scheme', async () => 'Bearer abc', '401 Unauthorized'],
      ['with what is no CAR', async () => 'UCAN abcd', '400 InvalidBody'],
      [
        'with an invocation of something else',
        () => header({}, { can: Clock.head }),
        '400 InvalidBody',
      ],
      [
        'with an invocation for another Space',
        () => header({}, { to: alice.did() }),
        '400 InvalidBody',
      ],
      [
        'with several invocations',
        () => header({}, { invocations: 2 }),
        '400 InvalidBody',
      ],
      [
        'with an invocation of mallory',
        () => header({}, { issuer: mallory }),
        '403 Unauthorized',
      ],
    ] as const) {
      it(name, async () => {
        const response = await ask(await authorization())
        const { name } = (await response.json()) as { name: string }
        assert.equal(`${response.status} ${name}`, answer)
      })
    }
  })
})
