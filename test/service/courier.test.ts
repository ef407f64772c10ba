import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ed25519 } from '@ucanto/principal'
import { openAnswer } from '../../src/service/answer.ts'
import {
  createCourier,
  type CarriedGrant,
  type CourierOptions,
} from '../../src/service/courier.ts'
import { deriveIdentity, recipientOf } from '../../src/space/index.ts'
import { openStores, type GrantUpdate } from '../../src/stores/index.ts'
import type { Errand } from './courier-child.ts'
import { createFolder } from './harness.ts'

const subject = {
  space: 'did:key:z6MkwDuRThQcyWjqNsK54yKAmzfsiH6BTkASyiucThMtHt1T',
  account: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz',
} as const

const TOKEN = JSON.stringify({ refresh_token: 'the next one' })

describe('a courier', () => {
  it('brings what the host answers, and asks it as it was told to', async () => {
    const asked: unknown[] = []
    await using host = await serve(async (request, response) => {
      const chunks: Buffer[] = []
      for await (const chunk of request) chunks.push(chunk as Buffer)
      const { method, url, headers } = request
      const body = Buffer.concat(chunks).toString()
      asked.push({ method, url, body, dpop: headers.dpop })
      response.writeHead(400, { 'dpop-nonce': 'a nonce' })
      response.end('{"error":"use_dpop_nonce"}')
    })
    await using place = await createPlace()
    using courier = createCourier(place.options)
    for (const body of ['one', 'two']) {
      const request = new Request(`${host.url}/oauth/token`, {
        method: 'POST',
        headers: { dpop: 'a proof' },
        body,
      })
      const { response, release } = await courier.send(request, place.grant)
      release()
      assert.equal(response.status, 400)
      assert.equal(response.headers.get('dpop-nonce'), 'a nonce')
      assert.deepEqual(await response.json(), { error: 'use_dpop_nonce' })
    }
    const same = { method: 'POST', url: '/oauth/token', dpop: 'a proof' }
    assert.deepEqual(asked, [
      { ...same, body: 'one' },
      { ...same, body: 'two' },
    ])
  })

  it('says why there is no answer', async () => {
    await using place = await createPlace()
    await using host = await serve((request, response) => {
      if (request.url === '/nothing') response.writeHead(204).end()
      else if (request.url === '/large') response.end(Buffer.alloc(2 ** 20 + 1))
      else if (request.url === '/elsewhere') {
        response.writeHead(302, { location: '/' }).end()
      } else request.socket.destroy()
    })
    using open = createCourier(place.options)
    const fails = (courier: typeof open, url: string, error: object) =>
      assert.rejects(courier.send(refreshAt(url), place.grant), error)
    await fails(open, `${host.url}/`, { name: 'HostError' })
    await fails(open, `${host.url}/elsewhere`, { name: 'HostError' })
    await fails(open, `${host.url}/large`, {
      name: 'HostError',
      message: /more than there can be to say/,
    })
    const { response } = await open.send(
      refreshAt(`${host.url}/nothing`),
      place.grant
    )
    assert.equal(response.status, 204)
    using closed = createCourier({
      ...place.options,
      fetch: { allowPrivateNetwork: false },
    })
    await fails(closed, `${host.url}/`, { name: 'ForbiddenAddressError' })
  })

  for (const when of ['before the host has answered', 'after that'] as const) {
    it(`keeps an answer whose sender is killed ${when}`, async () => {
      await using place = await createPlace()
      const asked = Promise.withResolvers<void>()
      const killed = Promise.withResolvers<void>()
      await using host = await serve(async (_request, response) => {
        asked.resolve()
        if (when !== 'after that') await killed.promise
        response.setHeader('content-type', 'application/json').end(TOKEN)
      })
      const child = begin({ ...place, url: host.url })
      const given = once(child, 'message')
      await (when === 'after that' ? given : asked.promise)
      child.kill('SIGKILL')
      await once(child, 'exit')
      killed.resolve()
      await place.courierEnds(child)

      const kept = await place.kept()
      assert.ok(kept?.answer)
      assert.ok(!Buffer.from(kept.answer).includes('refresh_token'))
      const response = await openAnswer(place.identity, kept.answer)
      assert.equal(response.status, 200)
      assert.equal(response.headers.get('content-type'), 'application/json')
      assert.equal(await response.text(), TOKEN)
    })
  }

  it('keeps nobody from ending who does not wait for the answer', async () => {
    await using place = await createPlace()
    const asked = Promise.withResolvers<void>()
    const gone = Promise.withResolvers<void>()
    await using host = await serve(async (_request, response) => {
      asked.resolve()
      await gone.promise
      response.end(TOKEN)
    })
    const child = begin({ ...place, url: host.url, leaves: true })
    await asked.promise
    child.send('go')
    assert.deepEqual(await once(child, 'exit'), [0, null])
    gone.resolve()
    await place.courierEnds(child)
    assert.ok((await place.kept())?.answer)
  })

  it('keeps nothing that has changed nothing at the host', async () => {
    await using place = await createPlace()
    await using host = await serve((_request, response) => {
      response.writeHead(400).end(TOKEN)
    })
    const child = begin({ ...place, url: host.url })
    assert.deepEqual(await once(child, 'message'), [{ status: 400 }, undefined])
    child.kill('SIGKILL')
    await place.courierEnds(child)
    assert.equal((await place.kept())?.answer, undefined)
  })

  it('keeps nothing for a grant that has gone on meanwhile', async () => {
    await using place = await createPlace()
    await using host = await serve((_request, response) => {
      response.end(TOKEN)
    })
    const child = begin({ ...place, url: host.url })
    await once(child, 'message')
    await place.put({ seq: 2 })
    child.kill('SIGKILL')
    await place.courierEnds(child)
    assert.equal((await place.kept())?.answer, undefined)
  })

  it('says when there can be none, and then has sent nothing', async () => {
    await using place = await createPlace()
    let requests = 0
    await using host = await serve((_request, response) => {
      requests++
      response.end()
    })
    const { execPath } = process
    process.execPath = join(place.folder, 'no such program')
    try {
      using courier = createCourier(place.options)
      await assert.rejects(courier.send(refreshAt(host.url), place.grant), {
        name: 'CourierUnavailableError',
      })
    } finally {
      process.execPath = execPath
    }
    assert.equal(requests, 0)
  })

  it('begins anew after it had nothing to do', async () => {
    await using place = await createPlace()
    const ports = new Set<number | undefined>()
    await using host = await serve((request, response) => {
      ports.add(request.socket.remotePort)
      response.end()
    })
    using courier = createCourier({ ...place.options, idle: 1 })
    for (let count = 0; count < 2; count++) {
      const { release } = await courier.send(refreshAt(host.url), place.grant)
      release()
      release()
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    // One process would have used the connection that it had.
    assert.equal(ports.size, 2)
  })

  it('holds what it has until that is taken, also when it is to go', async () => {
    await using place = await createPlace()
    await using host = await serve((_request, response) => {
      response.end(TOKEN)
    })
    const courier = createCourier(place.options)
    const { response, release } = await courier.send(
      refreshAt(host.url),
      place.grant
    )
    courier[Symbol.dispose]()
    assert.equal(await response.text(), TOKEN)
    release()
    assert.equal((await place.kept())?.answer, undefined)
  })
})

function refreshAt(url: string): Request {
  return new Request(url, { method: 'POST', body: 'refresh' })
}

/** A host that answers in one way. */
async function serve(
  answer: (...exchange: Parameters<RequestListener>) => unknown
) {
  const server = createServer((...exchange) => void answer(...exchange))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

/** A grant of an agent, in a store of its own. */
async function createPlace() {
  await using resources = new AsyncDisposableStack()
  const folder = resources.use(await createFolder())
  const path = join(folder.path, 'service.sqlite')
  const stores = resources.use(await openStores({ path }))
  const identity = await deriveIdentity(await ed25519.generate(), subject)
  const recipient = await recipientOf(identity)
  const put = (changes: Partial<GrantUpdate>) =>
    stores.grants.put(
      {
        ...subject,
        seq: 1,
        sealed: Uint8Array.of(1),
        expiration: 2_000_000_000,
        recipient,
        scope: 'atproto',
        scopeVersion: 1,
        asked: [],
        parts: [],
        state: 'active',
        delegation: new Uint8Array(),
        created: 1,
        refreshed: 1,
        ...changes,
      },
      Date.now()
    )
  await put({})
  const owned = resources.move()
  return {
    folder: folder.path,
    identity,
    put,
    grant: { ...subject, seq: 1, recipient } satisfies CarriedGrant,
    options: {
      stores: { path },
      fetch: { allowPrivateNetwork: true },
      logLevel: 'error',
    } satisfies CourierOptions,
    kept: () => stores.grants.get(subject.space, subject.account),
    /** Both write to the same, which is at its end when both are. */
    courierEnds: (child: ReturnType<typeof begin>) => child.closed,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

/** Sends a courier by a process that can be killed. */
function begin({ options, url, grant, leaves = false }: Errand) {
  const script = fileURLToPath(new URL('courier-child.ts', import.meta.url))
  const child = fork(script, {
    serialization: 'advanced',
    stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
  })
  child.stdout?.resume()
  child.send({ options, url, grant, leaves } satisfies Errand)
  return Object.assign(child, { closed: once(child, 'close') })
}
