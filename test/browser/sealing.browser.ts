import assert from 'node:assert/strict'
import { fileURLToPath } from 'node:url'
import type { Page } from 'playwright-core'
import { ed25519 } from '@ucanto/principal'
import {
  deriveIdentity,
  openPart,
  recipientOf,
  sealPart,
} from '../../src/space/index.ts'
import type { Exposed, Kind } from './sealing-page.ts'
import { alice } from '../space/helpers.ts'
import { startChromium } from './chromium.ts'
import { openPage } from './open-page.ts'

const ENTRY = fileURLToPath(new URL('sealing-page.ts', import.meta.url))

/** More than one chunk of age. */
const LONG = 'psst '.repeat(50_000)

for (const kind of ['rsa', 'ed25519'] satisfies Kind[]) {
  describe(`sealing in Chromium, by an agent with a key of ${kind}`, () => {
    const resources = new AsyncDisposableStack()
    let page: Page
    let did: string

    before(async () => {
      const browser = resources.use(await startChromium())
      page = resources.use(await openPage(browser, ENTRY)).page
      did = await call('create', kind)
    })

    after(() => resources.disposeAsync())

    async function call<Name extends keyof Exposed>(
      name: Name,
      ...given: Parameters<Exposed[Name]>
    ): Promise<Awaited<ReturnType<Exposed[Name]>>> {
      return page.evaluate(
        ([name, given]) =>
          (globalThis as any).agent[name as string](...(given as unknown[])),
        [name, given] as const
      )
    }

    /** The page is another one then: nothing but what is stored is left. */
    async function reload(): Promise<void> {
      await page.reload()
      await page.waitForFunction(() => 'ready' in globalThis)
    }

    if (kind === 'rsa') {
      it('keeps a key that nobody can take out', async () => {
        assert.equal(await call('extract', kind), 'InvalidAccessError')
      })
    }

    it('opens its authorization after a reload', async () => {
      const sealed = await call('seal', kind, 'a grant')
      await reload()
      assert.equal(await call('open', kind, sealed), 'a grant')
      const changed = { ...sealed, seq: 2 }
      await assert.rejects(
        call('open', kind, changed),
        /UnsealError|sealed as another/
      )
      assert.match(did, /^did:key:z/)
    })

    it('opens private parts after a reload, which others have sealed', async () => {
      const recipient = await call('recipient', kind)
      await reload()
      assert.equal(await call('recipient', kind), recipient)
      const sealed = await sealPart([recipient], new Blob([LONG]).stream())
      const bytes = new Uint8Array(await new Response(sealed).arrayBuffer())
      assert.equal(await call('openSealed', kind, [...bytes]), LONG)
      bytes[bytes.length - 1]! ^= 1
      await assert.rejects(call('openSealed', kind, [...bytes]))
    })

    it('seals private parts that an agent elsewhere opens', async () => {
      const bob = await ed25519.generate()
      const identity = await deriveIdentity(bob, {
        space: 'did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH',
        account: alice,
      })
      const recipients = [
        await recipientOf(identity),
        await call('recipient', kind),
      ]
      const sealed = await call('sealFor', recipients, LONG)
      assert.equal(await call('openSealed', kind, sealed), LONG)
      const stream = new Blob([Uint8Array.from(sealed)]).stream()
      const opened = await openPart(identity, stream)
      assert.equal(await new Response(opened).text(), LONG)
      assert.ok(!Buffer.from(sealed).includes('psst'))
    })
  })
}
