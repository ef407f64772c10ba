import assert from 'node:assert/strict'
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { RunningService } from '../../src/service/index.ts'
import { SHARER_POLICY } from '../../src/service/sharer.ts'
import { consent } from '../network/consent.ts'
import {
  seedAccount,
  startBluesky,
  startNetwork,
  type Account,
  type Bluesky,
  type Network,
} from '../network/index.ts'
import { comeBack } from '../service/come-back.ts'
import { Agent, createFolder, startTestService } from './harness.ts'

/** What nobody but alice and her agents may find anywhere. */
const SECRET = 'psst-do-not-tell-mallory'

describe('private parts on the command line', () => {
  const resources = new AsyncDisposableStack()
  let bluesky: Bluesky
  let network: Network
  let service: RunningService
  let folder: string
  let account: Account
  let phone: Agent
  let exports = 0
  /** Times of backups, in their order. */
  const times: string[] = []

  before(async () => {
    folder = resources.use(await createFolder()).path
    bluesky = resources.use(await startBluesky())
    bluesky.answers['app.bsky.graph.getMutes'] = {
      body: { mutes: [{ did: 'did:plc:mallory', handle: 'mallory.test' }] },
    }
    network = resources.use(
      await startNetwork({ pds: { settings: { bskyAppViewUrl: bluesky.url } } })
    )
    service = resources.use(
      await startTestService(
        network,
        join(folder, 'service'),
        {},
        { sharerPolicy: { ...SHARER_POLICY, limit: 1, retryAfter: 1000 } }
      )
    )
    account = await network.pds.createAccount({ handle: 'alice.test' })
    await seedAccount(account.agent, { posts: 2 })
    await mute(SECRET)
    phone = createAgent('phone')
    await phone.json(['login', 'alice@example.com'])
    await phone.json(['space', 'create', 'backups'])
  })

  after(() => resources.disposeAsync())

  const createAgent = (name: string) =>
    new Agent(join(folder, name), {
      ...network.environment,
      BLUESKY_BACKUPS_SERVICE_URL: service.url.href,
    })

  const mute = (word: string) =>
    account.agent.app.bsky.actor.putPreferences({
      preferences: [
        {
          $type: 'app.bsky.actor.defs#mutedWordsPref',
          items: [{ value: word, targets: ['content'], actorTarget: 'all' }],
        },
      ],
    })

  /** Runs the command, and does what the user does at the host meanwhile. */
  const authorize = async (agent: Agent, words: string[]) => {
    let shown = ''
    const visits: Promise<unknown>[] = []
    const finished = await agent.run(['authorize', account.handle, ...words], {
      onStderr: (text) => {
        shown += text
        const [url] = /http:\S+/.exec(shown) ?? []
        if (url === undefined || !shown.includes('waiting')) return
        shown = ''
        visits.push(
          consent(new URL(url), {
            username: account.handle,
            password: account.password,
          }).then((back) => comeBack(back))
        )
      },
    })
    await Promise.all(visits)
    assert.equal(finished.code, 0, finished.stderr)
  }

  const backUp = async (agent: Agent, words: string[] = ['--here']) => {
    const { outcome } = await agent.json([
      'backup',
      'run',
      account.handle,
      ...words,
    ])
    times.push(outcome.timestamp)
    return outcome
  }

  const exportTo = async (agent: Agent, time: string, words: string[] = []) => {
    const out = join(folder, `export-${exports++}`)
    const finished = await agent.run([
      'backup',
      'export',
      account.did,
      time,
      '--out',
      out,
      ...words,
    ])
    return { out, ...finished }
  }

  const preferencesIn = async (out: string) =>
    JSON.parse(await readFile(join(out, 'private', 'preferences.json'), 'utf8'))
      .preferences[0].items[0].value

  it('are not granted at first, which is said, and the rest is backed up', async () => {
    const outcome = await backUp(phone)
    assert.equal(outcome.kind, 'first')
    assert.deepEqual(outcome.private.preferences, { outcome: 'not-granted' })
    const { stdout } = await phone.run(['backup', 'show'])
    assert.match(
      stdout,
      /^private parts +none are granted; `bluesky-backups authorize did:plc:\w+` grants them$/m
    )
  })

  it('are read by the grant of this agent, and named with their outcomes', async () => {
    await authorize(phone, ['--here'])
    const { stdout, code } = await phone.run([
      'backup',
      'run',
      account.handle,
      '--here',
    ])
    assert.equal(code, 0)
    assert.match(stdout, /incremental/)
    assert.match(
      stdout,
      /^preferences +ok: the birth date \(personalDetailsPref\) is not in it: hosts do not give it to apps$/m
    )
    assert.match(stdout, /^mutes +ok$/m)
    assert.match(stdout, /^drafts +not offered by the host: /m)
    const again = await backUp(phone)
    assert.equal(again.kind, 'unchanged')
    assert.equal(again.private.mutes.outcome, 'ok')

    const shown = await phone.json(['backup', 'show', 'latest'])
    assert.deepEqual(shown.parts, ['repo', 'blobs', 'preferences', 'mutes'])
    assert.deepEqual(
      shown.private
        .map(({ part, outcome }: any) => [part, outcome])
        .slice(0, 3),
      [
        ['preferences', 'ok'],
        ['mutes', 'ok'],
        ['muted-lists', 'not-offered'],
      ]
    )
    assert.equal(shown.private[0].recipients.length, 1)
    const { problems } = await phone.json(['backup', 'verify', 'latest'])
    assert.deepEqual(problems, [])
  })

  it('are exported, opened, for the eyes of one only', async () => {
    const { out, code, stdout } = await exportTo(phone, 'latest')
    assert.equal(code, 0, stdout)
    assert.match(stdout, /^preferences in private\/preferences\.json/m)
    assert.equal(await preferencesIn(out), SECRET)
    const { mode } = await stat(join(out, 'private', 'preferences.json'))
    assert.equal(mode & 0o777, 0o600)
    assert.deepEqual(await readdir(join(out, 'private')), [
      'mutes.json',
      'preferences.json',
    ])
    const manifest = JSON.parse(
      await readFile(join(out, 'manifest.json'), 'utf8')
    )
    assert.equal(manifest.private[0].file, 'private/preferences.json')

    // Written over by a backup without them, nothing of them stays.
    const own = join(out, 'private', 'my-own.txt')
    await writeFile(own, 'mine')
    const before = await phone.json(['backup', 'ls'])
    const oldest = before.backups.at(-1).timestamp
    const forced = await phone.run([
      'backup',
      'export',
      oldest,
      '--out',
      out,
      '--force',
    ])
    assert.equal(forced.code, 0, forced.stderr)
    assert.deepEqual(await readdir(join(out, 'private')), ['my-own.txt'])
  })

  it('of the service are opened by this agent too', async () => {
    await authorize(phone, [])
    await mute(`${SECRET} by the service`)
    const { run, outcome } = await phone.json([
      'backup',
      'run',
      account.handle,
      '--include',
      'blobs,preferences',
    ])
    assert.ok(run)
    assert.equal(
      outcome.private.preferences.outcome,
      'ok',
      JSON.stringify(outcome)
    )
    assert.equal(outcome.private.mutes, undefined)
    const { out } = await exportTo(phone, 'latest')
    assert.equal(await preferencesIn(out), `${SECRET} by the service`)
  })

  describe('and a new agent', () => {
    let laptop: Agent
    let agent: string

    before(async () => {
      laptop = createAgent('laptop')
      await laptop.json(['login', 'alice@example.com'])
      await laptop.json(['space', 'use', 'backups'])
      agent = (await laptop.json(['whoami'])).agent
    })

    it('cannot open what was sealed before it was there, and says so', async () => {
      const { code, stdout, out } = await exportTo(laptop, 'latest')
      assert.equal(code, 0, stdout)
      assert.match(
        stdout,
        /^preferences is not written: preferences is sealed for others; .*--identity-file.*authorizations share did:plc:\w+ --by-service`.*authorizations share did:plc:\w+ did:key:/m
      )
      assert.ok(!(await readdir(join(out, 'private'))).length)
    })

    it('is shared with only when it is authorized', async () => {
      const { code, stderr } = await phone.run([
        'authorizations',
        'share',
        account.handle,
        agent,
      ])
      assert.equal(code, 2)
      assert.match(stderr, /is not authorized for did:plc:/)
    })

    it('is not shared with by the service either', async () => {
      const { code, stderr } = await laptop.run([
        'authorizations',
        'share',
        account.handle,
        '--by-service',
      ])
      assert.equal(code, 1)
      assert.match(
        stderr,
        /is not authorized for did:plc:\w+; have it run `bluesky-backups authorize did:plc:\w+ --here` first/
      )
    })

    it('names whom to share with, or has the service share', async () => {
      for (const [words, message] of [
        [[], /name the agent .* --by-service/],
        [['bob', '--by-service'], /"bob" is not an agent/],
      ] as const) {
        const { code, stderr } = await laptop.run([
          'authorizations',
          'share',
          account.handle,
          ...words,
        ])
        assert.equal(code, 2)
        assert.match(stderr, message)
      }
    })

    it('opens it when the service has shared it, and no other agent', async () => {
      await authorize(laptop, ['--here'])
      const share = ['authorizations', 'share', account.handle, '--by-service']
      const before = await exportTo(laptop, 'latest')
      assert.match(before.stdout, /preferences is not written/)
      // The service does one at a time here.
      const asked = await laptop.run([...share, '--json'])
      assert.match(asked.stderr, /^shared 1 backup, back to 20\S+Z$/m)
      const shared = asked.json
      const { agent: did, backups, closed, unreadable } = shared
      // The service cannot open what the phone has sealed before it.
      assert.deepEqual(
        { did, backups, closed, unreadable },
        { did: agent, backups: 1, closed: 1, unreadable: 0 }
      )
      const { out, stdout } = await exportTo(laptop, 'latest')
      assert.equal(await preferencesIn(out), `${SECRET} by the service`, stdout)
      const [again, meanwhile] = await Promise.all([
        laptop.run(share),
        phone.run([...share.slice(0, -1), agent, '--by-service']),
      ])
      // One of them waits for the other.
      for (const each of [again, meanwhile]) {
        assert.equal(each.code, 0, each.stderr)
      }
      assert.match(
        again.stdout,
        /^there is nothing that did:key:\w+ cannot open and the service can\n1 backup with parts that the service cannot open either/
      )
    })

    it('opens the rest when an old one has shared it', async () => {
      const share = ['authorizations', 'share', account.handle, agent]
      const shared = await phone.json(share)
      assert.equal(shared.backups, 1)
      assert.equal(shared.closed, 0)
      const { out, stdout } = await exportTo(laptop, times[1]!)
      assert.equal(await preferencesIn(out), SECRET, stdout)
      assert.equal((await phone.json(share)).backups, 0)
      const { code } = await createAgent('laptop').run(['backup', 'verify'])
      assert.equal(code, 0)
    })
  })

  describe('and an agent that is lost', () => {
    let agent: string
    let laptop: Agent

    before(async () => {
      laptop = createAgent('laptop')
      agent = (await laptop.json(['whoami'])).agent
    })

    const revoke = (words: string[]) =>
      phone.run(['authorizations', 'revoke', account.handle, ...words])

    it('is listed with what is sealed for it', async () => {
      const { authorizations } = await phone.json(['authorizations', 'ls'])
      assert.equal(authorizations.length, 3)
      for (const { recipient } of authorizations)
        assert.match(recipient, /^age1/)
      const listed = authorizations.find((each: any) => each.agent === agent)
      assert.equal(listed.who, 'another agent')
    })

    it('is named as one that there is', async () => {
      const nobody = 'did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH'
      for (const [words, message] of [
        [['laptop'], /"laptop" is not an agent/],
        [[nobody], /is not authorized for did:plc:\w+; .*authorizations ls/],
        [[agent, '--here'], /--here is for this agent, which is not did:key/],
      ] as const) {
        const { code, stderr } = await revoke([...words])
        assert.equal(code, 2, stderr)
        assert.match(stderr, message)
      }
    })

    it('is let go: nothing more is sealed for it, or shared with it', async () => {
      const { code, stdout, stderr } = await revoke([agent])
      assert.equal(code, 0, stderr)
      assert.match(stdout, /^did:key:\w+ is let go: /m)
      assert.match(stdout, /remove Bluesky Backups from the connected apps/)
      assert.match(stdout, /can authorize itself again: .*delegation revoke/)
      const again = await revoke([agent, '--json'])
      assert.deepEqual(again.json, {
        account: account.did,
        agent,
        revoked: false,
        confirmed: false,
      })
      const { authorizations } = await phone.json(['authorizations', 'ls'])
      assert.ok(!authorizations.some((each: any) => each.agent === agent))

      await mute(`${SECRET} after the laptop`)
      await backUp(phone)
      const { private: parts } = await phone.json(['backup', 'show', 'latest'])
      assert.equal(parts[0].recipients.length, 2)
      const { stdout: exported } = await exportTo(laptop, 'latest')
      assert.match(exported, /^preferences is not written: /m)
      for (const words of [[], ['--by-service']]) {
        const shared = await phone.run([
          ...['authorizations', 'share', account.handle, agent],
          ...words,
        ])
        assert.notEqual(shared.code, 0)
        assert.match(shared.stderr, /is not authorized any more for/)
      }
    })

    it('finds that out, and comes back only when it is authorized again', async () => {
      const outcome = await backUp(laptop)
      assert.equal(outcome.private.preferences.outcome, 'not-granted')
      assert.match(
        outcome.private.preferences.detail,
        /another agent of the Space has let this one go/
      )
      await authorize(laptop, ['--here'])
      await mute(`${SECRET} again`)
      await backUp(phone)
      const { out, stdout } = await exportTo(laptop, 'latest')
      assert.equal(await preferencesIn(out), `${SECRET} again`, stdout)
    })
  })

  describe('and a recovery key', () => {
    let file: string
    let recipient: string

    before(async () => {
      await mkdir(join(folder, 'keys'))
      file = join(folder, 'keys', 'recovery.txt')
    })

    it('is made once, in a file for its owner only', async () => {
      const create = ['recovery', 'create', '--out', file]
      const finished = await phone.run([...create, '--json'])
      assert.equal(finished.code, 0, finished.stdout)
      recipient = finished.json.recipient
      assert.match(recipient, /^age1/)
      assert.doesNotMatch(finished.stdout, /SECRET/)
      assert.equal((await stat(file)).mode & 0o777, 0o600)
      const before = await readFile(file, 'utf8')
      assert.match(before, /^AGE-SECRET-KEY-1/m)
      const again = await phone.run(create)
      assert.equal(again.code, 2)
      assert.match(again.stderr, /there is a file .* already/)
      assert.equal(await readFile(file, 'utf8'), before)
    })

    it('is refused if it is none', async () => {
      for (const [words, message] of [
        [
          ['recovery', 'set', account.handle, 'age1abc'],
          /a recipient is the age1/,
        ],
        [['recovery', 'set', 'nobody.test', recipient], /nobody\.test/],
        [
          [
            'backup',
            'export',
            'latest',
            '--out',
            'x',
            '--identity-file',
            '/nowhere',
          ],
          /--identity-file: \/nowhere cannot be read/,
        ],
      ] as const) {
        const { code, stderr } = await phone.run([...words])
        assert.notEqual(code, 0)
        assert.match(stderr, message)
      }
      const wrong = join(folder, 'keys', 'wrong.txt')
      await writeFile(wrong, 'AGE-SECRET-KEY-1NONSENSE')
      const { code, stderr } = await exportTo(phone, 'latest', [
        '--identity-file',
        wrong,
      ])
      assert.equal(code, 2)
      assert.match(stderr, /does not hold an identity/)
      assert.doesNotMatch(stderr, /NONSENSE/)
    })

    it('opens what is backed up from then on, without any agent', async () => {
      await phone.json(['recovery', 'set', account.handle, recipient])
      const status = await phone.json(['status'])
      assert.equal(status.accounts[0].recovery, recipient)
      await mute(`${SECRET} for recovery`)
      await backUp(phone)
      const stranger = createAgent('stranger')
      await stranger.json(['login', 'alice@example.com'])
      await stranger.json(['space', 'use', 'backups'])
      const { out } = await exportTo(stranger, 'latest', [
        '--identity-file',
        file,
      ])
      assert.equal(await preferencesIn(out), `${SECRET} for recovery`)
    })

    it('is unset', async () => {
      await phone.json(['recovery', 'unset', account.handle])
      const { stdout } = await phone.run(['status'])
      assert.match(stdout, /RECOVERY KEY\n.* none$/m)
    })
  })

  describe('and no seal', () => {
    it('make them plain only if the user says so, loudly', async () => {
      const refused = await phone.run([
        'backup',
        'run',
        account.handle,
        '--plain',
      ])
      assert.equal(refused.code, 2)
      assert.match(refused.stderr, /--plain is for backups with --here/)
      const { stderr, code } = await phone.run([
        'backup',
        'run',
        account.handle,
        '--here',
        '--plain',
      ])
      assert.equal(code, 0)
      assert.match(stderr, /warning: PRIVATE PARTS ARE NOT SEALED/)
      const shown = await phone.json(['backup', 'show', 'latest'])
      assert.equal(shown.private[0].plain, true)
      const stranger = createAgent('stranger')
      const { out } = await exportTo(stranger, 'latest')
      assert.equal(await preferencesIn(out), `${SECRET} for recovery`)
    })
  })
})
