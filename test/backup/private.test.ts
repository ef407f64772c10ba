import assert from 'node:assert/strict'
import { AtpAgent } from '@atproto/api'
import { base58btc } from 'multiformats/bases/base58'
import { ed25519 } from '@ucanto/principal'
import { GRANTABLE_PARTS } from '../../src/atproto/oauth/index.ts'
import {
  createOwnersReader,
  createPrivateReader,
  signingKeysIn,
} from '../../src/atproto/index.ts'
import {
  chunksOf,
  GatewayError,
  openBackup,
  PartNotGrantedError,
  recordChange,
  shareParts,
  streamOf,
  verifyBackup,
  type AccountSession,
  type BackupReader,
  type DID,
  type Part,
  type PrivateContext,
  type PrivatePart,
} from '../../src/backup/index.ts'
import { Backup as Protocol } from '../../src/capabilities/index.ts'
import { createNativeSha256 } from '../../src/node/index.ts'
import { createPrivateContext } from '../../src/service/private.ts'
import { SpaceUnreadableError } from '../../src/service/grant-errors.ts'
import { StoreUnavailableError } from '../../src/stores/index.ts'
import {
  createRecoveryIdentity,
  deriveIdentity,
  isPlain,
  isSealed,
  listBackups,
  openPart,
  PRIVATE_PARTS,
  recipientOf,
  setAuthorization,
  setRecovery,
  type SealedPart,
} from '../../src/space/index.ts'
import {
  seedAccount,
  startBluesky,
  startNetwork,
  type Account,
  type Bluesky,
  type Network,
} from '../network/index.ts'
import { findFreePort } from '../network/loopback-server.ts'
import {
  collect,
  createOwner,
  createReader,
  readState,
  type Owner,
} from './harness.ts'

/** What nobody but alice and her agents may find anywhere. */
const SECRET = 'psst-do-not-tell-mallory'
const BIRTH_DATE = '1984-01-24T00:00:00.000Z'

const EVERYTHING: Part[] = ['blobs', ...PRIVATE_PARTS]

