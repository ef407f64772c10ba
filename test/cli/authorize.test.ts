import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { systemTime } from '../../src/node/index.ts'
import type { RunningService } from '../../src/service/index.ts'
import { openStores } from '../../src/stores/index.ts'
import { consent } from '../network/consent.ts'
import { startNetwork, type Account, type Network } from '../network/index.ts'
import { comeBack } from '../service/come-back.ts'
import { Agent, createFolder, startTestService } from './harness.ts'

const HOUR = 60 * 60_000

type Visit = Awaited<ReturnType<typeof comeBack>>

describe('authorizing on the command line', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: RunningService
  let folder: string
  let account: Account
  let alice: Agent
  /** Called when the host trades a token, before it answers. */
  let onRefresh: () => unknown = () => {}

  before(async () => {
    folder = resources.use(await createFolder()).path
    network = resources.use(
      await startNetwork({
        pds: { onRefresh: async () => void (await onRefresh()) },
      })
    )
    service = resources.use(
      await startTestService(network, join(folder, 'service'))
    )
    account = await network.pds.createAccount({ handle: 'alice.test' })
    alice = new Agent(join(folder, 'alice'), {
      ...network.environment,
      BLUESKY_BACKUPS_SERVICE_URL: service.url.href,
    })
    await alice.json(['login', 'alice@example.com'])
    await alice.json(['space', 'create', 'backups'])
  })

  after(() => resources.disposeAsync())

  /** Runs the command, and does what the user does at the host meanwhile. */
  const authorize = async (
    words: string[],
    options = {},
    beforeBack: (back: URL) => unknown = () => {}
  ) => {
    const visited = Promise.withResolvers<Visit>()
    visited.promise.catch(() => {})
    let shown = ''
    const visit = (text: string) => {
      shown += text
      const [url] = /http:\S+/.exec(shown) ?? []
      if (url === undefined || !shown.includes('waiting')) return
      shown = ''
      consent(new URL(url), {
        username: account.handle,
        password: account.password,
        ...options,
      })
        .then(async (back) => {
          await beforeBack(back)
          return comeBack(back)
        })
        .then(visited.resolve, visited.reject)
    }
    const finished = await alice.run(['authorize', ...words], {
      onStderr: visit,
    })
    if (finished.code === 2) visited.reject(new Error(finished.stdout))
    return { finished, ...(await visited.promise) }
  }

  it('lists nobody at first', async () => {
    const { stdout } = await alice.run(['authorizations', 'ls'])
    assert.match(stdout, /nobody is let into an account/)
  })

  it('says once, beside the result, that private addresses are allowed', async () => {
    for (const words of [['whoami'], ['status'], ['authorizations', 'ls']]) {
      const finished = await alice.run([...words, '--json'])
      const { code, stderr, warnings, json } = finished
      assert.equal(code, 0)
      assert.equal(warnings, 1)
      assert.equal(stderr, '')
      assert.equal(typeof json, 'object')
    }
    const env = { BLUESKY_BACKUPS_ALLOW_PRIVATE_NETWORK: 'false' }
    const { stderr, warnings } = await alice.run(['whoami', '--json'], { env })
    assert.equal(warnings, 0)
    assert.equal(stderr, '')
  })

  it('lets the service in', async () => {
    const { finished, response, question } = await authorize([account.handle])
    assert.equal(finished.code, 0, finished.stderr)
    assert.equal(response.status, 200)
    // What is asked in the browser is what is shown in the terminal.
    const { did: space } = (await alice.json(['status'])).space
    assert.match(finished.stderr, new RegExp(`it is ${space}`))
    assert.ok(question?.includes(space))
    assert.match(finished.stdout, new RegExp(`account +${account.did}`))
    assert.match(finished.stdout, /granted +preferences, mutes/)
    assert.match(finished.stdout, /re-authorize by +20\d\d-/)

    const { authorizations } = await alice.json(['authorizations', 'ls'])
    assert.equal(authorizations.length, 1)
    const [grant] = authorizations
    assert.equal(grant.account, account.did)
    assert.equal(grant.who, 'the service')
    assert.equal(grant.agent, service.agent)
    assert.equal(grant.state, 'active')
    assert.ok(grant.parts.includes('preferences'))
  })

  it('lets this agent in, beside the service', async () => {
    const { finished } = await authorize([account.handle, '--here', '--json'])
    assert.equal(finished.code, 0, finished.stdout)
    assert.ok(finished.json.parts.includes('preferences'))
    assert.equal(finished.json.agent, (await alice.json(['whoami'])).agent)

    const { stdout } = await alice.run(['authorizations', 'ls', account.did])
    assert.match(stdout, /the service +active +preferences, mutes/)
    assert.match(stdout, /this agent +active +preferences, mutes/)
    assert.match(stdout, /PRIVATE PARTS ARE SEALED FOR$/m)
    assert.match(stdout, /this agent .* age1[0-9a-z]{58}$/m)
    assert.match(stdout, /the service .* age1[0-9a-z]{58}$/m)
  })

  it('says loudly when somebody has to authorize again', async () => {
    await using stores = await openStores({
      path: join(folder, 'service', 'service.sqlite'),
    })
    const { did: space } = (await alice.json(['status'])).space
    const grant = await stores.grants.get(space, account.did)
    assert.ok(grant)
    const well = await alice.run(['status'])
    assert.equal(well.code, 0, well.stderr)
    assert.ok(!well.stdout.includes('RE-AUTHORIZE:'))

    const reason = { name: 'GrantEndedError', message: 'it was taken back' }
    const end = { seq: grant.seq, reason, now: Date.now() }
    await stores.grants.end(space, account.did, end)
    await alice.json(['schedule', account.handle, '--every', '1d'])
    for (const words of [['status'], ['schedules'], ['authorizations', 'ls']]) {
      const { stdout } = await alice.run(words)
      const lines = stdout
        .split('\n')
        .filter((line) => /^RE-AUTHORIZE:/.test(line))
      assert.equal(lines.length, 1, stdout)
      assert.match(
        lines[0] ?? '',
        /has ended \(it was taken back\); only what is public/
      )
      assert.match(
        lines[0] ?? '',
        new RegExp(`renew it with \`bluesky-backups authorize ${account.did}\``)
      )
    }
    await alice.json(['unschedule', account.handle])
    await authorize([account.handle])
    const { stdout } = await alice.run(['status'])
    assert.ok(!stdout.includes('RE-AUTHORIZE:'))
  })

  it('says loudly when this agent has to be authorized again', async () => {
    const stores = await openStores({
      path: join(folder, 'alice', 'agent.sqlite'),
    })
    const { did: space } = (await alice.json(['status'])).space
    const grant = await stores.grants.get(space, account.did)
    const reason = { name: 'GrantEndedError', message: 'it was taken back' }
    const end = { seq: grant!.seq, reason, now: Date.now() }
    await stores.grants.end(space, account.did, end)
    await stores[Symbol.asyncDispose]()
    const { stdout } = await alice.run(['status'])
    assert.match(
      stdout,
      new RegExp(
        `^RE-AUTHORIZE: what this agent was granted .* \\(it was taken back\\).*authorize ${account.did} --here`,
        'm'
      )
    )
    const { ownAuthorizations } = await alice.json(['status'])
    assert.equal(ownAuthorizations[0].state, 'ended')
    await authorize([account.handle, '--here'])
    const after = await alice.run(['status'])
    assert.ok(!after.stdout.includes('RE-AUTHORIZE:'))
  })

  it('does not wait for what a browser has opened and does not use', async () => {
    let idle: Socket | undefined
    const { finished, page } = await authorize(
      [account.handle, '--here'],
      {},
      async ({ hostname, port }) => {
        idle = connect(Number(port), hostname)
        await once(idle, 'connect')
      }
    )
    assert.equal(finished.code, 0, finished.stderr)
    // The answer is there, and nothing else keeps the process.
    assert.match(page, /You have let this agent in/)
    assert.ok(idle)
    idle.resume()
    if (!idle.closed) await once(idle, 'close')
  })

  describe('and a refresh that is under way', () => {
    const time = { ...systemTime }
    /** Each refresh makes a session that is good from then on. */
    let ahead = 0
    const { execPath } = process

    before(async () => {
      const { finished } = await authorize([account.handle, '--here'])
      assert.equal(finished.code, 0, finished.stderr)
    })

    afterEach(() => {
      onRefresh = () => {}
      Object.assign(systemTime, time)
      process.execPath = execPath
    })

    const grantOf = async () => {
      const { did: space } = (await alice.json(['status'])).space
      await using stores = await openStores({
        path: join(folder, 'alice', 'agent.sqlite'),
      })
      const grant = await stores.grants.get(space, account.did)
      assert.ok(grant)
      return grant
    }

    /** Interrupts a backup as soon as the host has traded the token. */
    const interrupt = async (answer: () => Promise<void>) => {
      const { seq } = await grantOf()
      const interrupted = new AbortController()
      let refreshes = 0
      onRefresh = async () => {
        refreshes++
        interrupted.abort(new Error('interrupted'))
        await answer()
      }
      ahead += 4 * HOUR
      systemTime.now = () => Date.now() + ahead
      const finished = await alice.run(
        ['backup', 'run', account.handle, '--here', '--include', 'preferences'],
        { signal: interrupted.signal }
      )
      Object.assign(systemTime, time)
      onRefresh = () => {}
      assert.equal(finished.code, 130, finished.stdout)
      assert.equal(refreshes, 1)
      return { seq, ...finished }
    }

    for (const how of ['carried', 'sent directly']) {
      it(`${how}, waits for the answer when the user gives up`, async () => {
        if (how === 'sent directly') {
          process.execPath = join(folder, 'no such program')
        }
        const { seq, stderr } = await interrupt(() => time.sleep(1500))
        assert.match(stderr, /is waited for; interrupt again to end at once/)
        const after = await grantOf()
        assert.equal(after.seq, seq + 1)
        assert.equal(after.state, 'active')
        assert.equal(after.answer, undefined)
      })

      it(`${how}, does not wait for ever`, async () => {
        if (how === 'sent directly') {
          process.execPath = join(folder, 'no such program')
        }
        const answer = Promise.withResolvers<void>()
        systemTime.sleep = (ms, signal) => time.sleep(Math.min(ms, 200), signal)
        const began = Date.now()
        const { seq } = await interrupt(() => answer.promise)
        assert.ok(Date.now() - began < 5_000)
        assert.equal((await grantOf()).seq, seq)
        answer.resolve()
        process.execPath = execPath
        await authorize([account.handle, '--here'])
      })
    }
  })

  it('says so when the user says no', async () => {
    const { finished } = await authorize([account.handle], { deny: true })
    assert.equal(finished.code, 1)
    assert.match(finished.stderr, /error: .*You said no/)
    const here = await authorize([account.handle, '--here'], { deny: true })
    assert.equal(here.finished.code, 1)
    assert.match(here.finished.stderr, /error: You said no/)
  })

  it('ends when the user gives up', async () => {
    const interrupt = new AbortController()
    for (const words of [[], ['--here']]) {
      const { code, stderr } = await alice.run(
        ['authorize', account.handle, ...words],
        {
          signal: interrupt.signal,
          onStderr: (text) => {
            if (text.includes('waiting')) interrupt.abort()
          },
        }
      )
      assert.equal(code, 130, stderr)
    }
  })

  it('refuses nonsense', async () => {
    const refused = async (words: string[], code: number, message: RegExp) => {
      const finished = await alice.run(words)
      assert.equal(finished.code, code, finished.stdout)
      assert.match(finished.stderr, message)
    }
    await refused(['authorize', 'nobody.test'], 1, /nobody\.test/)
    for (const words of [['not a handle!'], ['did:key:z6Mk'], ['alice']]) {
      await refused(
        ['authorize', ...words],
        2,
        /is no account; give its handle/
      )
      await refused(['authorizations', 'revoke', ...words], 2, /is no account/)
      await refused(['backup', 'run', ...words], 2, /is no account/)
    }
    await refused(
      ['authorize', account.handle, '--include', 'everything'],
      2,
      /--include: "everything"/
    )
    await refused(
      ['authorize', account.handle, '--here', '--expires-in', '1d'],
      2,
      /--expires-in is for the service/
    )
  })

  it('gives grants back', async () => {
    for (const [words, who] of [
      [['--here'], 'this agent'],
      [[], 'the service'],
    ] as const) {
      // Named, they are the same.
      await authorize([account.handle, ...words])
      const agent =
        who === 'the service'
          ? service.agent
          : (await alice.json(['whoami'])).agent
      const named = ['authorizations', 'revoke', account.handle, agent]
      assert.deepEqual(await alice.json(named), {
        account: account.did,
        revoked: true,
        confirmed: true,
      })
      await authorize([account.handle, ...words])
      const revoke = ['authorizations', 'revoke', account.handle, ...words]
      const { code, stdout, stderr } = await alice.run(revoke)
      assert.equal(code, 0, stderr)
      assert.match(stdout, new RegExp(`${who} is not let into`))
      const again = await alice.run(revoke)
      assert.match(again.stdout, new RegExp(`${who} was not let into`))
    }
    const { stdout } = await alice.run(['authorizations', 'ls'])
    assert.match(stdout, /nobody is let into an account/)
  })

  it('keeps no token in the agent’s folder', async () => {
    const bytes = await readFile(join(folder, 'alice', 'agent.sqlite'))
    assert.ok(
      !/refresh_token|access_token|"d":"/.test(bytes.toString('latin1'))
    )
  })
})
