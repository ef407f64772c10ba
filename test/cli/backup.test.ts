import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { CarReader } from '@ipld/car'
import type { Manifest } from '../../src/cli/export.ts'
import type { RunningService } from '../../src/service/index.ts'
import {
  createBytes,
  seedAccount,
  startNetwork,
  type Account,
  type Network,
  type Seeded,
} from '../network/index.ts'
import { Agent, createFolder, startTestService } from './harness.ts'

const BLOBS = [1000, 1_500_000]
const TIMESTAMP = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/

describe('backups on the command line', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: RunningService
  let folder: string
  /** Files of what the Spaces hold. */
  let stored: string
  let alice: Account
  let seeded: Seeded
  /** Works with the service. */
  let agent: Agent
  /** Works without. */
  let hermit: Agent

  /** An agent with a Space. */
  const createAgent = async (
    name: string,
    env: Record<string, string> = {}
  ): Promise<Agent> => {
    const agent = new Agent(join(folder, name), {
      ...network.environment,
      ...env,
    })
    await agent.json(['login', `${name}@example.com`])
    await agent.json(['space', 'create', name])
    return agent
  }

  const post = (text: string, account = alice) =>
    account.agent.post({ text, createdAt: new Date().toISOString() })

  before(async () => {
    folder = resources.use(await createFolder()).path
    stored = join(folder, 'stored')
    await mkdir(stored)
    network = resources.use(
      await startNetwork({ storacha: { blobDirectory: stored } })
    )
    service = resources.use(
      await startTestService(network, join(folder, 'service'))
    )
    alice = await network.pds.createAccount({ handle: 'alice.test' })
    seeded = await seedAccount(alice.agent, { posts: 20, blobs: BLOBS })
    agent = await createAgent('alice', {
      BLUESKY_BACKUPS_SERVICE_URL: service.url.href,
    })
    hermit = await createAgent('hermit')
  })

  afterEach(() => {
    Object.assign(network.storacha.faults, {
      uploadsClosed: false,
      down: false,
      lyingGateway: false,
    })
  })

  after(() => resources.disposeAsync())

  describe('before there is one', () => {
    it('lists none', async () => {
      const { code, stdout } = await agent.run(['backup', 'ls'])
      assert.equal(code, 0)
      assert.match(stdout, /no backups yet/)
      const { json } = await hermit.run(['backup', 'ls', '--json'])
      assert.deepEqual(json.backups, [])
    })

    it('shows none', async () => {
      for (const words of [
        [],
        ['alice.test'],
        [alice.did],
        [alice.did, 'latest'],
      ]) {
        const { code, json } = await agent.run([
          'backup',
          'show',
          ...words,
          '--json',
        ])
        assert.equal(code, 1)
        assert.equal(json.error.name, 'NoBackupError')
        assert.match(json.error.message, /backup run/)
      }
    })

    it('has a status nevertheless', async () => {
      const { stdout } = await hermit.run(['status'])
      assert.match(stdout, /head +no events yet/)
    })
  })

  describe('run by the service', () => {
    it('makes a first backup and shows what came of it', async () => {
      const { code, stdout, stderr } = await agent.run([
        'backup',
        'run',
        '@Alice.test',
      ])
      assert.equal(code, 0, stderr)
      assert.match(stdout, /^backup +\d{4}-.*\(first\)\naccount +did:plc:/)
      assert.match(stdout, /records +22\n/)
      assert.match(stdout, /2 blobs, in \d+ requests\n/)
      assert.match(stdout, /missing blobs +none\n/)
    })

    it('has nothing to do when nothing is new', async () => {
      const json = await agent.json(['backup', 'run', alice.did])
      assert.equal(json.outcome.kind, 'unchanged')
      assert.match(json.run, /^baf/)
      const { stdout } = await agent.run(['backup', 'run', alice.did])
      assert.match(stdout, /^nothing is new since the backup of \d{4}-/)
    })

    it('does not wait if it should not', async () => {
      const { code, stdout } = await agent.run([
        'backup',
        'run',
        'alice.test',
        '--detach',
      ])
      assert.equal(code, 0)
      assert.match(stdout, /^baf\w+\nthe run goes on at the service/)
      const { run } = await agent.json([
        'backup',
        'run',
        'alice.test',
        '--detach',
      ])
      const status = await agent.json(['status'])
      assert.ok(status.runs.some((each: { run: string }) => each.run === run))
    })

    it('tells that the run goes on when it is interrupted', async () => {
      network.storacha.faults.down = true
      await post('interrupted')
      const interrupt = new AbortController()
      const { code, stderr } = await agent.run(
        ['backup', 'run', 'alice.test'],
        {
          signal: interrupt.signal,
          onStderr: () => interrupt.abort(),
        }
      )
      assert.equal(code, 130)
      assert.match(stderr, /the run goes on at the service.*status --service/)
      assert.match(stderr, /error: interrupted\n$/)
      const { stdout } = await agent.run(['status'])
      assert.match(stdout, / (running|queued) +[a-z]/)
      network.storacha.faults.down = false
      // The run that goes on is the one that is followed now.
      const { outcome } = await agent.json(['backup', 'run', 'alice.test'])
      assert.equal(outcome.kind, 'incremental')
    })

    it('gives the reason why a run failed', async () => {
      network.storacha.faults.uploadsClosed = true
      await post('refused')
      const { code, json } = await agent.run([
        'backup',
        'run',
        'alice.test',
        '--json',
      ])
      assert.equal(code, 1)
      assert.equal(json.error.name, 'SpaceUnavailableError')
      const { stdout } = await agent.run(['status'])
      assert.match(stdout, /failed +SpaceUnavailableError: the upload service/)
      network.storacha.faults.uploadsClosed = false
      const { outcome } = await agent.json(['backup', 'run', 'alice.test'])
      assert.equal(outcome.kind, 'incremental')
      assert.equal(outcome.records, 1)
    })

    it('fails for an account that is not there', async () => {
      const { code, json } = await agent.run([
        'backup',
        'run',
        'nobody.test',
        '--json',
      ])
      assert.equal(code, 1)
      assert.match(
        json.error.name,
        /^(HandleNotFound|IdentityUnavailable)Error$/
      )
    })

    it('fails when the service is not there', async () => {
      const { code, stderr } = await agent.run([
        'backup',
        'run',
        'alice.test',
        '--service',
        'http://127.0.0.1:9',
      ])
      assert.equal(code, 1)
      assert.match(stderr, /^error: http:\/\/127.0.0.1:9\/ cannot be reached/)
      const status = await agent.run([
        'status',
        '--service',
        'http://127.0.0.1:9',
        '--json',
      ])
      assert.equal(status.code, 1)
      assert.equal(status.json.service.reachable, false)
      const shown = await agent.run([
        'status',
        '--service',
        'http://127.0.0.1:9',
      ])
      assert.match(shown.stdout, /error +http:\/\/127.0.0.1:9\/ cannot/)
    })

    it('is refused by a service that does not know who attests logins', async () => {
      await using folder = await createFolder()
      await using stranger = await startTestService(network, folder.path, {
        trustedAuthorities: '',
      })
      // This device has the Space by its login alone.
      const second = new Agent(join(folder.path, 'agent'), agent.env)
      second.env['BLUESKY_BACKUPS_SERVICE_URL'] = stranger.url.href
      await second.json(['login', 'alice@example.com'])
      await second.json(['space', 'use', 'alice'])
      const { code, json } = await second.run(['backup', 'ls', '--json'])
      assert.equal(code, 1)
      assert.match(json.error.message, /log in again.*trusts/)
    })
  })

  describe('run here', () => {
    it('makes a first backup without any service', async () => {
      const { outcome } = await hermit.json([
        'backup',
        'run',
        'alice.test',
        '--here',
      ])
      assert.equal(outcome.kind, 'first')
      assert.equal(outcome.records, 24)
      assert.equal(outcome.blobsUploaded, 2)
    })

    it('shows how far it is on a terminal', async () => {
      await post('for the bar')
      const { code, stderr } = await hermit.run(
        ['backup', 'run', 'alice.test', '--here'],
        { terminal: true }
      )
      assert.equal(code, 0, stderr)
      assert.match(stderr, /\[-{20}\] finding the account/)
      // The cursor is shown again.
      assert.ok(
        stderr.endsWith('\u001b[?25h') || stderr.includes('\u001b[?25h')
      )
    })

    it('goes on later when it is interrupted', async () => {
      await post('before the interrupt')
      const interrupt = new AbortController()
      const { code, stderr } = await hermit.run(
        ['backup', 'run', 'alice.test', '--here'],
        { signal: interrupt.signal, onStderr: () => interrupt.abort() }
      )
      assert.equal(code, 130)
      assert.match(stderr, /what was uploaded is kept/)
      const { outcome } = await hermit.json([
        'backup',
        'run',
        'alice.test',
        '--here',
      ])
      assert.equal(outcome.kind, 'incremental')
      assert.equal(outcome.records, 1)
    })

    it('uses the clock of the service if there is one', async () => {
      await post('here, with the service')
      const before = await agent.json(['status'])
      const { outcome } = await agent.json([
        'backup',
        'run',
        'alice.test',
        '--here',
      ])
      assert.equal(outcome.kind, 'incremental')
      const { head } = await agent.json(['status'])
      assert.deepEqual(head, [outcome.event])
      assert.notDeepEqual(head, before.head)
    })

    it('keeps to limits', async () => {
      const limited = await createAgent('limited')
      const { outcome } = await limited.json([
        'backup',
        'run',
        'alice.test',
        '--here',
        '--max-blob-size',
        '10000',
      ])
      assert.equal(outcome.blobsFailed, 1)
      const { missing } = await limited.json(['backup', 'show'])
      assert.equal(missing[0].cid, seeded.blobs[1]?.cid)
      assert.equal(missing[0].reason, 'too-large')
      const { stdout } = await limited.run(['backup', 'show', 'latest'])
      assert.match(
        stdout,
        /missing blobs +1\nprivate parts +none are granted.*\n\nMISSING BLOB/
      )
      const listed = await limited.run(['backup', 'ls'])
      assert.match(listed.stdout, /repo, blobs +1\n/)
      const exported = await limited.json([
        'backup',
        'export',
        'latest',
        '--out',
        join(folder, 'limited-export'),
      ])
      assert.equal(exported.missing, 1)
    })

    it('loses nothing when a service is set later', async () => {
      const { backups } = await hermit.json(['backup', 'ls'])
      assert.equal(backups.length, 3)
      const env = { BLUESKY_BACKUPS_SERVICE_URL: service.url.href }
      const listed = await hermit.json(['backup', 'ls'], { env })
      assert.deepEqual(listed.backups, backups)
      await post('after the move')
      const { outcome } = await hermit.json(['backup', 'run', 'alice.test'], {
        env,
      })
      assert.equal(outcome.kind, 'incremental')
      assert.equal(outcome.records, 2)
      const after = await hermit.json(['backup', 'ls'], { env })
      assert.deepEqual(after.backups.slice(1), backups)
    })
  })

  describe('ls', () => {
    it('lists the latest first', async () => {
      const { space, backups } = await agent.json(['backup', 'ls'])
      assert.match(space, /^did:key:/)
      assert.ok(backups.length >= 3)
      const times = backups.map(
        ({ timestamp }: { timestamp: string }) => timestamp
      )
      assert.deepEqual(times, times.toSorted().reverse())
      for (const backup of backups) {
        assert.match(backup.timestamp, TIMESTAMP)
        assert.equal(backup.account, alice.did)
        assert.deepEqual(backup.parts, ['repo', 'blobs'])
        assert.equal(backup.missing, 0)
      }
      const { stdout } = await agent.run(['backup', 'ls', 'alice.test'])
      assert.match(stdout, /^TIME +ACCOUNT +REVISION +PARTS +MISSING BLOBS\n/)
      assert.ok(stdout.includes(times[0]))
    })

    it('ends at once when it is interrupted', async () => {
      await using hanging = await startHangingServer()
      const interrupt = new AbortController()
      void hanging.asked.then(() => interrupt.abort())
      const { code, stderr } = await agent.run(
        ['backup', 'ls', '--service', hanging.url],
        { signal: interrupt.signal }
      )
      assert.equal(code, 130)
      assert.equal(stderr, 'error: interrupted\n')
    })

    it('lists as many as asked for', async () => {
      const { backups } = await agent.json(['backup', 'ls', '--limit', '2'])
      assert.equal(backups.length, 2)
      const { code, stderr } = await agent.run([
        'backup',
        'ls',
        '--limit',
        'all',
      ])
      assert.equal(code, 2)
      assert.match(stderr, /--limit: must be a whole number/)
    })
  })

  describe('show', () => {
    it('shows all of a backup', async () => {
      const { backups } = await agent.json(['backup', 'ls'])
      const oldest = backups.at(-1)
      const shown = await agent.json([
        'backup',
        'show',
        'alice.test',
        oldest.timestamp,
      ])
      assert.equal(shown.timestamp, oldest.timestamp)
      assert.equal(shown.backup, oldest.backup)
      assert.equal(shown.handle, 'alice.test')
      assert.equal(shown.signature, 'current')
      assert.equal(shown.blobs, 2)
      assert.deepEqual(shown.missing, [])
      const { stdout } = await agent.run(['backup', 'show', oldest.timestamp])
      assert.match(stdout, /signature +by the account's key\n/)
    })

    it('takes the beginning of a time', async () => {
      const { backups } = await agent.json(['backup', 'ls'])
      const year = backups[0].timestamp.slice(0, 4)
      const several = await agent.run(['backup', 'show', year])
      assert.equal(several.code, 2)
      assert.match(several.stderr, /several backups are of/)
      const [only] = (await hermit.json(['backup', 'ls', '--limit', '1']))
        .backups
      const shown = await hermit.json([
        'backup',
        'show',
        only.timestamp.slice(0, -1),
      ])
      assert.equal(shown.timestamp, only.timestamp)
    })

    it('does not take a time without a backup', async () => {
      const { code, stderr } = await agent.run(['backup', 'show', '1999-12'])
      assert.equal(code, 1)
      assert.match(stderr, /there is no backup of did:plc:\w+ at 1999-12/)
      const wrong = await agent.run(['backup', 'show', 'alice.test', 'noon'])
      assert.equal(wrong.code, 2)
      assert.match(wrong.stderr, /"noon" is not the time of a backup/)
    })

    it('finds an account by the handle it had', async () => {
      const env = { BLUESKY_BACKUPS_HANDLE_RESOLVER_URL: 'http://127.0.0.1:9' }
      const { account } = await hermit.json(
        ['backup', 'show', 'alice.test', 'latest'],
        { env }
      )
      assert.equal(account, alice.did)
      const { code, json } = await hermit.run(
        ['backup', 'show', 'bob.test', '--json'],
        { env }
      )
      assert.equal(code, 1)
      assert.equal(json.error.name, 'IdentityUnavailableError')
    })
  })

  describe('several accounts in a Space', () => {
    it('asks which is meant', async () => {
      const family = await createAgent('family')
      const bob = await network.pds.createAccount({ handle: 'bob.test' })
      await post('hello', bob)
      for (const handle of ['alice.test', 'bob.test']) {
        await family.json(['backup', 'run', handle, '--here'])
      }
      const { code, stderr } = await family.run(['backup', 'verify', 'latest'])
      assert.equal(code, 2)
      assert.match(stderr, /backups of 2 accounts; name one of did:plc:/)
      const { records } = await family.json([
        'backup',
        'verify',
        'bob.test',
        'latest',
      ])
      assert.equal(records, 1)
      const { backups } = await family.json(['backup', 'ls'])
      assert.equal(backups.length, 2)
      const { accounts } = await family.json(['status'])
      assert.deepEqual(
        accounts.map(({ account }: { account: string }) => account),
        [alice.did, bob.did].toSorted()
      )
      const { code: missing, json } = await family.run([
        'backup',
        'ls',
        'did:plc:ewvi7nxzyoun6zhxrhs64oiz',
        '--json',
      ])
      assert.equal(missing, 1)
      assert.equal(json.error.name, 'NoBackupError')
    })
  })

  describe('export', () => {
    it('writes all that the host has', async () => {
      await agent.json(['backup', 'run', 'alice.test'])
      const out = join(folder, 'export')
      const result = await agent.json([
        'backup',
        'export',
        'latest',
        '--out',
        out,
      ])
      assert.equal(result.blobs, 2)
      assert.deepEqual((await readdir(out)).sort(), [
        'blobs',
        'did-document.json',
        'manifest.json',
        'plc-log.json',
        'repo.car',
      ])
      const manifest = await readManifest(out)
      const car = await readFile(join(out, 'repo.car'))
      assert.equal(
        manifest.repo.sha256,
        createHash('sha256').update(car).digest('hex')
      )
      assert.equal(manifest.repo.bytes, car.length)
      assert.match(manifest.timestamp ?? '', TIMESTAMP)
      assert.equal(manifest.handle, 'alice.test')

      const { data } = await alice.agent.com.atproto.sync.getRepo({
        did: alice.did,
      })
      assert.deepEqual(await blocksOf(car), await blocksOf(data))

      assert.deepEqual(
        manifest.blobs,
        seeded.blobs
          .map(({ cid, mimeType, size }) => ({
            cid,
            file: `blobs/${cid}`,
            size,
            mimeType,
          }))
          .sort((a, b) => (a.cid < b.cid ? -1 : 1))
      )
      for (const [index, { cid }] of seeded.blobs.entries()) {
        const bytes = await readFile(join(out, 'blobs', cid))
        const original = createBytes(BLOBS[index] ?? 0, `:${index}`)
        assert.ok(bytes.equals(original))
      }
      const document = JSON.parse(
        await readFile(join(out, 'did-document.json'), 'utf8')
      )
      assert.equal(document.id, alice.did)
    })

    it('writes over nothing unless it should', async () => {
      const out = join(folder, 'taken')
      await mkdir(out)
      await writeFile(join(out, 'letter.txt'), 'mine')
      await writeFile(join(out, 'plc-log.json'), 'old')
      const command = ['backup', 'export', alice.did, 'latest', '--out', out]
      const { code, stderr } = await agent.run(command)
      assert.equal(code, 1)
      assert.match(stderr, /is not empty.*--force/)
      assert.equal((await readdir(out)).length, 2)

      const forced = await agent.run([...command, '--force'])
      assert.equal(forced.code, 0, forced.stderr)
      assert.match(forced.stdout, /^exported the backup of did:plc:/)
      assert.equal(await readFile(join(out, 'letter.txt'), 'utf8'), 'mine')
      assert.notEqual(await readFile(join(out, 'plc-log.json'), 'utf8'), 'old')
      assert.equal((await readManifest(out)).blobs.length, 2)

      const file = await agent.run([
        ...command.slice(0, -1),
        join(out, 'letter.txt'),
      ])
      assert.equal(file.code, 1)
      assert.match(file.stderr, /is a file; name a folder/)
    })

    it('leaves nothing behind when it is interrupted', async () => {
      const parent = join(folder, 'interrupted')
      await mkdir(parent)
      const interrupt = new AbortController()
      const { code } = await agent.run(
        ['backup', 'export', 'latest', '--out', join(parent, 'export')],
        { signal: interrupt.signal, onStderr: () => interrupt.abort() }
      )
      assert.equal(code, 130)
      assert.deepEqual(await readdir(parent), [])
    })
  })

  describe('verify', () => {
    it('finds nothing wrong', async () => {
      const result = await agent.json(['backup', 'verify', 'latest'])
      assert.equal(result.verified, true)
      assert.equal(result.blobs, 2)
      assert.deepEqual(result.problems, [])
      const { code, stdout } = await agent.run(['backup', 'verify'])
      assert.equal(code, 0)
      assert.match(stdout, /2 blobs, 0 missing; all is as it should be\n$/)
    })

    it('finds what is damaged, and the rest can be exported', async () => {
      const unlucky = await createAgent('unlucky')
      await unlucky.json(['backup', 'run', 'alice.test', '--here'])
      await damage(stored, createBytes(BLOBS[0] ?? 0, ':0'))
      const { code, stdout } = await unlucky.run(['backup', 'verify'])
      assert.equal(code, 1)
      const cid = seeded.blobs[0]?.cid ?? ''
      assert.ok(stdout.startsWith(`${cid}: no gateway gave`), stdout)
      assert.match(stdout, /; 1 problem\n$/)

      const out = join(folder, 'damaged')
      const exported = await unlucky.run([
        'backup',
        'export',
        'latest',
        '--out',
        out,
        '--json',
      ])
      assert.equal(exported.code, 1)
      assert.equal(exported.json.unreadable[0].cid, cid)
      const manifest = await readManifest(out)
      assert.deepEqual(await readdir(join(out, 'blobs')), [
        seeded.blobs[1]?.cid,
      ])
      assert.equal(manifest.blobs.length, 1)
      assert.equal(manifest.unreadable.length, 1)
      const shown = await unlucky.run([
        'backup',
        'export',
        'latest',
        '--out',
        out,
        '--force',
      ])
      assert.match(shown.stdout, new RegExp(`unreadable: ${cid}: no gateway`))
    })

    it('fails if the gateway lies about everything', async () => {
      network.storacha.faults.lyingGateway = true
      const { code, json } = await agent.run(['backup', 'verify', '--json'])
      assert.equal(code, 1)
      assert.equal(json.error.name, 'GatewayError')
    })
  })

  describe('wrong usage', () => {
    for (const [argv, message] of [
      [['backup', 'run'], /missing required argument 'account'/],
      [['backup', 'run', 'a.test'], /no backup service is set/],
      [
        ['backup', 'run', 'a.test', '--here', '--detach'],
        /leave out --here or --detach/,
      ],
      [
        ['backup', 'run', 'a.test', '--here', '--max-blob-size', 'huge'],
        /--max-blob-size: must be a whole number/,
      ],
      [['backup', 'export', 'latest'], /required option '--out <FOLDER>'/],
      [['backup', 'ls', '--service', 'ftp://x'], /--service: must be an http/],
    ] as const) {
      it(argv.join(' '), async () => {
        const { code, stderr } = await hermit.run([...argv])
        assert.equal(code, 2)
        assert.match(stderr, message)
      })
    }
  })
})

/** A server that never answers. */
async function startHangingServer() {
  const { promise: asked, resolve } = Promise.withResolvers<void>()
  const server = createServer(() => resolve())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${port}`,
    asked,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

async function readManifest(folder: string): Promise<Manifest> {
  return JSON.parse(await readFile(join(folder, 'manifest.json'), 'utf8'))
}

/** CIDs of the blocks of a CAR, sorted. */
async function blocksOf(car: Uint8Array): Promise<string[]> {
  const reader = await CarReader.fromBytes(car)
  const cids: string[] = []
  for await (const { cid } of reader.blocks()) cids.push(cid.toString())
  return cids.sort()
}

/** Changes a byte wherever these bytes are stored. */
async function damage(folder: string, bytes: Uint8Array): Promise<void> {
  for (const name of await readdir(folder)) {
    const path = join(folder, name)
    const content = await readFile(path)
    const offset = content.indexOf(bytes)
    if (offset < 0) continue
    content[offset] = (content[offset] ?? 0) ^ 1
    await writeFile(path, content)
  }
}
