import assert from 'node:assert/strict'
import type { Signer } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import { connect } from '@ucanto/client'
import { CAR } from '@ucanto/transport'
import pino from 'pino'
import {
  createSha256,
  DEFAULT_LIMITS,
  HostError,
  createMemorySpool,
  type IdentityResolver,
  type Progress,
} from '../../src/backup/index.ts'
import { Backup } from '../../src/capabilities/index.ts'
import { systemTime } from '../../src/node/index.ts'
import { encodeDelegations } from '../../src/service/authority.ts'
import {
  RUNNER_POLICY,
  startRunner,
  type Runner,
  type RunnerContext,
} from '../../src/service/runner.ts'
import { DecodeError } from '../../src/space/index.ts'
import {
  openStores,
  StoreUnavailableError,
  type RunRequest,
  type RunStore,
  type Stores,
} from '../../src/stores/index.ts'
import { blockOf, createFolder, until } from './harness.ts'

/** What a runner does for a run, in place of looking its account up. */
type Resolve = IdentityResolver['resolve']

const POLICY = {
  ...RUNNER_POLICY,
  lease: 300,
  heartbeat: 100,
  progress: 20,
  poll: 30,
  grace: 50,
}

const never: Resolve = (_account, { signal } = {}) =>
  new Promise((_resolve, reject) => {
    signal?.addEventListener('abort', () => reject(signal.reason as Error))
  })

