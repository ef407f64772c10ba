import assert from 'node:assert/strict'
import pino from 'pino'
import type { HostRequest } from '../../src/atproto/index.ts'
import { createHosts, HOST_POLICY } from '../../src/service/hosts.ts'
import type { HostsOptions } from '../../src/service/hosts.ts'
import {
  openStores,
  StoreUnavailableError,
  type Stores,
} from '../../src/stores/index.ts'

const SECOND = 1_000
const host = 'pds.example'

const requestOf = (changes: Partial<HostRequest> = {}): HostRequest => ({
  host,
  account: 'did:plc:alice',
  patient: true,
  ...changes,
})

describe('hosts', () => {
  let stores: Stores
  let now: number
  let logs: { msg: string }[]
  /** Requests that the budget of each host has left. */
  let left: number

  beforeEach(async () => {
    stores = await openStores({ path: ':memory:' })
    now = 1_742_140_800_000
    logs = []
    left = Infinity
  })

  afterEach(() => stores[Symbol.asyncDispose]())

  const create = (options: Partial<HostsOptions> = {}) =>
    createHosts({
      store: stores.hosts,
      budget: {
        take: async () => (left-- > 0 ? 0 : 10 * SECOND),
        remaining: () => left,
        spent: () => new Map(),
      },
      waiting: 2,
      time: {
        now: () => now,
        async sleep(ms) {
          now += ms
        },
      },
      logger: pino(
        { level: 'debug' },
        { write: (line: string) => void logs.push(JSON.parse(line)) }
      ),
      policy: { ...HOST_POLICY, failures: 2 },
      ...options,
    })

  const answer = async (
    hosts: ReturnType<typeof create>,
    changes: Partial<HostRequest> = {}
  ) => (await hosts.enter(requestOf(changes))).answered()

  const fail = async (
    hosts: ReturnType<typeof create>,
    changes: Partial<HostRequest> = {}
  ) => (await hosts.enter(requestOf(changes))).failed('it is broken')

  const refusal = async (entering: Promise<unknown>) => {
    let refused: (Error & { retryAfter: number }) | undefined
    await assert.rejects(entering, (error: Error & { retryAfter: number }) => {
      assert.equal(error.name, 'HostUnavailableError')
      refused = error
      return true
    })
    return refused!
  }

  it('keep nothing of a host that answers', async () => {
    const hosts = create()
    for (let i = 0; i < 5; i++) await answer(hosts)
    assert.equal(await stores.hosts.get(host), undefined)
    assert.deepEqual(hosts.snapshot(), [
      { host, remaining: Infinity, state: 'available' },
    ])
  })

  it('leave a host alone that fails again and again, and no other', async () => {
    const hosts = create()
    await fail(hosts)
    await fail(hosts)
    const { message, retryAfter } = await refusal(hosts.enter(requestOf()))
    assert.ok(retryAfter >= 15 && retryAfter <= 30)
    assert.match(message, /^pds\.example failed .* Try again in \d+ seconds\.$/)
    await answer(hosts, { host: 'b.example' })
    const [until] = [...(await hosts.unavailable()).values()]
    assert.equal(Math.ceil((until! - now) / SECOND), retryAfter)
    assert.deepEqual(
      hosts.snapshot().find((each) => each.host === host),
      { host, remaining: Infinity, state: 'failing', until }
    )
  })

  it('tell until when a host is not asked', async () => {
    const spent = new Map<string, number>()
    const hosts = create({
      budget: {
        take: async () => 0,
        remaining: () => undefined,
        spent: () => spent,
      },
    })
    assert.equal(await hosts.unavailableUntil(host), undefined)
    spent.set(host, now + 5 * SECOND)
    assert.equal(await hosts.unavailableUntil(host), now + 5 * SECOND)
    assert.deepEqual(await hosts.unavailable(), spent)
    spent.clear()
    await (await hosts.enter(requestOf())).limited(60)
    assert.equal(await hosts.unavailableUntil(host), now + 60 * SECOND)
    // Another has not heard of the host, and looks.
    assert.equal(await create().unavailableUntil(host), now + 60 * SECOND)
    now += 60 * SECOND
    assert.equal(await hosts.unavailableUntil(host), undefined)
    // Nobody has tried yet.
    assert.deepEqual(await hosts.unavailable(), new Map([[host, now]]))
  })

  it('let one find out whether the host is back', async () => {
    const hosts = create()
    await fail(hosts)
    await fail(hosts)
    now += 30 * SECOND
    const probe = await hosts.enter(requestOf())
    await refusal(hosts.enter(requestOf({ account: 'did:plc:bob' })))
    await probe.answered()
    assert.equal(await stores.hosts.get(host), undefined)
    await answer(hosts)
    assert.deepEqual(
      logs.map(({ msg }) => msg).filter((msg) => msg !== 'a host failed'),
      ['a host is left alone', 'a host is back']
    )
  })

  it('let another find out when the first has left', async () => {
    const hosts = create()
    await fail(hosts)
    await fail(hosts)
    now += 30 * SECOND
    await (await hosts.enter(requestOf())).left()
    await answer(hosts)
    assert.equal(await stores.hosts.get(host), undefined)
  })

  it('share what they know, also with those that come later', async () => {
    const [one, two] = [create(), create()]
    await answer(two)
    await fail(one)
    now += HOST_POLICY.refresh
    await fail(two)
    await refusal(one.enter(requestOf()).then(() => now))
    await refusal(create().enter(requestOf()))
    now += 30 * SECOND
    const probe = await two.enter(requestOf())
    now += HOST_POLICY.refresh
    await refusal(one.enter(requestOf()))
    await probe.answered()
    now += HOST_POLICY.refresh
    await answer(one)
  })

  it('count what one of several does not know yet', async () => {
    const [one, two] = [create(), create()]
    const visits = [
      await one.enter(requestOf()),
      await two.enter(requestOf()),
      await one.enter(requestOf()),
    ]
    await Promise.all(visits.map((visit) => visit.failed('it is broken')))
    assert.equal((await stores.hosts.get(host))?.closures, 1)
  })

  it('leave a host alone for as long as it asks for', async () => {
    const hosts = create()
    const visit = await hosts.enter(requestOf())
    const error = await visit.limited(90)
    assert.equal(error.retryAfter, 90)
    assert.match(error.message, /wants fewer requests\. Try again in 90 s/)
    now += 89 * SECOND
    assert.equal((await refusal(hosts.enter(requestOf()))).retryAfter, 1)
    now += SECOND
    await answer(hosts)
  })

  it('believe no host that one account is what all have to wait for', async () => {
    const hosts = create()
    const fault = async (account: string) =>
      (await hosts.enter(requestOf({ account }))).faulted()
    for (let i = 0; i < 5; i++) await fault('did:plc:mallory')
    await answer(hosts)
    await fault('did:plc:mallory')
    await fault('did:plc:bob')
    await refusal(hosts.enter(requestOf()))
  })

  it('hear of each request once', async () => {
    const hosts = create()
    const visit = await hosts.enter(requestOf())
    await visit.failed('it is broken')
    await visit.failed('it is broken')
    await visit.left()
    assert.equal((await stores.hosts.get(host))?.failures, 1)
  })

  it('have so many requests at the same time, the beginnings first', async () => {
    const hosts = create({ policy: { ...HOST_POLICY, concurrency: 2 } })
    const visits = [
      await hosts.enter(requestOf()),
      await hosts.enter(requestOf()),
    ]
    const order: string[] = []
    const more = ['late', 'early'].map(async (account) => {
      const patient = account === 'late'
      const visit = await hosts.enter(requestOf({ account, patient }))
      order.push(account)
      await visit.answered()
    })
    await answer(hosts, { host: 'b.example' })
    await new Promise((resolve) => setImmediate(resolve))
    assert.deepEqual(order, [])
    await visits[0]!.failed('it is broken')
    await Promise.all(more)
    assert.deepEqual(order, ['early', 'late'])
  })

  it('give the place of somebody who gave up to the next', async () => {
    const hosts = create({ policy: { ...HOST_POLICY, concurrency: 1 } })
    const visit = await hosts.enter(requestOf())
    const controller = new AbortController()
    const entering = hosts.enter(requestOf(), { signal: controller.signal })
    controller.abort(new Error('gave up'))
    await assert.rejects(entering, /gave up/)
    await visit.left()
    await answer(hosts)
  })

  describe('when there are no requests left', () => {
    it('refuse what has not begun', async () => {
      left = 1
      const hosts = create()
      await answer(hosts)
      const { message, retryAfter } = await refusal(
        hosts.enter(requestOf({ patient: false }))
      )
      assert.equal(retryAfter, 10)
      assert.match(message, /as often as it may .* in 10 seconds/)
      // It says nothing about the host.
      assert.equal(await stores.hosts.get(host), undefined)
    })

    it('let what has begun wait for more', async () => {
      left = 0
      const begun = now
      await answer(
        create({
          time: {
            now: () => now,
            async sleep(ms) {
              now += ms
              left = 1
            },
          },
        })
      )
      assert.equal(now - begun, 10 * SECOND)
    })

    it('do not let it wait for ever', async () => {
      left = 0
      const begun = now
      await refusal(create().enter(requestOf()))
      assert.ok(now - begun <= HOST_POLICY.patience)
    })

    it('let no more wait than leave room for other hosts', async () => {
      left = 0
      let woken = Promise.withResolvers<void>()
      const hosts = create({
        waiting: 2,
        time: { now: () => now, sleep: () => woken.promise },
      })
      const waiting = ['alice', 'bob', 'alice'].map((account) =>
        answer(hosts, { account })
      )
      await new Promise((resolve) => setImmediate(resolve))
      await refusal(hosts.enter(requestOf({ account: 'mallory' })))
      left = Infinity
      woken.resolve()
      await Promise.all(waiting)
      left = 0
      woken = Promise.withResolvers<void>()
      const later = answer(hosts, { account: 'mallory' })
      await new Promise((resolve) => setImmediate(resolve))
      assert.ok(left < 0)
      left = 1
      woken.resolve()
      await later
    })

    it('do not go there when the host is left alone meanwhile', async () => {
      left = 0
      const other = create({
        budget: {
          take: async () => 0,
          remaining: () => undefined,
          spent: () => new Map(),
        },
      })
      const hosts = create({
        time: {
          now: () => now,
          async sleep(ms) {
            now += ms
            left = 1
            await (await other.enter(requestOf())).limited(60)
          },
        },
      })
      assert.equal((await refusal(hosts.enter(requestOf()))).retryAfter, 60)
    })
  })

  it('go nowhere blindly when the store does not answer', async () => {
    const get = async () => {
      throw new StoreUnavailableError('the database is away')
    }
    const hosts = create({ store: { ...stores.hosts, get } })
    const refused = await refusal(hosts.enter(requestOf()))
    assert.match(refused.message, /cannot be told just now/)
    assert.ok(refused.cause instanceof StoreUnavailableError)
  })

  it('say when they could not keep what became of a request', async () => {
    const change = async () => {
      throw new StoreUnavailableError('the database is away')
    }
    const hosts = create({ store: { ...stores.hosts, change } })
    await fail(hosts)
    assert.match(logs.at(-1)!.msg, /could not be kept/)
    await answer(hosts)
  })

  it('forget hosts after a day without a word', async () => {
    const hosts = create()
    await fail(hosts)
    now += 23 * 60 * 60 * SECOND
    await answer(hosts, { host: 'b.example' })
    assert.ok(await stores.hosts.get(host))
    now += 2 * 60 * 60 * SECOND
    await answer(hosts, { host: 'b.example' })
    assert.equal(await stores.hosts.get(host), undefined)
  })
})
