import assert from 'node:assert/strict'
import type { RequestListener } from 'node:http'
import {
  createAccountReader,
  createSafeFetch,
  type HostRequest,
  type HostVisit,
} from '../../src/atproto/index.ts'
import { HostUnavailableError } from '../../src/backup/errors.ts'
import type { Identity } from '../../src/backup/interface.ts'
import { startServer } from './network.ts'

const CID = 'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku'

const fetch = createSafeFetch({
  allowPrivateNetwork: true,
  small: { timeout: 200 },
  stream: { headTimeout: 200, idleTimeout: 50 },
})

/** A gate that lets everybody through, and keeps what it is told. */
function openGate() {
  const entered: HostRequest[] = []
  const told: string[] = []
  const tell = (what: string) => async () => void told.push(what)
  const visit: HostVisit = {
    answered: tell('answered'),
    faulted: tell('faulted'),
    failed: tell('failed'),
    left: tell('left'),
    async limited(retryAfter) {
      told.push(`limited ${retryAfter}`)
      return new HostUnavailableError('wants less', { retryAfter: 7 })
    },
  }
  return {
    entered,
    told,
    async enter(request: HostRequest) {
      entered.push(request)
      return visit
    },
  }
}

const identityAt = (pds: URL): Identity => ({
  did: 'did:plc:alice',
  pds,
  signingKey: 'did:key:zQ3',
  previousSigningKeys: [],
  document: '{}',
})

describe('account reader with a gate', () => {
  let gate: ReturnType<typeof openGate>
  let reader: ReturnType<typeof createAccountReader>

  beforeEach(() => {
    gate = openGate()
    reader = createAccountReader({ fetch, gate })
  })

  const status =
    (status: number, headers = {}): RequestListener =>
    (_request, response) => {
      response.writeHead(status, headers).end('{"error":"Some"}')
    }

  it('asks it before each request', async () => {
    await using server = await startServer(status(404))
    const identity = identityAt(server.url)
    const { host } = server.url
    await assert.rejects(reader.latestCommit(identity))
    await assert.rejects(reader.repo(identity))
    await assert.rejects(Array.fromAsync(reader.blobs(identity)))
    await assert.rejects(reader.blob(identity, CID))
    const request = { host, account: identity.did, patient: true }
    // Only the first request of a run does not wait for long.
    assert.deepEqual(gate.entered, [
      { ...request, patient: false },
      request,
      request,
      request,
    ])
  })

  it('makes no request that it refuses', async () => {
    let requests = 0
    await using server = await startServer((_request, response) => {
      requests++
      response.end()
    })
    const refused = new HostUnavailableError('not now', { retryAfter: 1 })
    const closed = createAccountReader({
      fetch,
      gate: { enter: () => Promise.reject(refused) },
    })
    const identity = identityAt(server.url)
    for (const reading of [
      closed.latestCommit(identity),
      closed.repo(identity),
      Array.fromAsync(closed.blobs(identity)),
      closed.blob(identity, CID),
    ]) {
      await assert.rejects(reading, refused)
    }
    assert.equal(requests, 0)
  })

  for (const [answer, headers, told] of [
    [400, {}, 'answered'],
    [404, {}, 'answered'],
    [500, {}, 'faulted'],
    [501, {}, 'answered'],
    [502, {}, 'failed'],
    [503, {}, 'failed'],
    [504, {}, 'failed'],
    [429, {}, 'limited undefined'],
    [429, { 'retry-after': '12' }, 'limited 12'],
    [429, { 'ratelimit-reset': '12' }, 'limited 12'],
    [503, { 'retry-after': '12' }, 'limited 12'],
  ] as const) {
    it(`tells it of a ${answer} ${JSON.stringify(headers)}`, async () => {
      await using server = await startServer(status(answer, headers))
      const reading = reader.blob(identityAt(server.url), CID)
      await assert.rejects(reading, {
        name: told.startsWith('limited') ? 'HostUnavailableError' : 'HostError',
      })
      assert.deepEqual(gate.told, [told])
    })
  }

  it('tells it of a host that does not answer', async () => {
    await using server = await startServer(() => {})
    await assert.rejects(reader.latestCommit(identityAt(server.url)), {
      name: 'HostError',
      message: /did not (answer|finish) within 0\.2 seconds/,
    })
    assert.deepEqual(gate.told, ['failed'])
  })

  it('tells it of a host that nobody can connect to', async () => {
    const server = await startServer(() => {})
    await server[Symbol.asyncDispose]()
    await assert.rejects(reader.repo(identityAt(server.url)), {
      name: 'HostError',
    })
    assert.deepEqual(gate.told, ['failed'])
  })

  describe('while an answer is read', () => {
    const begun: RequestListener = (_request, response) => {
      response.write('some')
    }

    it('tells it nothing before the end', async () => {
      await using server = await startServer((_request, response) => {
        response.end('all')
      })
      const body = await reader.blob(identityAt(server.url), CID)
      assert.deepEqual(gate.told, [])
      await Array.fromAsync(body)
      assert.deepEqual(gate.told, ['answered'])
    })

    it('tells it when nothing more comes', async () => {
      await using server = await startServer(begun)
      const body = await reader.blob(identityAt(server.url), CID)
      await assert.rejects(Array.fromAsync(body), {
        name: 'HostError',
        message: /sent nothing for 0\.05 seconds/,
      })
      assert.deepEqual(gate.told, ['failed'])
    })

    it('tells it when the connection breaks', async () => {
      await using server = await startServer((request, response) => {
        response.writeHead(200, { 'content-length': '100' })
        response.write('some', () => request.destroy())
      })
      const body = await reader.blob(identityAt(server.url), CID)
      await assert.rejects(Array.fromAsync(body), { name: 'HostError' })
      assert.deepEqual(gate.told, ['failed'])
    })

    it('tells it when nobody wants the rest', async () => {
      await using server = await startServer(begun)
      const body = await reader.blob(identityAt(server.url), CID)
      for await (const _chunk of body) break
      assert.deepEqual(gate.told, ['left'])
    })

    it('tells it when the run is aborted, even if nobody reads', async () => {
      await using server = await startServer(begun)
      const controller = new AbortController()
      const { signal } = controller
      await reader.blob(identityAt(server.url), CID, { signal })
      controller.abort(new Error('enough'))
      assert.deepEqual(gate.told, ['left'])
    })
  })

  it('does not blame the host for a request that was aborted', async () => {
    await using server = await startServer(() => {})
    const controller = new AbortController()
    const { signal } = controller
    const reading = reader.repo(identityAt(server.url), { signal })
    setTimeout(() => controller.abort(new Error('enough')), 20)
    await assert.rejects(reading, /enough/)
    assert.deepEqual(gate.told, ['left'])
  })
})
