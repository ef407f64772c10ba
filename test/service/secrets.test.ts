import assert from 'node:assert/strict'
import { mkdir, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { JoseKey } from '@atproto/oauth-client-node'
import { systemTime } from '../../src/node/index.ts'
import { openStores } from '../../src/stores/index.ts'
import { Agent } from '../cli/harness.ts'
import { consent } from '../network/consent.ts'
import { seedAccount, startBluesky, startNetwork } from '../network/index.ts'
import { comeBack } from './come-back.ts'
import { createFolder, startTestService } from './harness.ts'

const PREFERENCE = 'psst-do-not-tell-mallory'
const MESSAGE = 'psst-meet-me-at-the-old-mill'
const HOUR = 60 * 60_000

describe('secrets', () => {
  it('are in no file, log, receipt or block, whatever was done with them', async () => {
    await using resources = new AsyncDisposableStack()
    const folder = resources.use(await createFolder()).path
    const blobs = join(folder, 'space')
    await mkdir(blobs)
    /** What nobody is to see, and what it is. */
    const secrets = new Map([
      [PREFERENCE, 'preference'],
      [MESSAGE, 'message'],
    ])
    resources.use(watchKeys((key) => secrets.set(key, 'DPoP key')))
    const bluesky = resources.use(await startBluesky())
    bluesky.answers['chat.bsky.actor.exportAccountData'] = {
      type: 'application/jsonl',
      body: `${JSON.stringify({ text: MESSAGE })}\n`,
    }
    let refreshes = 0
    const network = resources.use(
      await startNetwork({
        storacha: { blobDirectory: blobs },
        pds: {
          services: {
            'did:web:api.bsky.chat': { id: '#bsky_chat', url: bluesky.url },
          },
          onToken: (token) => secrets.set(token, 'token'),
          onRefresh: () => void refreshes++,
        },
      })
    )
    const dataFolder = join(folder, 'service')
    let ahead = 0
    const service = resources.use(
      await startTestService({ dataFolder }, network.environment, {
        time: { ...systemTime, now: () => Date.now() + ahead },
      })
    )
    const account = await network.pds.createAccount({ handle: 'alice.test' })
    const bob = await network.pds.createAccount({ handle: 'bob.test' })
    await seedAccount(account.agent, { posts: 2 })
    await account.agent.app.bsky.actor.putPreferences({
      preferences: [
        {
          $type: 'app.bsky.actor.defs#mutedWordsPref',
          items: [
            { value: PREFERENCE, targets: ['content'], actorTarget: 'all' },
          ],
        },
      ],
    })
    const alice = new Agent(join(folder, 'alice'), {
      ...network.environment,
      BLUESKY_BACKUPS_SERVICE_URL: service.url.href,
    })
    const printed: string[] = []
    const run = async (
      words: string[],
      { code = 0, user = account, deny = false } = {}
    ) => {
      const visits: Promise<unknown>[] = []
      const finished = await alice.run([...words, '--verbose'], {
        onStderr: (text) => {
          const [url] = /http:\S+\/oauth\/authorize\S+/.exec(text) ?? []
          if (url === undefined) return
          const { handle: username, password } = user
          const back = consent(new URL(url), { username, password, deny })
          visits.push(
            back.then(async (back) => {
              for (const name of ['code', 'state']) {
                const secret = back.searchParams.get(name)
                if (secret !== null) secrets.set(secret, name)
              }
              const { page, question = '' } = await comeBack(back)
              // The form gives back what the user came with, to nobody else.
              printed.push(page, question.replace(/<form.*<\/form>/s, ''))
            })
          )
        },
      })
      await Promise.all(visits)
      printed.push(finished.stdout, finished.stderr)
      assert.equal(finished.code, code, finished.stderr)
      return finished
    }
    const parts = ['--include', 'preferences,conversations']
    const outcomes = async (words: string[]) => {
      const { json } = await run(['backup', 'run', account.handle, ...words])
      return json
    }

    await run(['login', 'alice@example.com'])
    await run(['space', 'create', 'backups'])
    await run(['authorize', account.handle], { deny: true, code: 1 })
    await run(['authorize', bob.handle], { code: 1 })
    await run(['authorize', account.handle, ...parts])
    await run(['authorize', account.handle, '--here', ...parts])
    for (const words of [[], ['--here']]) {
      const { outcome } = await outcomes([...words, ...parts, '--json'])
      assert.equal(outcome.private.preferences.outcome, 'ok')
      assert.equal(outcome.private.conversations.outcome, 'ok')
    }
    // Refreshed.
    const { did: space } = (await alice.json(['status'])).space
    const path = join(dataFolder, 'service.sqlite')
    ahead = 2 * HOUR
    await account.agent.post({ text: 'hello' })
    await run(['backup', 'run', account.handle, ...parts])
    assert.equal(refreshes, 1)
    {
      await using stores = await openStores({ path })
      const grant = await stores.grants.get(space, account.did)
      assert.equal(grant?.seq, 2)
      assert.equal(grant.published, 2, 'it went along with a backup')
    }
    await run(['authorize', account.handle, '--here', ...parts])
    await run(['authorizations', 'revoke', account.handle])
    await run(['backup', 'run', account.handle, ...parts])
    for (const words of [
      ['status'],
      ['authorizations', 'ls'],
      ['backup', 'show'],
      ['runs'],
    ]) {
      await run([...words, '--json'])
    }
    await service[Symbol.asyncDispose]()

    const places = new Map<string, Buffer>([
      ['log', Buffer.from(service.logged())],
      ['printed', Buffer.from(printed.join('\n'))],
    ])
    for (const entry of await readdir(folder, {
      recursive: true,
      withFileTypes: true,
    })) {
      if (!entry.isFile()) continue
      const path = join(entry.parentPath, entry.name)
      places.set(path, await readFile(path))
    }
    assert.ok([...places.keys()].some((path) => path.startsWith(blobs)))
    const kinds = Map.groupBy(secrets, ([, kind]) => kind)
    // Each of three grants, and a refresh, has a token of either kind.
    assert.equal(kinds.get('token')?.length, 10)
    assert.equal(kinds.get('DPoP key')?.length, 5)
    assert.ok((kinds.get('code')?.length ?? 0) >= 4)
    for (const [place, bytes] of places) {
      for (const [secret, kind] of secrets) {
        assert.ok(secret.length > 10, kind)
        assert.ok(!bytes.includes(secret), `a ${kind} is in ${place}`)
      }
      assert.ok(!bytes.includes('refresh_token'), `tokens are in ${place}`)
    }
  })
})

/** Tells of private keys as they are made, which is in this process alone. */
function watchKeys(onKey: (key: string) => void): Disposable {
  const generate = JoseKey.generate.bind(JoseKey)
  JoseKey.generate = async (...input) => {
    const key = await generate(...input)
    onKey(String((key.privateJwk as { d?: string } | undefined)?.d))
    return key
  }
  return {
    [Symbol.dispose]() {
      JoseKey.generate = generate
    },
  }
}