describe('private parts of backups', () => {
  let bluesky: Bluesky
  let network: Network
  let alice: Account
  let owner: Owner
  let handles = 0

  before(async () => {
    bluesky = await startBluesky()
    const port = await findFreePort()
    network = await startNetwork({
      plc: { port },
      pds: {
        settings: {
          bskyAppViewUrl: bluesky.url,
          // Hosts look up other services by names only.
          didPlcUrl: `http://localhost:${port}`,
        },
      },
    })
  })

  after(async () => {
    await network[Symbol.asyncDispose]()
    await bluesky[Symbol.asyncDispose]()
  })

  let agent: Awaited<ReturnType<typeof ed25519.generate>>
  let chat: string

  beforeEach(async () => {
    chat ??= await bluesky.registerChat(network.plc.url)
    alice = await network.pds.createAccount({
      handle: `alice${handles++}.test`,
    })
    await seedAccount(alice.agent, { posts: 3, blobs: [2000] })
    await alice.agent.app.bsky.actor.putPreferences({
      preferences: [
        {
          $type: 'app.bsky.actor.defs#personalDetailsPref',
          birthDate: BIRTH_DATE,
        },
        {
          $type: 'app.bsky.actor.defs#mutedWordsPref',
          items: [{ value: SECRET, targets: ['content'] }],
        },
      ],
    } as never)
    owner = await createOwner(network)
    agent = await ed25519.generate()
    answerAll()
    bluesky.requests = []
  })

  function answerAll(): void {
    bluesky.answers = {
      'app.bsky.graph.getMutes': (query) =>
        query.get('cursor') === null
          ? page('mutes', [profile('mallory')], 'more')
          : page('mutes', [profile('trudy')]),
      'app.bsky.graph.getListMutes': page('lists', [list(SECRET)]),
      'app.bsky.graph.getListBlocks': page('lists', []),
      'app.bsky.bookmark.getBookmarks': page('bookmarks', [
        {
          subject: { uri: 'at://did:plc:a/app.bsky.feed.post/1', cid: SECRET },
          createdAt: '2025-03-12T15:13:59.958Z',
          item: {
            $type: 'app.bsky.feed.defs#postView',
            likeCount: Math.random(),
          },
        },
      ]),
      'app.bsky.notification.getPreferences': {
        body: { preferences: { chat: { include: SECRET, push: true } } },
      },
      'app.bsky.draft.getDrafts': page('drafts', [
        { id: '3lkb7k4x3hc2a', draft: { posts: [{ text: SECRET }] } },
      ]),
      'chat.bsky.actor.exportAccountData': {
        type: 'application/jsonl',
        body: `${JSON.stringify({ text: SECRET })}\n{"text":"bye"}\n`,
      },
    }
  }

  /**
   * A session by app password stands for one of OAuth: what a host gives to
   * apps, the host itself decides. How it is granted is tested elsewhere.
   */
  async function logIn(
    account = alice,
    {
      parts = PRIVATE_PARTS,
      privileged = true,
    }: { parts?: readonly string[]; privileged?: boolean } = {}
  ): Promise<AccountSession> {
    const { data } = await account.agent.com.atproto.server.createAppPassword({
      name: `backups ${crypto.randomUUID()}`,
      privileged,
    })
    const app = new AtpAgent({ service: network.pds.url })
    await app.login({ identifier: account.did, password: data.password })
    return sessionOf(app, parts)
  }

  function sessionOf(
    app: AtpAgent,
    parts: readonly string[] = PRIVATE_PARTS
  ): AccountSession {
    return {
      account: app.assertDid,
      parts,
      fetch: (pathname, init) =>
        app.sessionManager.fetchHandler(pathname, init),
    }
  }

  function privately(
    session: AccountSession | undefined,
    changes: Partial<PrivateContext> = {}
  ): { private: PrivateContext } {
    return {
      private: {
        session: async () => session,
        reader: createPrivateReader({
          services: {
            appView: 'did:web:api.bsky.app#bsky_appview',
            chat,
          },
        }),
        accounts: createOwnersReader,
        identity: (account) => identityOf(agent, account),
        ...changes,
      },
    }
  }

  function identityOf(
    signer: typeof agent,
    account = alice.did
  ): Promise<CryptoKey> {
    return deriveIdentity(signer, {
      space: owner.space,
      account: account as DID,
    })
  }

  async function latest(): Promise<BackupReader> {
    const { reader, state } = await readState(network, owner)
    const [listed] = await Array.fromAsync(
      listBackups(reader, state, alice.did as DID, { reverse: true, limit: 1 })
    )
    assert.ok(listed)
    return openBackup(reader, listed.backup, {
      createSha256: createNativeSha256,
    })
  }

  async function open(
    part: PrivatePart,
    identity: CryptoKey | string,
    backup?: BackupReader
  ): Promise<string> {
    const opened = backup ?? (await latest())
    const record = opened.value.private?.[part]
    assert.ok(isSealed(record), `${part}: ${JSON.stringify(record)}`)
    const stream = await openPart(
      identity,
      streamOf(opened.privateFile(record))
    )
    return Buffer.from(await collect(chunksOf(stream))).toString()
  }

  async function authorize(
    signer: typeof agent,
    { seq = 1, expiration = 1_800_000_000 } = {}
  ): Promise<void> {
    const recipient = await recipientOf(await identityOf(signer))
    await recordChange(owner.context, (fetcher, state) =>
      setAuthorization(fetcher, state, {
        account: alice.did as DID,
        agent: signer.did(),
        authorization: {
          sealed: Uint8Array.of(1),
          expiration,
          seq,
          recipient,
        },
      })
    )
  }

  /** Shares what this agent can open with another one. */
  async function share(signer: typeof agent, now = Date.now()) {
    const { reader, state } = await readState(network, owner)
    return shareParts(
      {
        blocks: reader,
        state,
        reader,
        identity: (account) => identityOf(agent, account),
        record: (change) => recordChange(owner.context, change),
        createSha256: createNativeSha256,
        time: { now: () => now },
      },
      { account: alice.did as DID, agent: signer.did() }
    )
  }

  /** All bytes that the Space has. */
  async function bytesInSpace(): Promise<Buffer> {
    const blobs = await network.storacha.blobs(owner.space)
    const reader = createReader(network)
    const parts = await Promise.all(
      blobs.map(({ digest, size }) =>
        reader.getShardRange(
          { digest: base58btc.decode(digest), size },
          { offset: 0, length: size }
        )
      )
    )
    return Buffer.concat(
      parts.map((part) => {
        assert.ok(part)
        return part
      })
    )
  }

  it('are all there, sealed, and nothing of them is in plain text', async () => {
    const session = await logIn()
    const outcome = await owner.backUp(alice.did, {
      parts: EVERYTHING,
      with: privately(session),
    })
    assert.equal(outcome.kind, 'first')
    for (const part of PRIVATE_PARTS) {
      assert.equal(outcome.private?.[part]?.outcome, 'ok', part)
    }
    const identity = await identityOf(agent)
    const { preferences } = JSON.parse(await open('preferences', identity))
    assert.equal(preferences[0].items[0].value, SECRET)
    assert.deepEqual(JSON.parse(await open('mutes', identity)), {
      mutes: ['mallory', 'trudy'].map((name) => ({
        did: `did:plc:${name}`,
        handle: `${name}.test`,
      })),
    })
    assert.match(await open('muted-lists', identity), new RegExp(SECRET))
    assert.deepEqual(JSON.parse(await open('blocked-lists', identity)), {
      lists: [],
    })
    assert.deepEqual(JSON.parse(await open('bookmarks', identity)).bookmarks, [
      {
        subject: { uri: 'at://did:plc:a/app.bsky.feed.post/1', cid: SECRET },
        createdAt: '2025-03-12T15:13:59.958Z',
      },
    ])
    assert.equal(
      JSON.parse(await open('notification-preferences', identity)).preferences
        .chat.include,
      SECRET
    )
    assert.equal(
      JSON.parse(await open('drafts', identity)).drafts[0].draft.posts[0].text,
      SECRET
    )
    assert.equal(
      await open('conversations', identity),
      `${JSON.stringify({ text: SECRET })}\n{"text":"bye"}\n`
    )
    for (const { account } of bluesky.requests) assert.equal(account, alice.did)

    const all = await bytesInSpace()
    assert.ok(all.includes('age-encryption.org/v1'), 'the scan reads the Space')
    assert.ok(all.includes(alice.did))
    assert.ok(!all.includes(SECRET))
    assert.ok(
      !all.includes(Buffer.from(SECRET).toString('base64').slice(0, 20))
    )
    assert.ok(!all.includes('trudy'))
  })

  it('says in so many words that hosts withhold the birth date from apps', async () => {
    await owner.backUp(alice.did, { with: privately(await logIn()) })
    const text = await open('preferences', await identityOf(agent))
    assert.doesNotMatch(text, /1984/)
    const { value } = await latest()
    assert.match(
      value.private?.preferences?.detail ?? '',
      /birth date \(personalDetailsPref\) is not in it/
    )

    // By the account's own password there is nothing to be said.
    const whole = sessionOf(alice.agent)
    await owner.backUp(alice.did, { with: privately(whole) })
    assert.match(await open('preferences', await identityOf(agent)), /1984/)
    assert.equal((await latest()).value.private?.preferences?.detail, undefined)
  })

  it('leave conversations out unless they are named', async () => {
    const { private: outcomes } = await owner.backUp(alice.did, {
      with: privately(await logIn()),
    })
    assert.deepEqual(
      Object.keys(outcomes ?? {}).sort(),
      PRIVATE_PARTS.filter((part) => part !== 'conversations').sort()
    )
    assert.ok(
      !bluesky.requests.some(({ method }) => method.startsWith('chat.'))
    )
  })

  it('are the same as long as nothing changes, and make a backup when it does', async () => {
    const session = await logIn()
    const request = { parts: EVERYTHING, with: privately(session) }
    await owner.backUp(alice.did, request)
    const before = await owner.state()
    assert.equal((await owner.backUp(alice.did, request)).kind, 'unchanged')
    assert.deepEqual(await owner.state(), before)

    const { value: first } = await latest()
    bluesky.answers['app.bsky.graph.getListBlocks'] = page('lists', [
      list('bad people'),
    ])
    const second = await owner.backUp(alice.did, request)
    assert.equal(second.kind, 'incremental')
    assert.equal(second.records, 0)
    const { value } = await latest()
    assert.equal(value.repo.toString(), first.repo.toString())
    for (const part of PRIVATE_PARTS) {
      const same = linkOf(value, part) === linkOf(first, part)
      assert.equal(same, part !== 'blocked-lists', part)
    }
    assert.equal((await owner.backUp(alice.did, request)).kind, 'unchanged')
    const { problems } = await verifyBackup(await latest(), {
      keys: signingKeysIn,
    })
    assert.deepEqual(problems, [])
  })

  it('are opened by each agent and by the recovery, and by nobody else', async () => {
    const session = await logIn()
    await owner.backUp(alice.did, { with: privately(session) })
    const phone = await ed25519.generate()
    await authorize(phone)
    const recovery = await createRecoveryIdentity()
    await recordChange(owner.context, (fetcher, state) =>
      setRecovery(fetcher, state, {
        account: alice.did as DID,
        recipient: recovery.recipient,
      })
    )
    // They are sealed anew for those who came.
    const { kind } = await owner.backUp(alice.did, {
      with: privately(session),
    })
    assert.equal(kind, 'incremental')
    const { kind: again } = await owner.backUp(alice.did, {
      with: privately(session),
    })
    assert.equal(again, 'unchanged')
    const texts = await Promise.all(
      [await identityOf(agent), await identityOf(phone), recovery.identity].map(
        (identity) => open('preferences', identity)
      )
    )
    assert.equal(new Set(texts).size, 1)
    assert.match(texts[0] ?? '', new RegExp(SECRET))
    const mallory = await identityOf(await ed25519.generate())
    await assert.rejects(open('preferences', mallory), { name: 'UnsealError' })
  })

  it('are not taken over from a backup that this agent cannot open', async () => {
    const session = await logIn()
    await owner.backUp(alice.did, { with: privately(session) })
    agent = await ed25519.generate()
    const { kind } = await owner.backUp(alice.did, {
      with: privately(session),
    })
    assert.equal(kind, 'incremental')
    assert.match(
      await open('preferences', await identityOf(agent)),
      new RegExp(SECRET)
    )
  })

  it('may be large: more than fits into one block', async () => {
    const line = `${JSON.stringify({ text: SECRET.repeat(400) })}\n`
    const body = line.repeat(300)
    assert.ok(body.length > 2 * 1024 * 1024)
    bluesky.answers['chat.bsky.actor.exportAccountData'] = {
      type: 'application/jsonl',
      body,
    }
    const request = {
      parts: ['conversations'] as Part[],
      with: privately(await logIn()),
    }
    await owner.backUp(alice.did, request)
    const { value } = await latest()
    const record = value.private?.conversations
    assert.ok(isSealed(record))
    assert.equal(record.sealed.code, 0x70)
    assert.ok((await open('conversations', await identityOf(agent))) === body)
    assert.equal((await owner.backUp(alice.did, request)).kind, 'unchanged')
    assert.ok(!(await bytesInSpace()).includes(SECRET))
  })

  it('are sealed for those that can be, where a recipient is not valid', async () => {
    await recordChange(owner.context, (fetcher, state) =>
      setAuthorization(fetcher, state, {
        account: alice.did as DID,
        agent: 'did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH',
        authorization: {
          sealed: Uint8Array.of(1),
          expiration: 1_800_000_000,
          seq: 1,
          // Its checksum is wrong.
          recipient: `age1${'q'.repeat(58)}`,
        },
      })
    )
    const { private: outcomes } = await owner.backUp(alice.did, {
      with: privately(await logIn()),
    })
    assert.equal(outcomes?.preferences?.outcome, 'ok')
    assert.match(owner.warnings.join(), /recipient is not valid/)
  })

  it('are not sealed for an agent whose authorization was revoked', async () => {
    const phone = await ed25519.generate()
    await authorize(phone)
    await authorize(phone, { seq: 2, expiration: 0 })
    await owner.backUp(alice.did, { with: privately(await logIn()) })
    await assert.rejects(open('preferences', await identityOf(phone)), {
      name: 'UnsealError',
    })
    await assert.rejects(share(phone), { name: 'AgentNotAuthorizedError' })
  })

  it('are sealed for an agent until its authorization ends, and again when it is authorized anew', async () => {
    const phone = await ed25519.generate()
    const end = 1_800_000_000
    const request = {
      with: {
        ...privately(await logIn()),
        time: { ...owner.context.time, now: () => now },
      },
    }
    let now = end * 1000 - 1
    await authorize(phone, { expiration: end })
    await owner.backUp(alice.did, request)
    const text = await open('preferences', await identityOf(phone))
    await share(phone, now)

    now = end * 1000
    bluesky.answers['app.bsky.graph.getListBlocks'] = page('lists', [
      list('bad people'),
    ])
    await owner.backUp(alice.did, request)
    await assert.rejects(open('blocked-lists', await identityOf(phone)), {
      name: 'UnsealError',
    })
    await assert.rejects(share(phone, now), {
      name: 'AgentNotAuthorizedError',
      message: /that ended on 2027-/,
    })
    // Whoever makes it can always open it, and what did not change stays.
    const own = await identityOf(agent)
    assert.match(await open('blocked-lists', own), /bad people/)
    assert.equal(await open('preferences', await identityOf(phone)), text)

    await authorize(phone, { seq: 2, expiration: end + 1 })
    const { kind } = await owner.backUp(alice.did, request)
    assert.equal(kind, 'incremental')
    assert.match(
      await open('blocked-lists', await identityOf(phone)),
      /bad people/
    )
    assert.equal((await share(phone, now)).backups, 1)
  })

  it('are sealed for the agent that makes the backup, whatever the Space says of it', async () => {
    await authorize(agent, { expiration: 0 })
    await owner.backUp(alice.did, { with: privately(await logIn()) })
    assert.match(
      await open('preferences', await identityOf(agent)),
      new RegExp(SECRET)
    )
  })

  it('have the same names for the service and for hosts as in the Space', () => {
    assert.deepEqual(GRANTABLE_PARTS, PRIVATE_PARTS)
    assert.deepEqual(Protocol.PRIVATE_PARTS, PRIVATE_PARTS)
    assert.deepEqual(Protocol.PARTS, EVERYTHING)
    assert.ok(!Protocol.DEFAULT_PARTS.includes('conversations'))
  })

  it('are plain if the user says so, as the RFC has them', async () => {
    const session = await logIn()
    const request = {
      parts: EVERYTHING,
      with: privately(session, { plain: true }),
    }
    await owner.backUp(alice.did, request)
    const backup = await latest()
    const { preferences, private: parts } = backup.value
    assert.ok(preferences)
    assert.equal(preferences.code, 0x0200)
    assert.match(
      Buffer.from(await backup.block(preferences)).toString(),
      /psst/
    )
    for (const part of PRIVATE_PARTS) {
      const record = parts?.[part]
      assert.ok(isPlain(record), part)
      JSON.parse(
        Buffer.from(await collect(backup.privateFile(record)))
          .toString()
          .split(part === 'conversations' ? '\n' : '\0')[0] ?? ''
      )
    }
    assert.equal((await owner.backUp(alice.did, request)).kind, 'unchanged')
    assert.ok((await bytesInSpace()).includes(SECRET), 'the scan finds things')
    const sealed = { parts: EVERYTHING, with: privately(session) }
    assert.equal((await owner.backUp(alice.did, sealed)).kind, 'incremental')
    assert.equal((await latest()).value.preferences, undefined)
  })

  describe('that cannot be had', () => {
    it('are not granted where there is no grant, or none any more', async () => {
      const none = await owner.backUp(alice.did, {})
      assert.equal(none.kind, 'first')
      assert.deepEqual(none.private?.mutes, { outcome: 'not-granted' })
      const ended = await owner.backUp(alice.did, {
        with: privately(undefined, {
          session: () =>
            Promise.reject(new PartNotGrantedError('authorize again')),
        }),
      })
      assert.equal(ended.kind, 'unchanged')
      assert.deepEqual(ended.private?.mutes, {
        outcome: 'not-granted',
        detail: 'authorize again',
      })
    })

    it('say nothing of what failed here, for it is in the Space for ever', async () => {
      const secret = new Error('connect ECONNREFUSED db.internal:5432')
      const untold = {
        outcome: 'failed',
        detail:
          'the program that made the backup failed, and its log has the reason',
      }
      const session = await logIn()
      for (const [changes, warning] of [
        [
          { session: () => Promise.reject(secret) },
          'the grant of the account could not be used',
        ],
        [
          { identity: () => Promise.reject(secret) },
          'private parts could not be backed up',
        ],
        [
          { reader: { read: () => Promise.reject(secret) } },
          'mutes could not be backed up',
        ],
      ] as const) {
        const told: [string, unknown][] = []
        await alice.agent.post({ text: 'something new' })
        const { private: outcomes } = await owner.backUp(alice.did, {
          with: {
            ...privately(session, changes),
            onWarning: (message, error) => told.push([message, error]),
          },
        })
        assert.deepEqual(outcomes?.mutes, untold)
        assert.deepEqual((await latest()).value.private?.mutes, untold)
        assert.ok(
          told.some(([message, error]) => {
            return message === warning && error === secret
          })
        )
      }
      assert.ok(!(await bytesInSpace()).includes('db.internal'))
    })

    it('say why where the words are ours', async () => {
      const { private: outcomes } = await owner.backUp(alice.did, {
        with: privately(undefined, {
          session: () => Promise.reject(new GatewayError('try again later')),
        }),
      })
      assert.deepEqual(outcomes?.mutes, {
        outcome: 'failed',
        detail: 'try again later',
      })
    })

    it('end the run when the store of the grants is away, and it leaves nothing', async () => {
      const away = new StoreUnavailableError(
        'the database at db.internal:5432 cannot be reached'
      )
      const contextOf = (open: () => Promise<never>) =>
        createPrivateContext({ agent, space: owner.space, keeper: { open } })
      const before = await owner.state()
      await assert.rejects(
        owner.backUp(alice.did, {
          with: { private: contextOf(() => Promise.reject(away)) },
        }),
        away
      )
      const session = await logIn()
      const { endsRun } = contextOf(() => Promise.reject(away))
      await assert.rejects(
        owner.backUp(alice.did, {
          with: privately(
            { ...session, fetch: () => Promise.reject(away) },
            { endsRun: endsRun! }
          ),
        }),
        away
      )
      assert.deepEqual(await owner.state(), before)
      const unreadable = new SpaceUnreadableError('try again later')
      const { private: outcomes } = await owner.backUp(alice.did, {
        with: { private: contextOf(() => Promise.reject(unreadable)) },
      })
      assert.deepEqual(outcomes?.mutes, {
        outcome: 'failed',
        detail: 'try again later',
      })
    })

    it('are named with their outcomes, and the rest is backed up', async () => {
      const session = await logIn(alice, {
        parts: PRIVATE_PARTS.filter((part) => part !== 'mutes'),
        privileged: false,
      })
      const { answers } = bluesky
      delete answers['app.bsky.draft.getDrafts']
      answers['app.bsky.bookmark.getBookmarks'] = {
        status: 403,
        body: { error: 'ScopeMissingError', message: SECRET },
      }
      answers['app.bsky.graph.getListMutes'] = {
        status: 500,
        type: 'text/plain',
        body: SECRET,
      }
      answers['app.bsky.graph.getListBlocks'] = { status: 404, body: {} }
      const { private: outcomes, kind } = await owner.backUp(alice.did, {
        parts: EVERYTHING,
        with: privately(session),
      })
      assert.equal(kind, 'first')
      const found = Object.fromEntries(
        Object.entries(outcomes ?? {}).map(([part, { outcome }]) => [
          part,
          outcome,
        ])
      )
      assert.deepEqual(found, {
        preferences: 'ok',
        mutes: 'not-granted',
        'muted-lists': 'failed',
        'blocked-lists': 'not-offered',
        bookmarks: 'not-granted',
        'notification-preferences': 'ok',
        drafts: 'not-offered',
        // The app password is not one for conversations.
        conversations: 'not-granted',
      })
      assert.ok(!JSON.stringify(outcomes).includes(SECRET))
      assert.ok(!(await bytesInSpace()).includes(SECRET))
      const { value } = await latest()
      assert.equal(value.private?.['muted-lists']?.outcome, 'failed')
    })

    it('are not those of another account', async () => {
      const bob = await network.pds.createAccount({
        handle: `bob${handles++}.test`,
      })
      const { private: outcomes } = await owner.backUp(alice.did, {
        with: privately(await logIn(bob)),
      })
      assert.equal(outcomes?.preferences?.outcome, 'failed')
      assert.deepEqual(bluesky.requests, [])
    })

    it('keep what an earlier backup has, and come back', async () => {
      const session = await logIn()
      const request = { with: privately(session) }
      await owner.backUp(alice.did, request)
      bluesky.answers['app.bsky.graph.getMutes'] = { status: 502, body: {} }
      const failed = await owner.backUp(alice.did, request)
      assert.equal(failed.kind, 'unchanged')
      assert.equal(failed.private?.mutes?.outcome, 'failed')
      await alice.agent.post({ text: 'hello' })
      await owner.backUp(alice.did, request)
      assert.equal((await latest()).value.private?.mutes?.outcome, 'failed')
      answerAll()
      const back = await owner.backUp(alice.did, request)
      assert.equal(back.kind, 'incremental')
      assert.equal((await latest()).value.private?.mutes?.outcome, 'ok')
    })
  })

  describe('of an account that its host gives to sessions of the owner alone', () => {
    it('come with the account when it is deactivated', async () => {
      const session = await logIn()
      await alice.agent.com.atproto.server.deactivateAccount({})
      await assert.rejects(owner.backUp(alice.did), {
        name: 'AccountUnavailableError',
      })
      const outcome = await owner.backUp(alice.did, {
        with: privately(session),
      })
      assert.equal(outcome.kind, 'first')
      assert.equal(outcome.records, 4)
      assert.equal(outcome.blobsUploaded, 1)
      assert.equal(outcome.private?.preferences?.outcome, 'ok')
    })

    // Sessions of passwords for one taken down: grants end with it, see
    // `owners-accounts.test.ts`, and other hosts may not end them.
    it('come with the account when it is taken down, if the host takes the session', async () => {
      await network.pds.takedownAccount(alice.did)
      const app = new AtpAgent({ service: network.pds.url })
      await app.login({
        identifier: alice.did,
        password: alice.password,
        allowTakendown: true,
      })
      await assert.rejects(owner.backUp(alice.did), {
        name: 'AccountUnavailableError',
      })
      const outcome = await owner.backUp(alice.did, {
        with: privately(sessionOf(app)),
      })
      assert.equal(outcome.kind, 'first')
      assert.equal(outcome.records, 4)
      assert.equal(outcome.private?.preferences?.outcome, 'ok')
    })
  })
})

function linkOf(
  { private: parts }: { private?: Partial<Record<PrivatePart, unknown>> },
  part: PrivatePart
): string {
  return (parts?.[part] as SealedPart).sealed.toString()
}

function page(field: string, items: unknown[], cursor?: string) {
  return { body: { [field]: items, ...(cursor ? { cursor } : {}) } }
}

function profile(name: string) {
  return {
    did: `did:plc:${name}`,
    handle: `${name}.test`,
    displayName: String(Math.random()),
    indexedAt: new Date().toISOString(),
  }
}

function list(name: string) {
  return {
    uri: 'at://did:plc:a/app.bsky.graph.list/1',
    cid: 'bafy',
    name,
    purpose: 'app.bsky.graph.defs#modlist',
    creator: profile('mallory'),
    indexedAt: new Date().toISOString(),
    listItemCount: Math.random(),
  }
}
