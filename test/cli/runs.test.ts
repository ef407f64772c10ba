import assert from 'node:assert/strict'
import { join } from 'node:path'
import type { RunningService } from '../../src/service/index.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import {
  seedAccount,
  startNetwork,
  type Account,
  type Network,
} from '../network/index.ts'
import { Agent, createFolder, startTestService } from './harness.ts'

const NOBODY = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const OTHER = 'did:plc:vwzwgnygau7ed7b7wt5ux7y2'
const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/
const HEAD = /^WHEN +ACCOUNT +OUTCOME +TOOK +READ +UPLOADED +BLOBS +RUN\n/

describe('runs on the command line', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: RunningService
  let stores: Stores
  let folder: string
  let account: Account
  let alice: Agent
  let space: string
  /** Runs of alice's Space, the newest first. */
  let done: string
  let failed: string

  before(async () => {
    folder = resources.use(await createFolder()).path
    network = resources.use(await startNetwork())
    const dataFolder = join(folder, 'service')
    service = resources.use(await startTestService(network, dataFolder))
    stores = resources.use(
      await openStores({ path: join(dataFolder, 'service.sqlite') })
    )
    account = await network.pds.createAccount({ handle: 'alice.test' })
    await seedAccount(account.agent, { posts: 5, blobs: [1000, 2000, 3000] })
    alice = createAgent('alice')
    await alice.json(['login', 'alice@example.com'])
    space = (await alice.json(['space', 'create', 'backups'])).did
  })

  after(() => resources.disposeAsync())

  const createAgent = (name: string) =>
    new Agent(join(folder, name), {
      ...network.environment,
      BLUESKY_BACKUPS_SERVICE_URL: service.url.href,
    })

  /** Has a backup made that fails. */
  const fail = async () => {
    const { code } = await alice.run(['backup', 'run', NOBODY])
    assert.equal(code, 1)
    return (await stores.runs.list(space, { limit: 1 }))[0]!.id
  }

  it('are none at first', async () => {
    const { code, stdout } = await alice.run(['runs'])
    assert.equal(code, 0)
    assert.match(stdout, /^no runs yet; .* backup run HANDLE/)
    const { stdout: own } = await alice.run(['runs', 'alice.test'])
    assert.match(own, /^no runs of alice.test yet; /)
    assert.deepEqual(await alice.json(['runs']), { space, runs: [] })
  })

  it('are listed with what came of them, the newest first', async () => {
    failed = await fail()
    done = (await alice.json(['backup', 'run', 'alice.test'])).run
    const { stdout } = await alice.run(['runs'])
    assert.match(stdout, HEAD)
    const [, first, second, ...others] = stdout.trimEnd().split('\n')
    assert.deepEqual(others, [])
    assert.match(
      first!,
      new RegExp(
        `^\\S+Z +${account.did} +first +\\d+\\.\\d s +\\S+ kB +\\S+ kB +3 +${done}$`
      )
    )
    assert.match(
      second!,
      new RegExp(
        `^\\S+Z +${NOBODY} +failed: DidNotFoundError +\\d+\\.\\d s +0 B +0 B +0 +${failed}$`
      )
    )
    const { runs } = await alice.json(['runs'])
    const [one, two] = runs
    assert.deepEqual([one.run, two.run], [done, failed])
    assert.equal(one.outcome.kind, 'first')
    assert.equal(two.error.name, 'DidNotFoundError')
    for (const time of [one.created, one.started, one.finished]) {
      assert.match(time, ISO)
    }
    assert.match(one.progress.stages.at(-1).ended, ISO)
  })

  it('are listed by account, and not more than wanted', async () => {
    const { runs } = await alice.json(['runs', '@Alice.test'])
    assert.deepEqual(
      runs.map(({ run }: { run: string }) => run),
      [done]
    )
    const { runs: last } = await alice.json(['runs', '--limit', '1'])
    assert.equal(last.length, 1)
    assert.equal(last[0].run, done)
    const { runs: theirs } = await alice.json(['runs', NOBODY])
    assert.equal(theirs[0].run, failed)
  })

  it('are shown one by one, with their stages', async () => {
    const { stdout } = await alice.run(['runs', done])
    assert.match(
      stdout,
      new RegExp(
        `^run +${done}\naccount +${account.did}\noutcome +first\nasked for +\\S+Z\nbegan +\\S+Z\nended +\\S+Z\ntook +\\S+ s\nread +\\S+ kB\nuploaded +\\S+ kB\nblobs +3\nbackup +\\S+Z\nevent +bafy\\w+\n\nSTAGE +BEGAN +TOOK\nresolve +\\S+Z +\\S+ s\nread `
      )
    )
    assert.match(stdout, /\nadvance +\S+Z +\S+ s\n$/)
    const { stdout: other } = await alice.run(['runs', failed])
    assert.match(
      other,
      /\noutcome +failed: DidNotFoundError\nerror +DidNotFoundError: .+\n/
    )
    const { run } = await alice.json(['runs', done])
    assert.equal(run.run, done)
    assert.match(run.outcome.event, /^bafy/)
  })

  describe('are followed', () => {
    it('until they have ended', async () => {
      const { code, stdout } = await alice.run(['runs', done, '--follow'])
      assert.equal(code, 0)
      assert.match(
        stdout,
        new RegExp(
          `^\\S+Z {2}${account.did} {2}first in \\S+ s, \\S+ kB read, \\S+ kB uploaded, 3 blobs\n$`
        )
      )
      const other = await alice.run(['runs', failed, '--follow', '--json'])
      assert.equal(other.code, 1)
      assert.equal(other.json.state, 'failed')
    })

    it('until an interrupt, which is no failure', async () => {
      const stop = new AbortController()
      const lines: string[] = []
      let texts = ''
      const following = alice.run(['runs', '--follow', '--json'], {
        signal: stop.signal,
        onStdout: (text) => {
          texts += text
          lines.splice(0, Infinity, ...texts.split('\n').slice(0, -1))
          const last = lines.at(-1)
          if (last && JSON.parse(last).outcome?.kind === 'incremental') {
            stop.abort(new Error('interrupted'))
          }
        },
      })
      await account.agent.post({ text: 'one more' })
      const { run } = await alice.json(['backup', 'run', 'alice.test'])
      const { code, stderr, json } = await following
      assert.equal(code, 0)
      assert.equal(stderr, '')
      const seen = json as { run: string; state: string }[]
      assert.deepEqual(
        [...new Set(seen.map(({ run }) => run))].sort(),
        [failed, done, run].sort()
      )
      assert.equal(seen.at(-1)?.state, 'done')
    })

    it('with a bar in a terminal, that goes away', async () => {
      const id = 'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku'
      const now = Date.now()
      await stores.runs.create({
        id,
        space,
        account: OTHER,
        agent: service.agent,
        include: [],
        authority: new Uint8Array([1]),
        created: now,
      })
      // The service leaves it alone while somebody else works on it.
      const owner = 'somebody'
      const leaseExpiration = now + 600_000
      await stores.runs.claim({ owner, now, lease: 600_000 })
      const progress = {
        stage: 'blobs',
        stages: [],
        bytesRead: 10,
        bytesUploaded: 0,
        records: 5,
        blobs: 4,
        blobsDone: 1,
        blobsMissing: 1,
        blobsFailed: 0,
      }
      await stores.runs.heartbeat(id, owner, { leaseExpiration, progress, now })
      const stop = new AbortController()
      let shown = ''
      let finishing: Promise<unknown> | undefined
      const { code, stdout } = await alice.run(['runs', OTHER, '--follow'], {
        signal: stop.signal,
        terminal: true,
        onStderr: (text) => {
          shown += text
          if (!shown.includes('fetching blobs')) return
          const error = { name: 'HostError', message: 'no\u001b[2J answer' }
          finishing ??= stores.runs.finish(id, owner, {
            state: 'failed',
            error,
            now,
          })
        },
        onStdout: () => stop.abort(new Error('enough')),
      })
      await finishing
      assert.equal(code, 0)
      assert.ok(
        shown.includes(`${OTHER}: fetching blobs, 5 records, 2/4 blobs`),
        shown
      )
      assert.match(
        stdout,
        new RegExp(
          `^\\S+Z {2}${OTHER} {2}failed: HostError: no\\?\\[2J answer\n$`
        )
      )
    })
  })

  describe('are refused', () => {
    const refused = async (argv: string[], code: number, message: RegExp) => {
      const finished = await alice.run(argv)
      assert.equal(finished.code, code, finished.stderr)
      assert.match(finished.stderr, message)
    }

    it('where they are none', async () => {
      const none = 'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
      for (const more of [[], ['--follow']]) {
        await refused(
          ['runs', none, ...more],
          1,
          /there is no run bafyreigh2ak/
        )
      }
    })

    it('for what is neither account nor run, nor for nonsense', async () => {
      await refused(['runs', 'did:key:z6Mk'], 2, /neither an account nor a run/)
      await refused(['runs', '--limit', '0'], 2, /--limit: must be/)
      await refused(['runs', '--limit', '201'], 2, /at most 200 runs/)
      await refused(['runs', '--follow', '--limit', '3'], 2, /leave out it or/)
    })

    it('without a service', async () => {
      const lonely = new Agent(alice.home, network.environment)
      const { code, stderr } = await lonely.run(['runs'])
      assert.equal(code, 2)
      assert.match(stderr, /--service/)
    })

    it('to who may not', async () => {
      const mallory = createAgent('mallory')
      await mallory.json(['login', 'mallory@example.com'])
      await mallory.json(['space', 'create', 'own'])
      const { runs } = await mallory.json(['runs'])
      assert.deepEqual(runs, [])
      const { code, stderr } = await mallory.run(['runs', done, '--follow'])
      assert.equal(code, 1)
      assert.match(stderr, /there is no run/)
    })
  })
})
