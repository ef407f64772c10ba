import assert from 'node:assert/strict'
import { join } from 'node:path'
import type { Browser, BrowserContext, Page } from 'playwright-core'
import type { Authorization as Protocol } from '../../src/capabilities/index.ts'
import { Agent, startTestService } from '../cli/harness.ts'
import { consent } from '../network/consent.ts'
import { startNetwork, type Account, type Network } from '../network/index.ts'
import type { RunningService } from '../../src/service/index.ts'
import { createFolder } from '../service/harness.ts'
import { signIn, startChromium } from './chromium.ts'

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

  before(async () => {
    folder = resources.use(await createFolder()).path
    network = resources.use(await startNetwork())
    service = resources.use(
      await startTestService(network, join(folder, 'service'))
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
        assert.equal(await title(), 'You have let Bluesky Backups in')
        assert.match(await page.locator('main').innerText(), /preferences/)
        if (process.env['SCREENSHOTS']) {
          await page.screenshot({
            path: join(process.env['SCREENSHOTS'], 'done.png'),
          })
        }
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

  it('does not take another account than was asked for', async () => {
    const { code, json } = await authorize([bob.handle], async (url) => {
      // The pages of this host let nobody in but who was asked for; those of
      // others may.
      await page.goto((await consent(url, user())).href)
      assert.equal(await title(), 'This is another account')
    })
    assert.equal(code, 1)
    assert.equal(json.error.name, 'WrongAccount')
  })

  it('takes nobody who comes back a second time', async () => {
    let callback = ''
    page.on('request', (request) => {
      const url = request.url()
      if (url.includes('/oauth/callback')) callback = url
    })
    await authorize([account.handle], async (url) => {
      await page.goto(url.href)
      await signIn(page, user())
      await page.waitForURL('**/oauth/callback**')
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