describe('runner', () => {
  let resources: AsyncDisposableStack
  let stores: Stores
  let agent: Signer
  let logs: { msg: string; err?: { message: string } }[]
  let runs: number

  beforeEach(async () => {
    resources = new AsyncDisposableStack()
    stores = resources.use(await openStores({ path: ':memory:' }))
    agent = await ed25519.generate()
    logs = []
    runs = 0
  })

  afterEach(() => resources.disposeAsync())

  const start = (
    resolve: Resolve,
    {
      runs: overrides = {},
      ...options
    }: Partial<Omit<RunnerContext, 'stores'>> & {
      runs?: Partial<RunStore>
      stores?: Stores
    } = {}
  ): Runner => {
    const used = options.stores ?? stores
    const runner = startRunner({
      id: agent,
      agent,
      time: systemTime,
      logger: pino(
        { level: 'debug' },
        { write: (line: string) => void logs.push(JSON.parse(line)) }
      ),
      // The clock never answers: whatever ends a run is said by `resolve`.
      connection: () =>
        connect({
          id: agent,
          codec: CAR.outbound,
          channel: { request: () => new Promise<never>(() => {}) },
        }),
      concurrency: 4,
      policy: POLICY,
      identities: { resolve },
      accounts: {} as never,
      uploadService: {
        url: new URL('http://127.0.0.1:9'),
        did: 'did:web:nobody.example',
        receiptsUrl: new URL('http://127.0.0.1:9/receipt/'),
      },
      gateways: [],
      fetch: () => assert.fail(),
      foreignFetch: () => assert.fail(),
      createSpool: createMemorySpool,
      createSha256,
      limits: DEFAULT_LIMITS,
      ...options,
      stores: { ...used, runs: { ...used.runs, ...overrides } },
    })
    resources.defer(() => runner.drain(0))
    return runner
  }

  /** Queues a run. */
  const create = async (
    store: Stores = stores,
    changes: Partial<RunRequest> = {}
  ) => {
    const { cid } = await blockOf({ run: ++runs })
    const account = `did:plc:${runs}` as const
    const task = await Backup.perform.delegate({
      issuer: agent,
      audience: agent,
      with: agent.did(),
      nb: {
        space: agent.did() as `did:key:${string}`,
        account,
        cause: cid,
      },
      expiration: Infinity,
    })
    const { run } = await store.runs.create({
      id: task.cid.toString(),
      space: agent.did(),
      account,
      agent: agent.did(),
      include: ['blobs'],
      authority: encodeDelegations([task]),
      created: runs,
      ...changes,
    })
    return run.id
  }

  /** Accounts are where their name says; their runs go on for ever. */
  const named: Resolve = async (account) => ({
    did: account as `did:plc:${string}`,
    pds: new URL(`https://${account.split(/[:-]/)[2]}.test`),
    signingKey: 'did:key:nobody',
    previousSigningKeys: [],
    document: '{}',
  })

  const get = async (id: string) => {
    const run = await stores.runs.get(id)
    assert.ok(run)
    return run
  }

  const ended = (id: string) =>
    until(async () => {
      const run = await get(id)
      return /done|failed/.test(run.state) && run
    })

  const logged = (message: string) =>
    until(() => logs.find(({ msg }) => msg === message))

  const failing =
    (error: Error): Resolve =>
    async () => {
      throw error
    }

  it('takes what an earlier process left, and what comes', async () => {
    const first = await create()
    const runner = start(failing(new HostError('no answer')))
    assert.equal((await ended(first)).state, 'failed')
    const second = await create()
    runner.kick()
    assert.equal((await ended(second)).state, 'failed')
  })

  it('finds by itself what others queued', async () => {
    start(failing(new HostError('no answer')))
    await new Promise((resolve) => setTimeout(resolve, 10))
    assert.equal((await ended(await create())).state, 'failed')
  })

  it('works on as many runs at once as it is told to', async () => {
    const ids = [await create(), await create(), await create()]
    const doors = new Map<string, () => void>()
    let most = 0
    start(
      (account) =>
        new Promise((_resolve, reject) => {
          doors.set(account, () => {
            doors.delete(account)
            reject(new HostError('no answer'))
          })
          most = Math.max(most, doors.size)
        }),
      { concurrency: 2 }
    )
    await until(() => doors.size === 2)
    assert.deepEqual(
      await Promise.all(ids.map(async (id) => (await get(id)).state)),
      ['running', 'running', 'queued']
    )
    doors.get('did:plc:1')!()
    await until(() => doors.has('did:plc:3'))
    assert.equal((await ended(ids[0]!)).state, 'failed')
    for (const open of doors.values()) open()
    for (const id of ids) await ended(id)
    assert.equal(most, 2)
  })

  describe('gives a host', () => {
    /** Runs of an account each, on the hosts that are named. */
    const createOn = async (...hosts: string[]) => {
      const ids: string[] = []
      for (const host of hosts) {
        const account = `did:plc:${host}-${runs}`
        ids.push(await create(stores, { account }))
      }
      return ids
    }
    const states = async (ids: string[]) =>
      Promise.all(ids.map(async (id) => (await get(id)).state))
    const running = async (ids: string[]) =>
      (await states(ids)).filter((state) => state === 'running').length
    const settled = () =>
      new Promise((resolve) => setTimeout(resolve, POLICY.poll * 3))

    it('half of the places, and to the next one half of the rest', async () => {
      const slow = await createOn('one', 'one', 'one', 'one', 'one')
      const runner = start(named)
      await until(async () => (await running(slow)) === 2)
      await settled()
      assert.equal(await running(slow), 2)
      const late = await createOn('two', 'two', 'two')
      await until(async () => (await running(late)) === 1)
      await settled()
      assert.equal(await running(late), 1)
      const other = await createOn('three')
      await until(async () => (await running(other)) === 1)
      await settled()
      assert.equal(runner.active, 4)
      assert.equal(await running(slow), 2)
      for (const id of [...slow, ...late, ...other]) {
        const { attempts, state } = await get(id)
        assert.equal(attempts, state === 'running' ? 1 : 0)
      }
    })

    it('what others leave, as soon as there is room again', async () => {
      let open: () => void
      const door = new Promise<void>((resolve) => (open = resolve))
      const ids = await createOn('one', 'one', 'one')
      const runner = start(
        async (account, options) => {
          if (account.endsWith('-0')) {
            await door
            throw new HostError('no answer')
          }
          return named(account, options)
        },
        { concurrency: 2 }
      )
      await until(async () => (await running(ids.slice(1))) === 1)
      open!()
      await ended(ids[0]!)
      await settled()
      assert.equal(runner.active, 1)
      assert.equal(await running(ids.slice(1)), 1)
    })

    it('the only place there is', async () => {
      const ids = await createOn('one', 'two')
      start(named, { concurrency: 1 })
      await until(async () => (await running(ids)) === 1)
      assert.deepEqual(await states(ids), ['running', 'queued'])
    })

    it('no more places when accounts of it are known already', async () => {
      const ids = await createOn('one', 'one', 'one')
      for (const id of ids) {
        await stores.runs.claim({ owner: id, now: 0, lease: 1 })
        await stores.runs.locate(id, id, 'one.test')
      }
      for (const id of ids) await stores.runs.release(id, id)
      start(named)
      await until(async () => (await running(ids)) === 2)
      await settled()
      assert.equal(await running(ids), 2)
      assert.ok(!logs.some(({ msg }) => msg === 'the run waits for its turn'))
    })
  })

  describe('names in the run', () => {
    it('what keeps an account from being backed up', async () => {
      for (const error of [
        new HostError('the host said no'),
        new DecodeError('the State is none'),
      ]) {
        const id = await create()
        const runner = start(failing(error))
        const run = await ended(id)
        assert.deepEqual(run.error, {
          name: error.name,
          message: error.message,
        })
        assert.equal(run.outcome, undefined)
        await runner.drain(0)
      }
    })

    it('nothing of what should not be, which the log has', async () => {
      start(failing(new TypeError('undefined is not /srv/secret')))
      const { error } = await ended(await create())
      assert.equal(error?.name, 'InternalError')
      assert.doesNotMatch(error.message, /secret/)
      const { err } = await logged('run failed unexpectedly')
      assert.match(err!.message, /secret/)
    })
  })

  it('tells how far a run is', async () => {
    const id = await create()
    start(never)
    const { progress } = await until(async () => {
      const run = await get(id)
      return run.progress !== undefined && run
    })
    const { stages, ...counts } = progress as Progress
    assert.equal(stages.length, 1)
    assert.equal(stages[0]?.stage, 'resolve')
    assert.deepEqual(Object.keys(stages[0]), ['stage', 'began'])
    assert.deepEqual(counts, {
      stage: 'resolve',
      bytesRead: 0,
      records: 0,
      repoBytes: 0,
      blobs: 0,
      blobsDone: 0,
      blobsMissing: 0,
      blobsFailed: 0,
      blobBytes: 0,
      blocksUploaded: 0,
      bytesUploaded: 0,
      blobsUploaded: 0,
      requests: 0,
    })
  })

  describe('lease', () => {
    it('is kept for as long as the run goes on', async () => {
      const id = await create()
      start(never)
      start(() => assert.fail('nobody else takes it'))
      await new Promise((resolve) => setTimeout(resolve, POLICY.lease * 3))
      const { attempts, state } = await get(id)
      assert.deepEqual({ attempts, state }, { attempts: 1, state: 'running' })
    })

    it('goes to another when its owner is gone', async () => {
      const id = await create()
      await stores.runs.claim({ owner: 'gone', now: Date.now(), lease: 100 })
      start(failing(new HostError('no answer')))
      const run = await ended(id)
      assert.equal(run.attempts, 2)
    })

    it('is given up by who lost it', async () => {
      const id = await create()
      let stopped: unknown
      start(
        (_account, { signal } = {}) =>
          new Promise((_resolve, reject) => {
            signal?.addEventListener('abort', () => {
              stopped = signal.reason
              reject(signal.reason as Error)
            })
          }),
        { runs: { heartbeat: async () => false } }
      )
      await logged('the run was lost')
      assert.equal((stopped as Error).name, 'LeaseLostError')
      assert.equal((await get(id)).error, undefined)
    })

    it('outlives a store that does not answer for a while', async () => {
      const id = await create()
      let failures = 3
      start(never, {
        runs: {
          heartbeat: async (...input) => {
            if (failures-- > 0) throw new StoreUnavailableError('away')
            return stores.runs.heartbeat(...input)
          },
        },
      })
      await until(async () => (await get(id)).progress !== undefined)
      assert.equal((await get(id)).attempts, 1)
      assert.equal(
        logs.filter(({ msg }) => msg.startsWith('the run could not be kept'))
          .length,
        3
      )
    })

    it('is over when the store stays away', async () => {
      await create()
      const runner = start(never, {
        runs: {
          heartbeat: async () => {
            throw new StoreUnavailableError('away')
          },
        },
      })
      const { err } = await logged('the run was lost')
      assert.match(err!.message, /could not be kept in time/)
      await runner.drain(0)
    })

    it('does not let the result of who lost it count', async () => {
      const id = await create()
      start(failing(new HostError('late')), {
        runs: { finish: async () => false },
      })
      await logged('the run was lost')
      assert.equal((await get(id)).state, 'running')
      assert.equal(await stores.receipts.get(id), undefined)
    })
  })

  it('begins a run again whose result could not be kept', async () => {
    const id = await create()
    let failures = 1
    start(failing(new HostError('no answer')), {
      runs: {
        finish: async (...input) => {
          if (failures-- > 0) throw new StoreUnavailableError('away')
          return stores.runs.finish(...input)
        },
      },
    })
    const run = await ended(id)
    assert.equal(run.attempts, 2)
    assert.ok(await logged('the run could not be ended'))
    assert.equal(logs.filter(({ msg }) => msg === 'run ended').length, 1)
  })

  it('begins a run again that the store kept from going on', async () => {
    const id = await create()
    let failures = 1
    start(async () => {
      if (failures-- > 0) throw new StoreUnavailableError('away')
      throw new HostError('no answer')
    })
    const run = await ended(id)
    assert.equal(run.error?.name, 'HostError')
    assert.equal(run.attempts, 2)
  })

  it('does not begin a run for ever', async () => {
    const id = await create()
    for (let i = 0; i < 3; i++) {
      await stores.runs.claim({ owner: 'crashes', now: Date.now(), lease: 0 })
    }
    let begun = 0
    start(
      async () => {
        begun++
        throw new HostError('no answer')
      },
      { policy: { ...POLICY, attempts: 3 } }
    )
    const run = await ended(id)
    assert.equal(run.error?.name, 'TooManyAttempts')
    assert.match(run.error.message, /begun 3 times/)
    assert.equal(begun, 0)
    assert.ok(await stores.receipts.get(id))
  })

  it('looks again when a claim failed', async () => {
    const id = await create()
    let failures = 2
    start(failing(new HostError('no answer')), {
      runs: {
        claim: async (options) => {
          if (failures-- > 0) throw new StoreUnavailableError('away')
          return stores.runs.claim(options)
        },
      },
    })
    await ended(id)
    assert.equal(
      logs.filter(({ msg }) => msg === 'claiming a run failed').length,
      2
    )
  })

  it('takes every run once, however many processes there are', async () => {
    await using folder = await createFolder()
    const path = `${folder.path}/runs.sqlite`
    stores = resources.use(await openStores({ path }))
    const others = resources.use(await openStores({ path }))
    const begun: string[] = []
    const resolve: Resolve = async (account) => {
      begun.push(account)
      await new Promise((resolve) => setTimeout(resolve, 5))
      throw new HostError('no answer')
    }
    start(resolve, { concurrency: 3 })
    start(resolve, { concurrency: 3, stores: others })
    const ids = []
    for (let i = 0; i < 30; i++) ids.push(await create(i % 2 ? stores : others))
    for (const id of ids) await ended(id)
    assert.equal(begun.length, 30)
    assert.equal(new Set(begun).size, 30)
  })

  describe('drain', () => {
    it('waits for what is nearly done', async () => {
      const id = await create()
      const runner = start(async () => {
        await new Promise((resolve) => setTimeout(resolve, 100))
        throw new HostError('no answer')
      })
      await until(async () => (await get(id)).state === 'running')
      await runner.drain(10_000)
      assert.equal((await get(id)).state, 'failed')
    })

    it('gives back what is not, and takes nothing new', async () => {
      const id = await create()
      const runner = start(never)
      await until(async () => (await get(id)).state === 'running')
      await runner.drain(20)
      const run = await get(id)
      assert.equal(run.state, 'queued')
      assert.equal(run.error, undefined)
      assert.ok(logs.some(({ msg }) => msg === 'run parked'))
      runner.kick()
      await new Promise((resolve) => setTimeout(resolve, POLICY.poll * 2))
      assert.equal((await get(id)).attempts, 1)
    })

    it('leaves behind what does not stop', async () => {
      const id = await create()
      const runner = start(() => new Promise(() => {}))
      await until(async () => (await get(id)).state === 'running')
      const started = performance.now()
      await runner.drain(20)
      assert.ok(performance.now() - started < 1000)
      assert.equal((await get(id)).state, 'running')
    })

    it('says when a run could not be given back', async () => {
      const id = await create()
      const runner = start(never, {
        runs: {
          release: async () => {
            throw new StoreUnavailableError('away')
          },
        },
      })
      await until(async () => (await get(id)).state === 'running')
      await runner.drain(0)
      assert.ok(await logged('the run could not be given back'))
    })
  })
})
