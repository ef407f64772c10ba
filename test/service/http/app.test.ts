import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect as connectSocket } from 'node:net'
import { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { Message } from '@ucanto/core'
import type { Signer } from '@ucanto/interface'
import { CAR } from '@ucanto/transport'
import { CID } from 'multiformats/cid'
import { identity } from 'multiformats/hashes/identity'
import { sha256, sha512 } from 'multiformats/hashes/sha2'
import * as raw from 'multiformats/codecs/raw'
import pino from 'pino'
import { Clock as Capabilities } from '../../../src/capabilities/index.ts'
import { Clock } from '../../../src/client/index.ts'
import { createApp, type AppContext } from '../../../src/service/http/app.ts'
import { systemTime } from '../../../src/node/index.ts'
import { createHealth } from '../../../src/service/health.ts'
import { createWatchers } from '../../../src/service/watchers.ts'
import { PACKAGE } from '../../../src/node/index.ts'
import {
  allow,
  createActors,
  eventOf,
  startTestService,
  type Space,
  type TestService,
} from '../harness.ts'

const CAR_TYPE = 'application/vnd.ipld.car'
const MAX_BODY_SIZE = 100_000

describe('HTTP edge', () => {
  let service: TestService
  let alice: Signer
  let mallory: Signer
  let space: Space

  before(async () => {
    service = await startTestService({ maxBodySize: `${MAX_BODY_SIZE}` })
  })

  after(() => service[Symbol.asyncDispose]())

  beforeEach(async () => {
    ;({ alice, mallory, space } = await createActors())
  })

  const urlOf = (path: string) => new URL(path, service.url)

  const post = (
    body: BodyInit | null,
    headers: Record<string, string> = { 'content-type': CAR_TYPE },
    init: RequestInit = {}
  ) => fetch(service.url, { method: 'POST', headers, body, ...init })

  /** Checks that a response is a problem, and answers its message. */
  const problem = async (response: Response, status: number, name: string) => {
    const body = await response.text()
    assert.equal(response.status, status, body)
    const problem = JSON.parse(body) as { name: string; message: string }
    assert.deepEqual(Object.keys(problem), ['name', 'message'])
    assert.equal(problem.name, name)
    assert.equal(response.headers.get('access-control-allow-origin'), '*')
    assert.doesNotMatch(body, /node_modules|\.[jt]s:\d|at \w+ \(/)
    return problem.message
  }

  /** Body of an advance of the Space's clock by its own key. */
  const advanceBody = async (padding = 0) => {
    const event = await eventOf('event')
    const pad = await rawBlock(new Uint8Array(padding))
    const blocks = padding ? [event, pad] : [event]
    const invocation = Capabilities.advance.invoke({
      issuer: space,
      audience: service.connection.id,
      with: space.did(),
      nb: { event: event.cid },
      facts: [
        Object.fromEntries(blocks.map(({ cid }) => [cid.toString(), cid])),
      ],
    })
    for (const block of blocks) invocation.attach(block)
    const { body } = CAR.request.encode(
      await Message.build({ invocations: [invocation] })
    )
    return body as Uint8Array<ArrayBuffer>
  }

  const head = async () => {
    const { ok } = await Clock.head(
      { issuer: space, with: space.did() },
      service
    )
    return ok!.head.map(String)
  }

  describe('POST /', () => {
    it('answers invocations with receipts', async () => {
      const response = await post(await advanceBody())
      assert.equal(response.status, 200)
      assert.equal(response.headers.get('content-type'), CAR_TYPE)
      assert.equal((await head()).length, 1)
    })

    it('takes parameters of the content type', async () => {
      const response = await post(await advanceBody(), {
        'content-type': 'Application/vnd.ipld.car; version=1',
      })
      assert.equal(response.status, 200)
      assert.equal((await head()).length, 1)
    })

    it('wants a CAR', async () => {
      for (const body of ['', 'hello', '{}', new Uint8Array(1000)]) {
        await problem(await post(body), 400, 'InvalidBody')
      }
      await problem(await post(null), 400, 'InvalidBody')
    })

    it('wants a whole CAR', async () => {
      const body = await advanceBody()
      for (const length of [1, 10, 60, 200, body.length - 1]) {
        await problem(await post(body.slice(0, length)), 400, 'InvalidBody')
      }
      assert.deepEqual(await head(), [])
    })

    it('wants invocations', async () => {
      const block = await rawBlock(new Uint8Array([1, 2, 3]))
      const body = CAR.codec.encode({ roots: [block] })
      const response = await post(body as Uint8Array<ArrayBuffer>)
      assert.match(
        await problem(response, 400, 'InvalidBody'),
        /not a message with invocations/
      )
    })

    it('wants to be told that it is a CAR', async () => {
      const body = await advanceBody()
      for (const type of [
        'application/json',
        'text/plain',
        'application/car',
      ]) {
        const response = await post(body, { 'content-type': type })
        await problem(response, 415, 'UnsupportedMediaType')
      }
      await problem(await post(body, {}), 415, 'UnsupportedMediaType')
      assert.deepEqual(await head(), [])
    })

    it('refuses a block under the CID of another, and changes nothing', async () => {
      // A delegation that the Space never gave, under the CID of one it gave.
      const given = await allow(space, alice, ['clock/head'])
      const forged = await allow(mallory, alice, ['clock/*'], {
        with: space.did(),
      })
      const event = await eventOf('event')
      const invocation = await Capabilities.advance
        .invoke({
          issuer: alice,
          audience: service.connection.id,
          with: space.did(),
          nb: { event: event.cid },
          proofs: [given],
          facts: [{ event: event.cid }],
        })
        .delegate()
      invocation.attach(event)
      const message = await Message.build({
        invocations: [invocation] as never,
      })
      const blocks = new Map(
        [...message.iterateIPLDBlocks()].map((block) => [
          block.cid.toString(),
          block.cid.toString() === given.cid.toString()
            ? { cid: given.cid, bytes: forged.bytes }
            : block,
        ])
      )
      const body = CAR.codec.encode({ roots: [message.root], blocks })
      const response = await post(body as Uint8Array<ArrayBuffer>)
      assert.match(
        await problem(response, 400, 'InvalidBody'),
        new RegExp(`${given.cid.toString()} has bytes that do not hash`)
      )
      assert.deepEqual(await head(), [])
    })

    it('refuses other hashes', async () => {
      const bytes = new Uint8Array([1, 2, 3])
      const digests = [
        await sha512.digest(bytes),
        // What is cut short is found by trying.
        {
          ...(await sha256.digest(bytes)),
          size: 4,
          bytes: new Uint8Array([0x12, 4, 1, 2, 3, 4]),
          digest: new Uint8Array([1, 2, 3, 4]),
        },
        identity.digest(new Uint8Array([3, 2, 1])),
      ]
      for (const digest of digests) {
        const block = { cid: CID.createV1(raw.code, digest), bytes }
        const body = CAR.codec.encode({ roots: [block] as never })
        const response = await post(body as Uint8Array<ArrayBuffer>)
        assert.match(
          await problem(response, 400, 'InvalidBody'),
          /hash other than|do not hash/
        )
      }
    })

    it('takes bodies up to the limit', async () => {
      const padding = MAX_BODY_SIZE - (await advanceBody()).length
      const body = await advanceBody(padding - 500)
      assert.ok(body.length <= MAX_BODY_SIZE && body.length > 90_000)
      for (const streamed of [false, true]) {
        const response = await (streamed ? postStreamed([body]) : post(body))
        assert.equal(response.status, 200)
      }
      assert.equal((await head()).length, 1)
    })

    it('refuses bodies over the limit', async () => {
      const body = new Uint8Array(MAX_BODY_SIZE + 1)
      for (const response of [
        await post(body),
        await postStreamed([body]),
        await postStreamed(Array<Uint8Array<ArrayBuffer>>(20).fill(body)),
        await post(new Uint8Array(20 * 1024 * 1024)),
      ]) {
        assert.match(
          await problem(response, 413, 'BodyTooLarge'),
          /larger than 100000 bytes/
        )
      }
    })

    it('does not mind who goes away in the middle', async () => {
      const socket = connectSocket(Number(service.url.port), '127.0.0.1')
      await once(socket, 'connect')
      const lines = service.logs.length
      socket.write(
        `POST / HTTP/1.1\r\nhost: x\r\ncontent-type: ${CAR_TYPE}\r\ncontent-length: 1000\r\n\r\nabc`
      )
      await new Promise((resolve) => setTimeout(resolve, 50))
      socket.destroy()
      await new Promise((resolve) => setTimeout(resolve, 50))
      const loud = service.logs.slice(lines).filter(({ level }) => level !== 20)
      assert.deepEqual(loud, [])
      assert.deepEqual(await head(), [])
    })

    it('refuses what is not HTTP', async () => {
      const socket = connectSocket(Number(service.url.port), '127.0.0.1')
      socket.end('hello\r\n\r\n')
      assert.match(await text(socket), /^HTTP\/1.1 400 Bad Request/)
    })

    const postStreamed = (chunks: Uint8Array<ArrayBuffer>[]) =>
      post(
        Readable.toWeb(Readable.from(chunks)) as ReadableStream,
        { 'content-type': CAR_TYPE },
        {
          duplex: 'half',
        } as RequestInit
      )
  })

  describe('CORS', () => {
    it('lets pages of any origin invoke', async () => {
      const response = await fetch(service.url, {
        method: 'OPTIONS',
        headers: {
          origin: 'https://app.example',
          'access-control-request-method': 'POST',
          'access-control-request-headers': 'content-type',
        },
      })
      assert.equal(response.status, 204)
      const { headers } = response
      assert.equal(headers.get('access-control-allow-origin'), '*')
      assert.equal(headers.get('access-control-allow-methods'), 'GET,HEAD,POST')
      assert.equal(headers.get('access-control-allow-headers'), 'content-type')
      assert.equal(headers.get('access-control-max-age'), '86400')
    })

    it('lets them read the answers', async () => {
      const origin = { origin: 'https://app.example' }
      for (const response of [
        await fetch(service.url, { headers: origin }),
        await post(await advanceBody(), {
          ...origin,
          'content-type': CAR_TYPE,
        }),
        await fetch(urlOf('/nothing'), { headers: origin }),
      ]) {
        assert.equal(response.headers.get('access-control-allow-origin'), '*')
        assert.equal(
          response.headers.get('access-control-allow-credentials'),
          null
        )
      }
    })
  })

  describe('GET /', () => {
    it('tells what the service is', async () => {
      const response = await fetch(service.url)
      assert.deepEqual(await response.json(), {
        name: 'bluesky-backups',
        version: PACKAGE.version,
        did: service.did,
        agent: service.agent,
        capabilities: [
          'clock/head',
          'clock/advance',
          'backup/run',
          'backup/status',
          'backup/schedule',
          'backup/schedules',
          'backup/pause',
          'backup/resume',
          'backup/unschedule',
          'authorization/request',
          'authorization/list',
          'authorization/revoke',
          'authorization/share',
          'ucan/revoke',
        ],
      })
    })

    it('has a head', async () => {
      for (const path of ['/', '/health', '/.well-known/did.json']) {
        const response = await fetch(urlOf(path), { method: 'HEAD' })
        assert.equal(response.status, 200)
        assert.match(response.headers.get('content-type')!, /json/)
        assert.equal(await response.text(), '')
      }
    })
  })

  describe('GET /.well-known/did.json', () => {
    it('resolves the DID to the key', async () => {
      // As the method says: the DID has the place of the document.
      const host = decodeURIComponent(service.did.slice('did:web:'.length))
      const response = await fetch(`http://${host}/.well-known/did.json`)
      const document = (await response.json()) as {
        id: string
        verificationMethod: Record<string, string>[]
      }
      assert.equal(document.id, service.did)
      assert.deepEqual(document.verificationMethod, [
        {
          id: `${service.did}#agent`,
          type: 'Multikey',
          controller: service.did,
          publicKeyMultibase: service.agent.slice('did:key:'.length),
        },
      ])
    })
  })

  describe('GET /receipt/:task', () => {
    it('has none of tasks nobody knows', async () => {
      const { cid } = await eventOf('nothing')
      for (const task of [
        cid.toString(),
        cid.toString().toUpperCase(),
        'nonsense',
        '%00',
        '%F0%28%8C%28',
        '..%2f..%2fservice.key',
        'a'.repeat(5000),
      ]) {
        const response = await fetch(urlOf(`/receipt/${task}`))
        await problem(response, 404, 'ReceiptNotFound')
      }
    })

    it('gives those there are', async () => {
      const { cid } = await eventOf('task')
      const app = createApp(
        contextWith({
          receipts: {
            get: async (task: string) =>
              task === cid.toString() ? new Uint8Array([1, 2]) : undefined,
            put: () => assert.fail(),
          },
        })
      )
      for (const text of [
        cid.toString(),
        CID.parse(cid.toString()).toString(),
      ]) {
        const response = await app.request(`/receipt/${text}`)
        assert.equal(response.status, 200)
        assert.equal(response.headers.get('content-type'), CAR_TYPE)
        assert.deepEqual([...(await response.bytes())], [1, 2])
      }
    })
  })

  describe('GET /health', () => {
    const health = async (context: Partial<AppContext>) => {
      const response = await createApp(contextWith({}, context)).request(
        '/health'
      )
      return [response.status, await response.json()]
    }

    it('is ok', async () => {
      const response = await fetch(urlOf('/health'))
      assert.equal(response.status, 200)
      assert.deepEqual(await response.json(), { status: 'ok' })
    })

    it('is not while the service goes down', async () => {
      assert.deepEqual(await health({ isDraining: () => true }), [
        503,
        { status: 'draining' },
      ])
    })

    it('is not while the store does not answer', async () => {
      const stores = { ping: () => Promise.reject(new Error('secret')) }
      assert.deepEqual(
        await health({ stores: { ...stores, receipts: {} as never } }),
        [503, { status: 'store unavailable' }]
      )
    })
  })

  describe('while it goes down', () => {
    it('takes no more invocations', async () => {
      const app = createApp(contextWith({}, { isDraining: () => true }))
      const response = await app.request('/', {
        method: 'POST',
        headers: { 'content-type': CAR_TYPE },
        body: await advanceBody(),
      })
      assert.equal(response.headers.get('retry-after'), '5')
      assert.equal(response.headers.get('connection'), 'close')
      await problem(response, 503, 'ServiceUnavailable')
    })
  })

  it('has nothing elsewhere', async () => {
    for (const path of ['/nothing', '/receipt', '/receipt/', '/.well-known/']) {
      await problem(await fetch(urlOf(path)), 404, 'NotFound')
    }
    for (const method of ['PUT', 'DELETE', 'PATCH']) {
      await problem(await fetch(service.url, { method }), 404, 'NotFound')
    }
    await problem(
      await fetch(urlOf('/health'), { method: 'POST' }),
      404,
      'NotFound'
    )
  })

  it('tells its log, and nobody else, why it failed', async () => {
    let logged = ''
    const app = createApp(
      contextWith(
        {},
        {
          server: { request: () => Promise.reject(new Error('the secret')) },
          logger: pino({}, { write: (line) => (logged += line) }),
        }
      )
    )
    const response = await app.request('/', {
      method: 'POST',
      headers: { 'content-type': CAR_TYPE },
      body: await advanceBody(),
    })
    const message = await problem(response, 500, 'InternalError')
    assert.doesNotMatch(message, /secret/)
    assert.match(logged, /the secret/)
  })

  /** What an edge needs, none of which works unless it is given. */
  function contextWith(
    stores: Partial<AppContext['stores']>,
    context: Partial<AppContext> = {}
  ): AppContext {
    return {
      info: {
        name: 'test',
        version: '0.0.0',
        did: service.did,
        agent: service.agent,
      },
      server: { request: () => assert.fail() },
      health: createHealth({
        time: systemTime,
        logger: pino({ level: 'silent' }),
      }),
      watch: {
        watchers: createWatchers(),
        feed: { size: 0, follow: () => assert.fail() },
        time: systemTime,
        stopping: new AbortController().signal,
      },
      stores: {
        ping: () => assert.fail(),
        receipts: { get: () => assert.fail(), put: () => assert.fail() },
        ...stores,
      },
      logger: pino({ level: 'silent' }),
      maxBodySize: MAX_BODY_SIZE,
      isDraining: () => false,
      ...context,
    }
  }
})

async function rawBlock(bytes: Uint8Array) {
  return { cid: CID.createV1(raw.code, await sha256.digest(bytes)), bytes }
}
