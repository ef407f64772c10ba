import assert from 'node:assert/strict'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Browser, BrowserContext, Page } from 'playwright-core'
import type { Authorization as Protocol } from '../../src/capabilities/index.ts'
import { Agent, startTestService } from '../cli/harness.ts'
import { consent } from '../network/consent.ts'
import { systemTime } from '../../src/node/index.ts'
import {
  seedAccount,
  startBluesky,
  startNetwork,
  type Account,
  type Network,
} from '../network/index.ts'
import type { RunningService } from '../../src/service/index.ts'
import { createFolder, until } from '../service/harness.ts'
import { signIn, startChromium } from './chromium.ts'

/** Longer than a request is good for, in milliseconds. */
const LONG = 16 * 60_000

/** All as a user does it: the command in a terminal, the rest in a browser. */
describe('authorizing in a browser', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: RunningService
  let browser: Browser
  let context: BrowserContext
  let page: Page
  let folder: string
  let account: Account
  let bob: Account
  let alice: Agent
  /** What went wrong in the pages. */
  let errors: string[]
  /** Whether the host knows no scopes by the names of methods. */
  let isOld = false
  /** How far the time of the service is ahead, in milliseconds. */
  let ahead = 0

  before(async () => {
    folder = resources.use(await createFolder()).path
    const bluesky = resources.use(await startBluesky())
    bluesky.answers['chat.bsky.actor.exportAccountData'] = {
      type: 'application/jsonl',
      body: `${JSON.stringify({ text: 'see you at the mill' })}\n`,
    }
    network = resources.use(
      await startNetwork({
        pds: {
          services: {
            'did:web:api.bsky.chat': { id: '#bsky_chat', url: bluesky.url },
          },
          isOld: () => isOld,
        },
      })
    )
    service = resources.use(
      await startTestService(
        network,
        join(folder, 'service'),
        {},
        { time: { ...systemTime, now: () => Date.now() + ahead } }
      )
    )
    browser = resources.use(await startChromium())
    account = await network.pds.createAccount({ handle: 'alice.test' })
    bob = await network.pds.createAccount({ handle: 'bob.test' })
    alice = createAgent('alice')
    await alice.json(['login', 'alice@example.com'])
    await alice.json(['space', 'create', 'backups'])
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    isOld = false
    ahead = 0
    context = await browser.newContext({ locale: 'en-US' })
    page = await context.newPage()
    errors = []
    page.on('pageerror', ({ message }) => errors.push(message))
    page.on('console', (message) => {
      if (message.type() === 'error') errors.push(message.text())
    })
  })

  afterEach(() => context.close())

  const createAgent = (name: string) =>
    new Agent(join(folder, name), {
      ...network.environment,
      BLUESKY_BACKUPS_SERVICE_URL: service.url.href,
    })

  /** Runs `authorize`, and has the user do something where it leads to. */
  const authorize = async (
    words: string[],
    visit: (url: URL) => Promise<void>,
    agent = alice
  ) => {
    const visited = Promise.withResolvers<void>()
    visited.promise.catch(() => {})
    let shown = ''
    const finished = await agent.run(['authorize', ...words, '--json'], {
      onStderr: (text) => {
        shown += text
        const [url] = /http:\S+/.exec(shown) ?? []
        if (url === undefined || !shown.includes('waiting')) return
        shown = ''
        visit(new URL(url)).then(visited.resolve, visited.reject)
      },
    })
    await visited.promise
    return finished
  }

  const title = async () => page.locator('h1').innerText()

  const screenshot = async (name: string) => {
    const folder = process.env['SCREENSHOTS']
    if (folder === undefined) return
    await page.screenshot({ path: join(folder, `${name}.png`) })
  }

  /** Answers the question whose the Space is. */
  const answer = async (label: RegExp = /^Yes/) => {
    await page.waitForURL('**/oauth/callback**')
    assert.equal(await title(), 'Are the backups yours?')
    const { did: space } = (await alice.json(['status'])).space
    assert.ok((await page.locator('main').innerText()).includes(space))
    await screenshot('question')
    await page.getByRole('button', { name: label }).click()
    await page.waitForURL('**/oauth/callback')
  }

  const user = () => ({
    username: account.handle,
    password: account.password,
  })

  it('lets the service in, and comes back to a page of it', async () => {
    const { code, json, stdout } = await authorize(
      [account.handle],
      async (url) => {
        await page.goto(url.href)
        await signIn(page, user())
        await page.waitForURL(
          `${service.url.href.replace('localhost', '127.0.0.1')}**`
        )
        await answer()
        assert.equal(await title(), 'You have let Bluesky Backups in')
        assert.match(await page.locator('main').innerText(), /preferences/)
        await screenshot('done')
      }
    )
    assert.equal(code, 0, stdout)
    const granted = json as Protocol.Granted
    assert.equal(granted.account, account.did)
    assert.ok(granted.parts.includes('preferences'))
    assert.deepEqual(errors, [])
  })

  it('does not let it in when the user says no', async () => {
    const { code, json } = await authorize([account.handle], async (url) => {
      await page.goto(url.href)
      await signIn(page, { ...user(), deny: true })
      await page.waitForURL('**/oauth/callback**')
      assert.equal(await title(), 'You have said no')
    })
    assert.equal(code, 1)
    assert.equal(json.error.name, 'AuthorizationRefused')
  })

  it('does not let it in when the Space is not that of the user', async () => {
    const { code, json } = await authorize([account.handle], async (url) => {
      await page.goto(url.href)
      await signIn(page, user())
      await answer(/^No/)
      assert.equal(await title(), 'You have said no')
    })
    assert.equal(code, 1)
    assert.equal(json.error.name, 'AuthorizationRefused')
    assert.deepEqual(
      // The browser says that the page has a status of its own.
      errors.filter((error) => !error.includes('status of 400')),
      []
    )
  })

  it('does not let it in when the user takes too long', async () => {
    for (const moment of ['at the host', 'at the question']) {
      ahead = 0
      const { code, json } = await authorize([account.handle], async (url) => {
        await page.goto(url.href)
        if (moment === 'at the host') ahead = LONG
        await signIn(page, user())
        await page.waitForURL('**/oauth/callback**')
        if (moment === 'at the question') {
          ahead = LONG
          await page.getByRole('button', { name: /^Yes/ }).click()
          await page.waitForURL('**/oauth/callback')
        }
        assert.equal(await title(), 'This page is not valid any more', moment)
      })
      assert.equal(code, 1)
      assert.equal(json.error.name, 'AuthorizationExpired')
    }
  })

  it('asks once more at a host that knows no scopes by name', async () => {
    isOld = true
    const { code, json, stdout } = await authorize(
      [account.handle, '--include', 'preferences,conversations'],
      async (url) => {
        await page.goto(url.href)
        await signIn(page, user())
        await answer()
        assert.equal(await title(), 'Your host asks you once more')
        await screenshot('again')
        await page.getByRole('link', { name: /^Go on at/ }).click()
        await signIn(page, user())
        await answer()
        assert.equal(await title(), 'You have let Bluesky Backups in')
      }
    )
    assert.equal(code, 0, stdout)
    assert.deepEqual(json.missing, [])
    assert.ok(json.parts.includes('conversations'))
    const { authorizations } = await alice.json(['authorizations', 'ls'])
    assert.match(authorizations[0].scope, /transition:chat\.bsky/)
    assert.deepEqual(errors, [])
  })

  it('has the service back up what only the owner may read, on a schedule', async () => {
    await seedAccount(account.agent, { posts: 2 })
    await account.agent.app.bsky.actor.putPreferences({
      preferences: [
        { $type: 'app.bsky.actor.defs#adultContentPref', enabled: true },
      ],
    })
    const parts = ['--include', 'preferences,conversations']
    await authorize([account.handle, ...parts], async (url) => {
      await page.goto(url.href)
      await signIn(page, user())
      await answer()
    })
    await authorize([account.handle, '--here', ...parts], async (url) => {
      await page.goto(url.href)
      await signIn(page, user())
      await page.waitForURL('**/oauth/callback**')
    })
    const { authorizations } = await alice.json(['authorizations', 'ls'])
    for (const { scope } of authorizations) {
      assert.match(scope, /rpc:chat\.bsky\.actor\.exportAccountData/)
      assert.ok(!scope.includes('transition:'))
    }
    await alice.json(['schedule', account.handle, '--every', '1h', ...parts])
    // By then the session has to be refreshed, too.
    ahead = 2 * 60 * 60_000
    const [schedule] = await until(async () => {
      const { schedules } = await alice.json(['schedules'])
      return schedules[0]?.lastRun ? schedules : undefined
    })
    assert.equal(schedule.account, account.did)
    const { private: outcomes } = await until(async () => {
      const shown = await alice.run(['backup', 'show', '--json'])
      return shown.code === 0 ? shown.json : undefined
    })
    assert.deepEqual(
      outcomes.map(({ part, outcome }: Record<string, string>) => [
        part,
        outcome,
      ]),
      [
        ['preferences', 'ok'],
        ['conversations', 'ok'],
      ]
    )
    await alice.json(['unschedule', account.handle])

    const out = join(folder, 'export')
    const { code, stderr } = await alice.run([
      'backup',
      'export',
      account.did,
      '--out',
      out,
    ])
    assert.equal(code, 0, stderr)
    const found: string[] = []
    for (const entry of await readdir(out, {
      recursive: true,
      withFileTypes: true,
    })) {
      if (!entry.isFile()) continue
      const text = await readFile(join(entry.parentPath, entry.name), 'latin1')
      if (/adultContentPref|see you at the mill/.test(text)) {
        found.push(entry.name)
      }
    }
    assert.equal(found.length, 2, found.join())
  })

  it('does not take another account than was asked for', async () => {
    const { code, json } = await authorize([bob.handle], async (url) => {
      // The pages of this host let nobody in but who was asked for; those of
      // others may.
      await page.goto((await consent(url, user())).href)
      await answer()
      assert.equal(await title(), 'This is another account')
    })
    assert.equal(code, 1)
    assert.equal(json.error.name, 'WrongAccount')
  })

  it('takes nobody who comes back a second time', async () => {
    let callback = ''
    page.on('request', (request) => {
      const url = request.url()
      if (url.includes('/oauth/callback?')) callback = url
    })
    await authorize([account.handle], async (url) => {
      await page.goto(url.href)
      await signIn(page, user())
      await answer()
    })
    assert.notEqual(callback, '')
    await page.goto(callback)
    assert.equal(await title(), 'This page is not valid any more')
  })

  it('lets a second agent in, beside the service', async () => {
    const { code, json } = await authorize(
      [account.handle, '--here'],
      async (url) => {
        await page.goto(url.href)
        await signIn(page, user())
        await page.waitForURL('**/oauth/callback**')
        assert.equal(await title(), 'You have let this agent in')
      }
    )
    assert.equal(code, 0)
    assert.equal(json.agent, (await alice.json(['whoami'])).agent)
    const { authorizations } = await alice.json(['authorizations', 'ls'])
    assert.deepEqual(
      authorizations.map(({ who }: { who: string }) => who).sort(),
      ['the service', 'this agent']
    )
  })
})
