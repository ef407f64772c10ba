import assert from 'node:assert/strict'
import { mkdir, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createSha256 } from '../../src/backup/index.ts'
import { loadKeyFile } from '../../src/node/index.ts'
import {
  listAuthorizations,
  mergeHeads,
  openAuthorization,
  type DID,
  type EventLink,
} from '../../src/space/index.ts'
import { openStores } from '../../src/stores/index.ts'
import { createSpaceReader } from '../../src/storacha/index.ts'
import { CID } from 'multiformats/cid'
import { Agent } from '../cli/harness.ts'
import { consent } from '../network/consent.ts'
import { seedAccount, startNetwork } from '../network/index.ts'
import { comeBack } from './come-back.ts'
import { createFolder, startTestService } from './harness.ts'

const SECRET = 'psst-do-not-tell-mallory'

describe('secrets', () => {
  it('are in no file, log, receipt or block, whatever was done with them', async () => {
    await using resources = new AsyncDisposableStack()
    const folder = resources.use(await createFolder()).path
    const blobs = join(folder, 'space')
    await mkdir(blobs)
    const network = resources.use(
      await startNetwork({ storacha: { blobDirectory: blobs } })
    )
    const dataFolder = join(folder, 'service')
    const service = resources.use(
      await startTestService({ dataFolder }, network.environment)
    )
    const account = await network.pds.createAccount({ handle: 'alice.test' })
    await seedAccount(account.agent, { posts: 2 })
    await account.agent.app.bsky.actor.putPreferences({
      preferences: [
        {
          $type: 'app.bsky.actor.defs#mutedWordsPref',
          items: [{ value: SECRET, targets: ['content'], actorTarget: 'all' }],
        },
      ],
    })
    const alice = new Agent(join(folder, 'alice'), {
      ...network.environment,
      BLUESKY_BACKUPS_SERVICE_URL: service.url.href,
    })
    const printed: string[] = []
    /** Told from the host to us by way of the browser, and used once. */
    const passed: string[] = []
    const run = async (words: string[]) => {
      const visits: Promise<unknown>[] = []
      const finished = await alice.run([...words, '--verbose'], {
        onStderr: (text) => {
          const [url] = /http:\S+\/oauth\/authorize\S+/.exec(text) ?? []
          if (url === undefined) return
          const { handle: username, password } = account
          const back = consent(new URL(url), { username, password })
          visits.push(
            back.then(async (back) => {
              passed.push(
                ...['code', 'state'].map((name) => back.searchParams.get(name)!)
              )
              const { page } = await comeBack(back)
              printed.push(page)
            })
          )
        },
      })
      await Promise.all(visits)
      printed.push(finished.stdout, finished.stderr)
      assert.equal(finished.code, 0, finished.stderr)
      return finished
    }
    await run(['login', 'alice@example.com'])
    await run(['space', 'create', 'backups'])
    await run(['authorize', account.handle])
    await run(['authorize', account.handle, '--here'])
    await run(['backup', 'run', account.handle])
    await run(['backup', 'run', account.handle, '--here'])
    for (const words of [
      ['status'],
      ['authorizations', 'ls'],
      ['backup', 'show'],
      ['runs'],
    ]) {
      await run([...words, '--json'])
    }

    // What the service holds, opened by its own key.
    const { did: space } = (await alice.json(['status'])).space
    const agent = await loadKeyFile(join(dataFolder, 'service.key'))
    const subject = { space: space as DID, account: account.did as DID }
    await service[Symbol.asyncDispose]()
    const stores = resources.use(
      await openStores({ path: join(dataFolder, 'service.sqlite') })
    )
    const reader = createSpaceReader({
      gateways: [new URL(network.storacha.url)],
      fetch: globalThis.fetch,
      createSha256,
    })
    const head = await stores.clock.head(space)
    const { state } = await mergeHeads(
      reader,
      head.map((cid) => CID.parse(cid) as EventLink)
    )
    const [own] = await listAuthorizations(reader, state, subject.account, {
      agent: agent.did(),
    })
    assert.ok(own)
    const opened = await openAuthorization(agent, subject, own.authorization)
    const { session } = JSON.parse(new TextDecoder().decode(opened))
    const { dpopJwk, tokenSet } = JSON.parse(session)
    const secrets = {
      key: dpopJwk.d,
      accessToken: tokenSet.access_token,
      refreshToken: tokenSet.refresh_token,
      preference: SECRET,
    }
    await stores[Symbol.asyncDispose]()

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
    assert.equal(passed.length, 4)
    for (const [place, bytes] of places) {
      for (const [name, secret] of [
        ...Object.entries<string>(secrets),
        ...passed.map((secret) => ['passed', secret] as const),
      ]) {
        assert.ok(secret.length > 10, name)
        assert.ok(!bytes.includes(secret), `the ${name} is in ${place}`)
      }
      assert.ok(!bytes.includes('refresh_token'), `tokens are in ${place}`)
    }
  })
})
