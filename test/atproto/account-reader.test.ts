import assert from 'node:assert/strict'
import type { AtpAgent } from '@atproto/api'
import { CarReader } from '@ipld/car'
import { CID } from 'multiformats/cid'
import {
  RateLimitError,
  createAccountReader,
  createSafeFetch,
} from '../../src/atproto/index.ts'
import { HostError } from '../../src/backup/errors.ts'
import type { DID, Identity } from '../../src/backup/interface.ts'
import { startNetwork, startServer } from './network.ts'
import type { TestNetwork } from './network.ts'

const NEVER_STORED =
  'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku'

const reader = createAccountReader({
  fetch: createSafeFetch({
    allowPrivateNetwork: true,
    small: { timeout: 2000 },
    stream: { idleTimeout: 50 },
  }),
})

const identityAt = (pds: URL, did = 'did:plc:alice'): Identity => ({
  did: did as DID,
  pds,
  signingKey: 'did:key:zQ3',
  previousSigningKeys: [],
  document: '{}',
})

const bytesOf = async (stream: AsyncIterable<Uint8Array>) =>
  Buffer.concat(await Array.fromAsync(stream))

const readRepo = async (stream: AsyncIterable<Uint8Array>) =>
  CarReader.fromBytes(await bytesOf(stream))

