import assert from 'node:assert/strict'
import { createPrivateReader } from '../../src/atproto/index.ts'
import type { HostGate, PrivateLimits } from '../../src/atproto/index.ts'
import type {
  AccountSession,
  Identity,
  PrivatePart,
} from '../../src/backup/index.ts'
import { PRIVATE_PARTS } from '../../src/space/index.ts'
import { startBluesky, type Answer, type Bluesky } from '../network/index.ts'

/** What no error may quote: errors are for all to read. */
const SECRET = 'psst-do-not-tell-mallory'

const LISTS = {
  mutes: ['app.bsky.graph.getMutes', 'mutes'],
  'muted-lists': ['app.bsky.graph.getListMutes', 'lists'],
  'blocked-lists': ['app.bsky.graph.getListBlocks', 'lists'],
  bookmarks: ['app.bsky.bookmark.getBookmarks', 'bookmarks'],
  drafts: ['app.bsky.draft.getDrafts', 'drafts'],
} as const

/**
 * Hosts as they should not be. A PDS only hands on what these services answer,
 * and would hide half of it: here they are the host itself.
 */
describe('private parts of a host that is not to be trusted', () => {
  let host: Bluesky

  before(async () => {
    host = await startBluesky()
  })

  after(async () => {
    await host[Symbol.asyncDispose]()
  })

  beforeEach(() => {
    host.answers = {}
    host.requests = []
  })

  async function read(
    part: PrivatePart,
    {
      limits = {},
      parts = PRIVATE_PARTS,
      signal,
      gate,
    }: {
      limits?: Partial<PrivateLimits>
      parts?: readonly string[]
      signal?: AbortSignal
      gate?: HostGate
    } = {}
  ): Promise<string> {
    const identity: Identity = {
      did: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz',
      pds: new URL(host.url),
      signingKey: 'did:key:zQ3sh',
      previousSigningKeys: [],
      document: '{}',
    }
    const session: AccountSession = {
      account: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz',
      parts,
      fetch: (pathname, init) => fetch(new URL(pathname, host.url), init),
    }
    const { chunks } = await createPrivateReader({
      limits,
      ...(gate ? { gate } : {}),
    }).read(identity, session, part, signal ? { signal } : {})
    let text = ''
    for await (const chunk of chunks) text += Buffer.from(chunk).toString()
    return text
  }

  async function assertFailed(
    part: PrivatePart,
    message: RegExp,
    limits: Partial<PrivateLimits> = {}
  ): Promise<void> {
    await assert.rejects(read(part, { limits }), (error: Error) => {
      assert.equal(error.name, 'HostError', String(error))
      assert.match(error.message, message)
      assert.ok(!error.message.includes(SECRET), error.message)
      return true
    })
  }

  it('are not waited for for ever', async () => {
    host.answers['app.bsky.graph.getMutes'] = () => {
      // Nothing else happens meanwhile: there is no answer in time.
      const end = Date.now() + 20
      while (Date.now() < end);
      return { body: { mutes: [] } }
    }
    await assertFailed('mutes', /getMutes takes too long/, { timeout: 1 })
  })

  it('are not asked for without a grant', async () => {
    for (const part of PRIVATE_PARTS) {
      await assert.rejects(
        read(part, { parts: PRIVATE_PARTS.filter((each) => each !== part) }),
        { name: 'PartNotGrantedError', message: new RegExp(part) }
      )
    }
    assert.deepEqual(host.requests, [])
  })

  const answers: [status: number, error: string, name: string][] = [
    [401, 'InvalidToken', 'PartNotGrantedError'],
    [400, 'InvalidToken', 'PartNotGrantedError'],
    [403, 'ScopeMissingError', 'PartNotGrantedError'],
    [403, '', 'PartNotGrantedError'],
    [400, 'ExpiredToken', 'PartNotGrantedError'],
    [501, 'MethodNotImplemented', 'PartNotOfferedError'],
    [400, 'MethodNotImplemented', 'PartNotOfferedError'],
    [404, 'XRPCNotSupported', 'PartNotOfferedError'],
    [404, '', 'PartNotOfferedError'],
    [400, 'InvalidRequest', 'HostError'],
    [429, 'RateLimitExceeded', 'HostError'],
    [500, 'InternalServerError', 'HostError'],
    [502, 'UpstreamFailure', 'HostError'],
  ]
  for (const [status, error, name] of answers) {
    it(`are a ${name} if it answers ${status} ${error}`, async () => {
      const answer: Answer = { status, body: { error, message: SECRET } }
      for (const part of ['preferences', 'mutes', 'conversations'] as const) {
        host.answers = new Proxy({}, { get: () => answer })
        await assert.rejects(read(part), (thrown: Error) => {
          assert.equal(thrown.name, name)
          assert.ok(!thrown.message.includes(SECRET))
          assert.match(thrown.message, new RegExp(`with ${status}`))
          return true
        })
      }
    })
  }

  it('say nothing of what else it answers, whatever it calls an error', async () => {
    for (const body of [SECRET, { error: `${SECRET} as an error` }, '<html>']) {
      host.answers['app.bsky.actor.getPreferences'] = { status: 500, body }
      await assertFailed('preferences', /with 500\./)
    }
  })

  it('are refused when they are no JSON, or of another shape or type', async () => {
    const method = 'app.bsky.actor.getPreferences'
    const wrong: Answer[] = [
      { body: SECRET },
      { body: { preferences: SECRET } },
      { body: { preferences: [SECRET] } },
      { body: { preferences: [{ $type: 1 }] } },
      { body: [SECRET] },
      { body: 'null' },
      { body: Uint8Array.of(0x22, 0xff, 0x22) },
      { type: 'text/html', body: { preferences: [] } },
      { type: 'application/json-seq', body: { preferences: [] } },
    ]
    for (const answer of wrong) {
      host.answers[method] = answer
      await assertFailed('preferences', /answered app\.bsky\.actor/)
    }
    host.answers[method] = { body: '{ "preferences": [ ] }' }
    assert.equal(await read('preferences'), '{ "preferences": [ ] }')
  })

  for (const [part, [method, field]] of Object.entries(LISTS)) {
    it(`are refused when ${part} are other things`, async () => {
      const wrong = [
        {},
        { [field]: {} },
        { [field]: [SECRET] },
        { [field]: [{}] },
        { [field]: [null] },
        { [field]: [], cursor: 1 },
        { [field]: [], cursor: 'x'.repeat(5000) },
      ]
      for (const body of wrong) {
        host.answers[method] = { body }
        await assertFailed(part as PrivatePart, /answered app\.bsky/)
      }
      host.answers[method] = { body: { [field]: [] } }
      const text = await read(part as PrivatePart)
      assert.deepEqual(JSON.parse(text), { [field]: [] })
    })
  }

  it('have as many pages as it takes, and not more', async () => {
    const [method] = LISTS.mutes
    const pages = (last: number) => (query: URLSearchParams) => {
      const at = Number(query.get('cursor') ?? 0)
      return {
        body: {
          mutes: [{ did: `did:plc:${at}` }],
          ...(at === last ? {} : { cursor: String(at + 1) }),
        },
      }
    }
    host.answers[method] = pages(150)
    const { mutes } = JSON.parse(await read('mutes')) as { mutes: unknown[] }
    assert.equal(mutes.length, 151)
    const limits = { maxPages: 10 }
    await assertFailed('mutes', /does not come to the end/, limits)
    await assertFailed('mutes', /does not come to the end/, {
      maxListSize: 500,
    })
    host.answers[method] = { body: { mutes: [], cursor: 'again' } }
    host.requests = []
    await assertFailed('mutes', /does not come to the end/)
    assert.equal(host.requests.length, 2)
  })

  it('are not larger than they may be', async () => {
    const body = { preferences: [{ $type: 'x'.repeat(3000) }] }
    host.answers['app.bsky.actor.getPreferences'] = { body }
    await assertFailed('preferences', /more than 2000 bytes/, {
      maxAnswerSize: 2000,
    })
    const lines: Answer = {
      type: 'application/jsonl',
      body: `${JSON.stringify('x'.repeat(3000))}\n`.repeat(3),
    }
    host.answers['chat.bsky.actor.exportAccountData'] = lines
    await assertFailed('conversations', /more than 5000 bytes/, {
      maxExportSize: 5000,
    })
    await assertFailed('conversations', /a line of more than 2000 bytes/, {
      maxLineSize: 2000,
    })
    assert.equal(await read('conversations'), lines.body)
  })

  it('are lines of JSON, or refused', async () => {
    const method = 'chat.bsky.actor.exportAccountData'
    for (const body of [
      SECRET,
      `{"a":1}\n${SECRET}\n`,
      `{"a":1}\n{"b":`,
      Uint8Array.of(0x22, 0xff, 0x22),
    ]) {
      host.answers[method] = { type: 'application/jsonl', body }
      await assertFailed('conversations', /a line that is not JSON/)
    }
    host.answers[method] = { type: 'application/json', body: '{"a":1}\n' }
    await assertFailed('conversations', /of another type/)
    for (const body of ['', '\n', '{"a":1}', '{"a":"ü"}\r\n\n{"b":2}\n']) {
      host.answers[method] = { type: 'application/jsonl; charset=utf-8', body }
      assert.equal(await read('conversations'), body)
    }
  })

  it('count as requests to the host, which others’ failures are not held against', async () => {
    const seen: string[] = []
    const visit = (name: string) => async () => {
      seen.push(name)
    }
    const gate: HostGate = {
      enter: async ({ host, account }) => {
        seen.push(`${host} for ${account}`)
        return {
          answered: visit('answered'),
          failed: visit('failed'),
          faulted: visit('faulted'),
          left: visit('left'),
          limited: async () => assert.fail('limited'),
        }
      },
    }
    for (const status of [200, 429, 502]) {
      host.answers[LISTS.mutes[0]] = { status, body: { mutes: [] } }
      await read('mutes', { gate }).catch(() => {})
    }
    const entered = `${new URL(host.url).host} for did:plc:ewvi7nxzyoun6zhxrhs64oiz`
    assert.deepEqual(seen, Array(3).fill([entered, 'answered']).flat())
  })

  it('are given up when the run is', async () => {
    const stop = new AbortController()
    host.answers[LISTS.mutes[0]] = () => {
      stop.abort(new Error('enough'))
      return { body: { mutes: [], cursor: crypto.randomUUID() } }
    }
    await assert.rejects(read('mutes', { signal: stop.signal }), {
      message: 'enough',
    })
  })
})
