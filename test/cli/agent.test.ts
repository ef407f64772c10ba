import assert from 'node:assert/strict'
import { chmod, mkdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Delegation } from '@ucanto/core'
import * as Proof from '@storacha/client/proof'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { startStoracha, type Storacha } from '../network/index.ts'
import { Agent, createFolder } from './harness.ts'

const SERVICE = 'did:key:z6MkgGwb4xuUuddp6KsJqKNstgHUzkup95CyebHLDZZka9eU'
const ACCOUNT = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const DAY = 24 * 60 * 60 * 1000

describe('the agent on the command line', () => {
  const resources = new AsyncDisposableStack()
  let storacha: Storacha
  let folder: string
  let agents = 0

  const createAgent = (upload = storacha) =>
    new Agent(join(folder, `agent-${agents++}`), environmentOf(upload))

  before(async () => {
    folder = resources.use(await createFolder()).path
    storacha = resources.use(await startStoracha())
  })

  after(() => resources.disposeAsync())

  describe('login', () => {
    it('waits for the click on the link', async () => {
      await using storacha = await startStoracha({ autoConfirm: false })
      const agent = createAgent(storacha)
      let clicked = false
      const login = agent.run(['login', 'bob@example.com'])
      while (storacha.mails.length === 0) await tick()
      const click = storacha.confirm(storacha.mails[0]?.url ?? '').then(() => {
        clicked = true
      })
      const { code, stdout, stderr } = await login
      assert.equal(code, 0, stderr)
      assert.ok(clicked)
      assert.match(stderr, /waiting for bob@example.com to click the link/)
      assert.equal(stdout, 'logged in as bob@example.com\n')
      await click

      // Once is enough.
      const again = await agent.run(['login', 'bob@example.com'])
      assert.equal(again.code, 0)
      assert.equal(again.stderr, '')
      assert.equal(storacha.mails.length, 1)
    })

    it('ends when nobody clicks', async () => {
      await using storacha = await startStoracha({ autoConfirm: false })
      const agent = createAgent(storacha)
      const late = await agent.run([
        'login',
        'bob@example.com',
        '--timeout',
        '1s',
        '--json',
      ])
      assert.equal(late.code, 1)
      assert.equal(late.json.error.name, 'NotLoggedInError')
      assert.match(late.json.error.message, /nobody clicked/)

      const interrupt = new AbortController()
      const interrupted = await agent.run(['login', 'bob@example.com'], {
        signal: interrupt.signal,
        onStderr: () => interrupt.abort(),
      })
      assert.equal(interrupted.code, 130)
      assert.match(interrupted.stderr, /error: interrupted\n$/)
      const { accounts } = await agent.json(['whoami'])
      assert.deepEqual(accounts, [])
    })

    it('fails when the upload service is not there', async () => {
      const agent = createAgent()
      const { code, json } = await agent.run([
        'login',
        'bob@example.com',
        '--upload-service-url',
        'http://127.0.0.1:9',
        '--json',
      ])
      assert.equal(code, 1)
      assert.equal(json.error.name, 'UploadServiceError')
      assert.match(json.error.message, /127.0.0.1:9: .*--upload-service-url/)
    })

    it('takes addresses and durations only', async () => {
      const agent = createAgent()
      for (const [argv, message] of [
        [['bob'], /"bob" is not an email address/],
        [['bob@example.com', '--timeout', 'soon'], /--timeout: give a number/],
        [[], /missing required argument 'email'/],
      ] as const) {
        const { code, stderr } = await agent.run(['login', ...argv])
        assert.equal(code, 2)
        assert.match(stderr, message)
      }
    })
  })

  describe('whoami', () => {
    it('makes an agent and tells about it', async () => {
      const agent = createAgent()
      const { stdout } = await agent.run(['whoami'])
      assert.match(stdout, /^agent +did:key:z6Mk\w+\nhome +\/.*\n/)
      assert.match(stdout, /accounts +none; log in .*\nspace +none\n$/)
      const first = await agent.json(['whoami'])
      assert.ok(stdout.includes(first.agent))
      assert.equal(first.space, null)

      await agent.json(['login', 'carol@example.com'])
      const { did } = await agent.json(['space', 'create', 'mine'])
      const after = await agent.json(['whoami'])
      assert.equal(after.agent, first.agent)
      assert.deepEqual(after.accounts, [
        { did: 'did:mailto:example.com:carol', email: 'carol@example.com' },
      ])
      assert.deepEqual(after.space, { did, name: 'mine' })
      const shown = await agent.run(['whoami'])
      assert.match(shown.stdout, /accounts +carol@example.com\n/)
      assert.ok(shown.stdout.includes(`mine  ${did}`))
    })

    it('keeps the key for its owner alone', async () => {
      const agent = createAgent()
      await mkdir(agent.home, { mode: 0o755 })
      await agent.run(['whoami'])
      const file = join(agent.home, 'agent.json')
      assert.equal((await stat(file)).mode & 0o777, 0o600)
      assert.equal((await stat(agent.home)).mode & 0o777, 0o700)
    })

    it('finds its home by the variables of the system', async () => {
      const agent = createAgent()
      const whoami = async (env: Record<string, string>) =>
        (await agent.json(['whoami'], { env })).home
      assert.equal(
        await whoami({
          BLUESKY_BACKUPS_HOME: '',
          XDG_CONFIG_HOME: join(folder, 'xdg'),
        }),
        join(folder, 'xdg', 'bluesky-backups')
      )
      assert.equal(
        await whoami({ BLUESKY_BACKUPS_HOME: '', HOME: join(folder, 'home') }),
        join(folder, 'home', '.config', 'bluesky-backups')
      )
      const { home } = await agent.json([
        'whoami',
        '--home',
        join(folder, 'flag'),
      ])
      assert.equal(home, join(folder, 'flag'))
    })

    it('does not start anew over a file it cannot use', async () => {
      const agent = createAgent()
      await mkdir(agent.home)
      const file = join(agent.home, 'agent.json')
      for (const [content, message] of [
        ['secret nonsense', /does not hold an agent; name another folder/],
        ['{"version":1}', /does not hold an agent/],
        ['{"version":2}', /newer version/],
      ] as const) {
        await writeFile(file, content)
        const { code, stderr } = await agent.run(['whoami', '--verbose'])
        assert.equal(code, 1)
        assert.match(stderr, message)
        assert.ok(!stderr.includes('secret nonsense'))
        assert.equal(await readFile(file, 'utf8'), content)
      }
    })

    it('says if its home cannot be used', async () => {
      const agent = createAgent()
      await writeFile(agent.home, '')
      const { code, stderr } = await agent.run(['whoami'])
      assert.equal(code, 1)
      assert.match(stderr, /cannot be (read|written); /)
    })
  })

  describe('space', () => {
    it('needs an account', async () => {
      const { code, json } = await createAgent().run([
        'space',
        'create',
        'poor',
        '--json',
      ])
      assert.equal(code, 1)
      assert.equal(json.error.name, 'NotLoggedInError')
      assert.match(json.error.message, /bluesky-backups login EMAIL/)
    })

    it('is made, listed and chosen', async () => {
      const agent = createAgent()
      await agent.json(['login', 'dora@example.com'])
      const empty = await agent.run(['space', 'ls'])
      assert.match(empty.stdout, /no Spaces yet/)
      const created = await agent.run(['space', 'create', 'one'])
      assert.match(created.stdout, /^made the Space one {2}did:key:z6Mk/)
      assert.match(created.stdout, /Its own key is not kept\. The account dora/)
      const two = await agent.json(['space', 'create', 'two'])
      assert.equal(two.account, 'did:mailto:example.com:dora')

      const { spaces } = await agent.json(['space', 'ls'])
      assert.deepEqual(
        spaces.map(({ name, current }: { name: string; current: boolean }) => [
          name,
          current,
        ]),
        [
          ['one', false],
          ['two', true],
        ]
      )
      const used = await agent.run(['space', 'use', 'one'])
      assert.match(used.stdout, /^chose the Space one {2}did:key:/)
      const listed = await agent.run(['space', 'ls'])
      assert.match(listed.stdout, /\n\* +one +did:key:\w+\n +two +did:key:/)
      assert.equal((await agent.json(['space', 'use', two.did])).name, 'two')
    })

    it('is not chosen by a name that says nothing, or too much', async () => {
      const agent = createAgent()
      await agent.json(['login', 'eve@example.com'])
      await agent.json(['space', 'create', 'twin'])
      await agent.json(['space', 'create', 'twin'])
      const several = await agent.run(['space', 'use', 'twin'])
      assert.equal(several.code, 2)
      assert.match(several.stderr, /choose by DID: did:key:\w+, did:key:/)
      const none = await agent.run(['space', 'use', 'other', '--json'])
      assert.equal(none.code, 1)
      assert.equal(none.json.error.name, 'NoSpaceError')
    })

    it('is paid for by the account that is meant', async () => {
      const agent = createAgent()
      await agent.json(['login', 'fay@example.com'])
      await agent.json(['login', 'gus@example.com'])
      const several = await agent.run(['space', 'create', 'ours'])
      assert.equal(several.code, 2)
      assert.match(several.stderr, /--account: fay@example.com, gus@example/)
      const { account } = await agent.json([
        'space',
        'create',
        'ours',
        '--account',
        'gus@example.com',
      ])
      assert.equal(account, 'did:mailto:example.com:gus')
      const other = await agent.run([
        'space',
        'create',
        'theirs',
        '--account',
        'zoe@example.com',
      ])
      assert.equal(other.code, 1)
      assert.match(other.stderr, /not logged in to zoe@example.com/)
    })

    it('is on every device of the account', async () => {
      const first = createAgent()
      await first.json(['login', 'hal@example.com'])
      const { did } = await first.json(['space', 'create', 'shared'])
      const second = createAgent()
      await second.json(['login', 'hal@example.com'])
      const { spaces } = await second.json(['space', 'ls'])
      assert.deepEqual(spaces, [{ did, name: 'shared', current: false }])
      await second.json(['space', 'use', 'shared'])
      const { capabilities } = await second.json(['delegate', SERVICE])
      assert.deepEqual(
        capabilities.map(({ can }: { can: string }) => can),
        [...BACKUP_ABILITIES]
      )
      // One that is made later comes with the next login.
      await first.json(['space', 'create', 'later'])
      // Asked twice in a second, the upload service gives the same answer.
      await new Promise((resolve) => setTimeout(resolve, 1000))
      const { spaces: count } = await second.json(['login', 'hal@example.com'])
      assert.equal(count, 2)
    })

    it('is not saved if nobody pays for it', async () => {
      const agent = createAgent()
      await agent.json(['login', 'ian@example.com'])
      storacha.faults.down = true
      const { code, stderr } = await agent.run(['space', 'create', 'poor'])
      storacha.faults.down = false
      assert.equal(code, 1)
      assert.match(stderr, /having ian@example.com pay for the Space failed/)
      const { spaces } = await agent.json(['space', 'ls'])
      assert.deepEqual(spaces, [])
    })
  })

  describe('delegate', () => {
    let agent: Agent
    let space: string

    before(async () => {
      agent = createAgent()
      await agent.json(['login', 'jan@example.com'])
      space = (await agent.json(['space', 'create', 'backups'])).did
    })

    it('allows what a backup needs, for a year', async () => {
      const { code, stdout, stderr } = await agent.run(['delegate', SERVICE])
      assert.equal(code, 0, stderr)
      const delegation = await Proof.parse(stdout.trim())
      assert.equal(delegation.audience.did(), SERVICE)
      assert.deepEqual(
        delegation.capabilities,
        BACKUP_ABILITIES.map((can) => ({ can, with: space }))
      )
      const expires = /expires +(\S+)/.exec(stderr)?.[1] ?? ''
      const days = (Date.parse(expires) - Date.now()) / DAY
      assert.ok(days > 364 && days < 366, expires)
      assert.match(
        stderr,
        /^audience +did:key:.*\nspace +did:key:.*\ncan +space/
      )
    })

    it('is written to a file as a CAR', async () => {
      const file = join(folder, 'service.ucan')
      const { stdout } = await agent.run([
        'delegate',
        SERVICE,
        '-o',
        file,
        '--expires-in',
        '2d',
      ])
      assert.match(stdout, /expires +\d{4}-.*\nfile +\//)
      const { ok } = await Delegation.extract(await readFile(file))
      assert.equal(ok?.audience.did(), SERVICE)
      const left = (ok?.expiration ?? 0) * 1000 - Date.now()
      assert.ok(left > 1.9 * DAY && left <= 2 * DAY)

      const json = await agent.json([
        'delegate',
        SERVICE,
        '-o',
        file,
        '--base64',
      ])
      assert.equal(json.file, file)
      const parsed = await Proof.parse((await readFile(file, 'utf8')).trim())
      assert.equal(parsed.cid.toString(), json.cid)
    })

    it('allows what it is told to', async () => {
      const json = await agent.json([
        'delegate',
        SERVICE,
        '--can',
        'clock/head',
        '--can',
        'upload/*',
        '--run',
        '--account',
        ACCOUNT,
        '--expires-in',
        'never',
      ])
      assert.deepEqual(json.capabilities, [
        { can: 'clock/head', with: space },
        { can: 'upload/*', with: space },
        { can: 'backup/run', with: space, nb: { account: ACCOUNT } },
        { can: 'backup/status', with: space },
      ])
      // The agent's own power over the Space ends first.
      const days = (Date.parse(json.expiration) - Date.now()) / DAY
      assert.ok(days > 364 && days < 366)
      assert.equal(
        (await Proof.parse(json.delegation)).cid.toString(),
        json.cid
      )
    })

    it('does not take what it does not know', async () => {
      for (const [argv, message] of [
        [['did:nobody'], /"did:nobody" is not a DID/],
        [['did:key:nobody'], /"did:key:nobody" is not a DID/],
        [[SERVICE, '--can', 'Clock Head'], /"Clock Head" is not an ability/],
        [[SERVICE, '--expires-in', '0d'], /--expires-in: give a number/],
        [[SERVICE, '--account', 'alice'], /--account: give the DID/],
        [[SERVICE, '--account', ACCOUNT], /--account limits backup\/run/],
        [[], /no backup service is set/],
      ] as const) {
        const { code, stderr } = await agent.run(['delegate', ...argv])
        assert.equal(code, 2, stderr)
        assert.match(stderr, message)
      }
    })

    it('gives away nothing that the agent does not have', async () => {
      const stranger = createAgent()
      const none = await stranger.run(['delegate', SERVICE, '--json'])
      assert.equal(none.code, 1)
      assert.equal(none.json.error.name, 'NoSpaceError')
    })

    it('says if the file cannot be written', async () => {
      const closed = join(folder, 'closed')
      await mkdir(closed)
      await chmod(closed, 0o500)
      const { code, stderr } = await agent.run([
        'delegate',
        SERVICE,
        '-o',
        join(closed, 'missing', 'file'),
      ])
      assert.equal(code, 1)
      assert.match(stderr, /^error: ENOENT|EACCES/)
    })
  })
})

function environmentOf(storacha: Storacha): Record<string, string> {
  return {
    BLUESKY_BACKUPS_UPLOAD_SERVICE_URL: storacha.url,
    BLUESKY_BACKUPS_UPLOAD_SERVICE_DID: storacha.did,
    BLUESKY_BACKUPS_RECEIPTS_URL: storacha.receiptsUrl,
    BLUESKY_BACKUPS_GATEWAY_URLS: storacha.url,
  }
}

function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 5))
}
