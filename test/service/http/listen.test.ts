import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { listen } from '../../../src/service/http/listen.ts'

const LOOPBACK = { host: '127.0.0.1', port: 0 }

describe('listen', () => {
  it('answers requests', async () => {
    await using server = await listen(
      (request) => new Response(new URL(request.url).pathname),
      LOOPBACK
    )
    const response = await fetch(`http://127.0.0.1:${server.port}/hello`)
    assert.equal(await response.text(), '/hello')
  })

  it('says what to do when it cannot listen', async () => {
    await using server = await listen(() => new Response(), LOOPBACK)
    const { port } = server
    const cases: [{ host: string; port: number }, RegExp][] = [
      [
        { host: '127.0.0.1', port },
        new RegExp(`127.0.0.1, port ${port}: something else does; .*--port`),
      ],
      [{ host: '192.0.2.1', port: 0 }, /no such address; .*--host/],
      [{ host: 'nobody.invalid', port: 0 }, /check host and port|no such host/],
    ]
    for (const [where, message] of cases) {
      await assert.rejects(
        listen(() => new Response(), where),
        { name: 'ListenError', message }
      )
    }
  })

  it('lets requests under way end when it closes', async () => {
    const begun = Promise.withResolvers<void>()
    const answer = Promise.withResolvers<Response>()
    const server = await listen(() => {
      begun.resolve()
      return answer.promise
    }, LOOPBACK)
    const url = `http://127.0.0.1:${server.port}`
    const response = fetch(url, { headers: { connection: 'close' } })
    await begun.promise
    const closed = server[Symbol.asyncDispose]()
    await assert.rejects(fetch(url))
    answer.resolve(new Response('in time'))
    assert.equal(await (await response).text(), 'in time')
    await closed
  })

  it('does not wait for connections that nobody uses', async () => {
    const server = await listen(() => new Response('kept'), LOOPBACK)
    await (await fetch(`http://127.0.0.1:${server.port}`)).text()
    const started = performance.now()
    await server[Symbol.asyncDispose]()
    assert.ok(performance.now() - started < 1000)
  })

  it('does not wait for ever', async () => {
    const server = await listen(() => new Promise(() => {}), {
      ...LOOPBACK,
      closeTimeout: 50,
    })
    const socket = connect(server.port, '127.0.0.1')
    socket.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n')
    await once(socket, 'connect')
    await new Promise((resolve) => setTimeout(resolve, 20))
    await Promise.all([server[Symbol.asyncDispose](), once(socket, 'close')])
  })

  it('leaves the globals of the process alone', async () => {
    const { Request: request, Response: response } = globalThis
    await using _server = await listen(() => new Response(), LOOPBACK)
    assert.equal(globalThis.Request, request)
    assert.equal(globalThis.Response, response)
  })
})
