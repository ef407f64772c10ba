import assert from 'node:assert/strict'
import type { RequestListener } from 'node:http'
import { ed25519 } from '@ucanto/principal'
import { Clock, connect, discover } from '../../src/client/index.ts'
import {
  startServer,
  startTestService,
  type TestService,
} from '../service/harness.ts'

const INFO = {
  name: 'bluesky-backups',
  version: '1.2.3',
  did: 'did:web:backups.example',
  agent: 'did:key:z6MkvpF1VvmvPV1XAsc2BsSLQFBKqPX3hUJHKXzwTtYx9Sts',
  capabilities: ['clock/head'],
}

const answer =
  (status: number, type: string, body: string): RequestListener =>
  (_request, response) => {
    response.writeHead(status, { 'content-type': type }).end(body)
  }

const json = (value: unknown, status = 200) =>
  answer(status, 'application/json', JSON.stringify(value))

describe('connection to a service', () => {
  let service: TestService

  before(async () => {
    service = await startTestService()
  })

  after(() => service[Symbol.asyncDispose]())

  describe('discover', () => {
    it('asks a service what it is', async () => {
      const info = await discover(service.url)
      assert.equal(info.did, service.did)
      assert.equal(info.agent, service.agent)
      assert.equal(info.name, 'bluesky-backups')
      assert.ok(info.capabilities.includes('clock/advance'))
    })

    it('takes of the answer what it knows', async () => {
      await using server = await startServer(json({ ...INFO, more: 'of it' }))
      assert.deepEqual(await discover(server.url), INFO)
    })

    const fails = (url: URL, message: RegExp) =>
      assert.rejects(discover(url), {
        name: 'ServiceUnreachableError',
        message,
      })

    it('says where nothing is', async () => {
      await fails(
        new URL('http://127.0.0.1:9/path'),
        /^http:\/\/127\.0\.0\.1:9\/path cannot be reached; check the URL/
      )
      await fails(new URL('http://nobody.invalid'), /cannot be reached/)
    })

    const others: Record<string, RequestListener> = {
      'a page': answer(200, 'text/html', '<!doctype html><title>Hi</title>'),
      nothing: answer(200, 'application/json', ''),
      null: json(null),
      'a list': json([]),
      'another thing': json({ name: 'other', version: '1' }),
      'a service without a DID': json({ ...INFO, did: undefined }),
      'a service whose DID is a number': json({ ...INFO, did: 5 }),
      'a service whose DID is of another kind': json({
        ...INFO,
        did: 'did:plc:x',
      }),
      'a service whose agent is no key': json({ ...INFO, agent: INFO.did }),
      'a service without capabilities': json({ ...INFO, capabilities: {} }),
      'a service with odd capabilities': json({ ...INFO, capabilities: [1] }),
      'a service without a version': json({ ...INFO, version: 1 }),
    }
    for (const [what, listener] of Object.entries(others)) {
      it(`takes ${what} for no service`, async () => {
        await using server = await startServer(listener)
        await fails(server.url, /is not a backup service; check the URL/)
      })
    }

    it('tells what a service says that does not work', async () => {
      for (const [listener, message] of [
        [answer(500, 'text/html', '<h1>Oh</h1>'), /answered with status 500;/],
        [json({ name: 'NotFound' }, 404), /answered with status 404;/],
        [json(null, 502), /answered with status 502;/],
        [
          json({ name: 'InternalError', message: 'x'.repeat(10_000) }, 500),
          /answered with status 500 \(InternalError: x{500}\);/,
        ],
      ] as const) {
        await using server = await startServer(listener)
        await fails(server.url, message)
      }
    })

    it('says when the answer breaks off', async () => {
      for (const status of [200, 500]) {
        await using server = await startServer((_request, response) => {
          response.writeHead(status, { 'content-length': 100 })
          response.write('{"name":')
          setTimeout(() => response.destroy(), 20)
        })
        await fails(server.url, /not a backup service|status 500/)
      }
    })

    it('can be stopped', async () => {
      for (const listener of [
        () => {},
        (_request, response) => {
          response.writeHead(200).write('{')
        },
      ] satisfies RequestListener[]) {
        await using server = await startServer(listener)
        const stop = new AbortController()
        setTimeout(() => stop.abort(new Error('enough')), 50)
        await assert.rejects(discover(server.url, { signal: stop.signal }), {
          message: 'enough',
        })
      }
    })

    it('asks with the fetch it is given', async () => {
      const info = await discover(new URL('https://backups.example'), {
        fetch: async (input) => {
          assert.equal(String(input), 'https://backups.example/')
          return Response.json(INFO)
        },
      })
      assert.deepEqual(info, INFO)
    })
  })

  describe('connect', () => {
    const head = async (url: URL) => {
      const space = await ed25519.generate()
      return Clock.head(
        { issuer: space, with: space.did() },
        { connection: connect({ url, did: service.did }) }
      )
    }

    const fails = (url: URL, message: RegExp) =>
      assert.rejects(head(url), { name: 'ServiceUnreachableError', message })

    it('sends nothing yet', () => {
      const connection = connect({
        url: new URL('http://127.0.0.1:9'),
        did: service.did,
        fetch: () => assert.fail(),
      })
      assert.equal(connection.id.did(), service.did)
    })

    it('reaches a service', async () => {
      const { ok } = await head(service.url)
      assert.deepEqual(ok, { head: [] })
    })

    it('wants a DID', () => {
      assert.throws(() => connect({ url: service.url, did: 'backups.example' }))
    })

    it('says what is wrong with a service that is none', async () => {
      await fails(new URL('http://127.0.0.1:9'), /cannot be reached/)
      await fails(new URL('/nothing', service.url), /status 404 \(NotFound: /)
      await using page = await startServer(answer(200, 'text/html', '<p>'))
      await fails(page.url, /is not a backup service/)
      await using broken = await startServer(answer(500, 'text/plain', 'Oh'))
      await fails(broken.url, /answered with status 500;/)
    })

    it('tells what a service did not take', async () => {
      await using full = await startServer(
        json({ name: 'BodyTooLarge', message: 'larger than 5 bytes' }, 413)
      )
      await fails(full.url, /413 \(BodyTooLarge: larger than 5 bytes\)/)
    })

    it('takes no nonsense for receipts', async () => {
      await using server = await startServer(
        answer(200, 'application/vnd.ipld.car', 'nonsense')
      )
      const { ok, error } = await head(server.url)
      assert.equal(ok, undefined)
      assert.ok(error?.name)
    })
  })
})