describe('account reader', () => {
  describe('on a PDS', () => {
    let network: TestNetwork
    let alice: AtpAgent
    let identity: Identity

    before(async () => {
      network = await startNetwork()
      alice = await network.createAccount('alice')
      identity = identityAt(network.pdsUrl, alice.assertDid)
    })

    after(() => network[Symbol.asyncDispose]())

    const post = async (agent: AtpAgent, images: Uint8Array[]) => {
      const blobs = []
      for (const image of images) {
        const encoding = 'image/png'
        const { data } = await agent.uploadBlob(image, { encoding })
        blobs.push(data.blob)
      }
      await agent.post({
        text: 'hello',
        embed: {
          $type: 'app.bsky.embed.images',
          images: blobs.map((image) => ({ image, alt: '' })),
        },
      })
      return blobs.map(({ ref }) => ref.toString())
    }

    it('reads the latest commit', async () => {
      const { cid, rev } = await reader.latestCommit(identity)
      const { data } = await alice.com.atproto.sync.getLatestCommit({
        did: identity.did,
      })
      assert.deepEqual({ cid: cid.toString(), rev }, data)
    })

    it('reads the repository', async () => {
      const { cid } = await reader.latestCommit(identity)
      const car = await readRepo(await reader.repo(identity))
      assert.deepEqual(await car.getRoots(), [cid])
      assert.ok(await car.has(CID.parse(cid.toString())))
    })

    it('reads what is newer than a revision', async () => {
      const all = await readRepo(await reader.repo(identity))
      const { rev } = await reader.latestCommit(identity)
      await alice.post({ text: 'newer' })
      const { cid } = await reader.latestCommit(identity)
      const car = await readRepo(await reader.repo(identity, { since: rev }))
      assert.ok(await car.has(CID.parse(cid.toString())))
      for await (const old of all.cids()) {
        assert.equal(await car.has(old), false)
      }
    })

    it('lists and reads blobs', async () => {
      const images = [1, 2].map((byte) => new Uint8Array(1000).fill(byte))
      const cids = await post(alice, images)
      const listed = await Array.fromAsync(reader.blobs(identity))
      assert.deepEqual(listed.toSorted(), cids.toSorted())
      for (const [index, cid] of cids.entries()) {
        const bytes = await bytesOf(await reader.blob(identity, cid))
        assert.deepEqual(new Uint8Array(bytes), images[index])
      }
    })

    it('lists blobs that are newer than a revision', async () => {
      const { rev } = await reader.latestCommit(identity)
      assert.deepEqual(
        await Array.fromAsync(reader.blobs(identity, { since: rev })),
        []
      )
      const cids = await post(alice, [new Uint8Array(10).fill(3)])
      assert.deepEqual(
        await Array.fromAsync(reader.blobs(identity, { since: rev })),
        cids
      )
    })

    it('says that a blob is not there', async () => {
      await assert.rejects(reader.blob(identity, NEVER_STORED), {
        name: 'BlobNotFoundError',
        message: /Blob not found/,
      })
    })

    const readings = (identity: Identity) => [
      () => reader.latestCommit(identity),
      () => reader.repo(identity),
      () => Array.fromAsync(reader.blobs(identity)),
      () => reader.blob(identity, NEVER_STORED),
    ]

    const assertUnavailable = async (identity: Identity, message: RegExp) => {
      for (const read of readings(identity)) {
        await assert.rejects(read(), {
          name: 'AccountUnavailableError',
          retryable: false,
          message,
        })
      }
    }

    it('says that an account is not there', async () => {
      const nobody = identityAt(
        network.pdsUrl,
        'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
      )
      await assertUnavailable(nobody, /RepoNotFound/)
    })

    it('says that an account is deactivated', async () => {
      const bob = await network.createAccount('bob')
      await bob.com.atproto.server.deactivateAccount({})
      await assertUnavailable(
        identityAt(network.pdsUrl, bob.assertDid),
        /RepoDeactivated/
      )
    })

    it('says that an account is taken down', async () => {
      const mallory = await network.createAccount('mallory')
      await network.administer('com.atproto.admin.updateSubjectStatus', {
        subject: {
          $type: 'com.atproto.admin.defs#repoRef',
          did: mallory.assertDid,
        },
        takedown: { applied: true, ref: 'test' },
      })
      await assertUnavailable(
        identityAt(network.pdsUrl, mallory.assertDid),
        /RepoTakendown/
      )
    })

    it('stops with the reason of the signal', async () => {
      const reason = new Error('enough')
      const signal = AbortSignal.abort(reason)
      const readings = [
        () => reader.latestCommit(identity, { signal }),
        () => reader.repo(identity, { signal }),
        () => Array.fromAsync(reader.blobs(identity, { signal })),
        () => reader.blob(identity, NEVER_STORED, { signal }),
      ]
      for (const read of readings) await assert.rejects(read(), reason)
    })
  })

  describe('on a hostile host', () => {
    interface Answer {
      status?: number
      headers?: Record<string, string>
      body?: string | Uint8Array
    }

    const answering = (answers: Answer | ((path: string) => Answer)) =>
      startServer((request, response) => {
        const answer =
          typeof answers === 'function' ? answers(request.url!) : answers
        const { status = 200, headers = {}, body = '' } = answer
        response.writeHead(status, headers).end(body)
      })

    const json = (value: unknown, status = 200): Answer => ({
      status,
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(value),
    })

    const html: Answer = {
      headers: { 'content-type': 'text/html' },
      body: '<html>Welcome</html>',
    }

    const cid = 'bafyreibvjvcv745gig4mvqs4hctx4zfkono4rjejm2ta6gtyzkqxfjeily'
    const rev = '3jzfcijpj2z2a'

    for (const [what, answer] of [
      ['HTML', html],
      ['no JSON', { body: '{"cid":' }],
      ['null', json(null)],
      ['an empty object', json({})],
      ['no CID', json({ cid: 'cid', rev })],
      ['a number as CID', json({ cid: 1, rev })],
      ['no revision', json({ cid, rev: 'latest' })],
      ['an endless CID', json({ cid: cid.repeat(100), rev })],
      ['too much', json({ cid, rev, more: 'a'.repeat(2 ** 20) })],
      ['another status of success', json({ cid, rev }, 201)],
      ['an error of the server', { status: 500, body: 'oops' }],
      ['no rights', json({ error: 'AuthMissing' }, 401)],
    ] as const) {
      it(`answers latestCommit with ${what}`, async () => {
        await using server = await answering(answer)
        await assert.rejects(reader.latestCommit(identityAt(server.url)), {
          name: 'HostError',
          retryable: true,
        })
      })
    }

    it('answers latestCommit with more than is needed', async () => {
      await using server = await answering(json({ cid, rev, more: 1 }))
      const latest = await reader.latestCommit(identityAt(server.url))
      assert.deepEqual(latest, { cid: CID.parse(cid), rev })
    })

    for (const [what, answer] of [
      ['HTML', html],
      ['JSON', json({})],
      ['no type', { body: 'something' }],
      [
        'a type that only looks like a CAR',
        { headers: { 'content-type': 'application/vnd.ipld.carrot' } },
      ],
    ] as const) {
      it(`answers repo with ${what}`, async () => {
        await using server = await answering(answer)
        await assert.rejects(reader.repo(identityAt(server.url)), {
          name: 'HostError',
          message: /not a CAR/,
        })
      })
    }

    it('has no repository and gives it no name', async () => {
      const message = 'Could not find repo for DID: did:plc:alice'
      await using server = await answering(
        json({ error: 'InvalidRequest', message }, 400)
      )
      await assert.rejects(reader.repo(identityAt(server.url)), {
        name: 'AccountUnavailableError',
      })
    })

    it('hangs in the middle of a repository', async () => {
      await using server = await startServer((_, response) => {
        response.writeHead(200, { 'content-type': 'application/vnd.ipld.car' })
        response.write('start')
      })
      const repo = await reader.repo(identityAt(server.url))
      await assert.rejects(bytesOf(repo), HostError)
    })

    it('keeps no connection of a stream that is left early', async () => {
      const hungUp = Promise.withResolvers<void>()
      await using server = await startServer((_, response) => {
        response.on('close', hungUp.resolve)
        response.writeHead(200, { 'content-type': 'application/vnd.ipld.car' })
        response.write('start')
      })
      for await (const _ of await reader.repo(identityAt(server.url))) break
      await hungUp.promise
    })

    const listBlobs = (url: URL) =>
      Array.fromAsync(reader.blobs(identityAt(url)))

    it('gives pages of blobs', async () => {
      const asked: (string | null)[] = []
      await using server = await answering((path) => {
        const { searchParams } = new URL(path, 'http://host')
        asked.push(searchParams.get('cursor'))
        assert.equal(searchParams.get('limit'), '1000')
        return json(
          asked.length < 3
            ? { cids: [cid], cursor: `page ${asked.length}` }
            : { cids: Array(1001).fill(cid), cursor: null }
        )
      })
      assert.equal((await listBlobs(server.url)).length, 1003)
      assert.deepEqual(asked, [null, 'page 1', 'page 2'])
    })

    it('gives the same page for ever', async () => {
      await using server = await answering(json({ cids: [cid], cursor: 'a' }))
      await assert.rejects(listBlobs(server.url), {
        name: 'HostError',
        message: /does not come to the end/,
      })
    })

    for (const [what, answer] of [
      ['no list', json({})],
      ['things that are not CIDs', json({ cids: ['../../etc/passwd'] })],
      ['a cursor that is no text', json({ cids: [], cursor: 1 })],
      ['HTML', html],
      ['HTML as error', { ...html, status: 404 }],
    ] as const) {
      it(`lists blobs with ${what}`, async () => {
        await using server = await answering(answer)
        await assert.rejects(listBlobs(server.url), HostError)
      })
    }

    for (const [error, status] of [
      ['MethodNotImplemented', 501],
      ['MethodNotImplemented', 404],
      ['XRPCNotSupported', 404],
    ] as const) {
      it(`cannot list blobs: ${status} ${error}`, async () => {
        await using server = await answering(json({ error }, status))
        assert.deepEqual(await listBlobs(server.url), [])
      })
    }

    it('cannot list blobs from the second page on', async () => {
      let page = 0
      await using server = await answering(() =>
        page++
          ? json({ error: 'MethodNotImplemented' }, 501)
          : json({ cids: [], cursor: 'next' })
      )
      await assert.rejects(listBlobs(server.url), HostError)
    })

    const blob = (url: URL) => reader.blob(identityAt(url), cid)

    for (const [name, answer] of [
      ['BlobNotFoundError', json({ error: 'BlobNotFound' }, 404)],
      [
        'BlobNotFoundError',
        json({ error: 'InvalidRequest', message: 'Blob not found' }, 400),
      ],
      ['BlobTakenDownError', json({ error: 'BlobTakenDown' }, 400)],
      [
        'BlobTakenDownError',
        json(
          { error: 'InvalidRequest', message: 'Blob has been taken down' },
          400
        ),
      ],
      ['BlobTakenDownError', { status: 451 }],
      ['AccountUnavailableError', json({ error: 'RepoTakendown' }, 400)],
      ['HostError', json({ error: 'InvalidRequest', message: 'No' }, 400)],
      ['HostError', { ...html, status: 404 }],
    ] as const) {
      it(`answers blob with ${answer.status} ${String(answer.body)}`, async () => {
        await using server = await answering(answer)
        await assert.rejects(blob(server.url), { name })
      })
    }

    it('gives a blob that is HTML, or empty', async () => {
      for (const body of ['<html>', '']) {
        await using server = await answering({ ...html, body })
        assert.equal(String(await bytesOf(await blob(server.url))), body)
      }
    })

    it('sends a blob from elsewhere', async () => {
      await using store = await answering({ body: 'bytes' })
      await using server = await answering({
        status: 302,
        headers: { location: store.url.href },
      })
      assert.equal(String(await bytesOf(await blob(server.url))), 'bytes')
    })

    // Dates are made when the test runs, which may be long after it is read.
    for (const [what, headersOf, retryAfter] of [
      ['in 30 seconds', () => ({ 'retry-after': '30' }), 30],
      ['in years', () => ({ 'retry-after': '99999999' }), 86_400],
      [
        'from a date on',
        () => ({ 'retry-after': new Date(Date.now() + 60_000).toUTCString() }),
        60,
      ],
      [
        'from a date on that is past',
        () => ({ 'retry-after': new Date(0).toUTCString() }),
        0,
      ],
      [
        'from a second on',
        () => ({
          'ratelimit-reset': String(Math.ceil(Date.now() / 1000) + 60),
        }),
        60,
      ],
      [
        'in seconds until its count begins again',
        () => ({ 'ratelimit-reset': '45' }),
        45,
      ],
      [
        'after what it says first',
        () => ({ 'retry-after': '30', 'ratelimit-reset': '45' }),
        30,
      ],
      ['soon', () => ({ 'retry-after': 'soon' }), undefined],
      ['soon, otherwise', () => ({ 'ratelimit-reset': 'soon' }), undefined],
      ['some time', () => ({}), undefined],
    ] as [string, () => Record<string, string>, number | undefined][]) {
      it(`wants fewer requests: ${what}`, async () => {
        const headers = headersOf()
        await using server = await answering({ ...html, status: 429, headers })
        await assert.rejects(blob(server.url), (error: Error) => {
          assert.ok(error instanceof RateLimitError)
          assert.ok(error instanceof HostError)
          if (retryAfter === undefined) {
            assert.equal(error.retryAfter, undefined)
            assert.match(error.message, /Try again later/)
          } else {
            assert.ok(Math.abs(error.retryAfter! - retryAfter) <= 2)
            assert.match(error.message, /Try again in \d+ seconds/)
          }
          return true
        })
      })
    }

    for (const [what, body] of [
      ['text', `\u001b[31m\u202eevil\r\n\u0000${'a'.repeat(9000)}`],
      [
        'JSON',
        JSON.stringify({
          error: '\u001b[31m'.repeat(200),
          message: '\n'.repeat(9) + 'é'.repeat(5000),
        }),
      ],
    ] as const) {
      it(`puts control characters and much ${what} into an error`, async () => {
        await using server = await answering({ status: 400, body })
        await assert.rejects(blob(server.url), ({ message }: Error) => {
          assert.doesNotMatch(message, /\p{C}/u)
          assert.ok(message.length < 800, `${message.length} characters`)
          return true
        })
      })
    }

    it('sends an error that does not end', async () => {
      let bytes = 0
      await using server = await startServer((_, response) => {
        response.writeHead(500)
        const timer = setInterval(() => {
          response.write('a'.repeat(4000))
          bytes += 4000
        }, 1)
        response.on('close', () => clearInterval(timer))
      })
      await assert.rejects(blob(server.url), HostError)
      assert.ok(bytes < 1_000_000)
    })
  })
})
