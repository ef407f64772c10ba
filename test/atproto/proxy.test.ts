import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { byHops } from '../../src/atproto/by-hops.ts'
import { FORBIDDEN, FORBIDDEN_ANSWERS } from './forbidden.ts'
import type { ProxyOrder, ProxyResult } from './proxy-child.ts'

const CHILD = fileURLToPath(new URL('proxy-child.ts', import.meta.url))

describe('requests through a proxy', () => {
  let proxy: Server
  let host: Server
  let proxyUrl: string
  /** What the proxy was asked to connect to. */
  let asked: string[] = []
  /** What arrived at the host. */
  let arrived: { url: string; headers: IncomingHttpHeaders }[] = []

  const portOf = (server: Server) => (server.address() as AddressInfo).port

  before(async () => {
    host = createServer((request, response) => {
      const url = `${request.headers.host}${request.url}`
      arrived.push({ url, headers: request.headers })
      const location = { '/there': 'http://other.behind.test/here' }[
        request.url ?? ''
      ]
      if (location) response.writeHead(302, { location }).end()
      else response.end('found')
    })
    proxy = createServer((_request, response) => {
      response.writeHead(501).end()
    })
    proxy.on('connect', ({ url = '' }, socket) => {
      asked.push(url)
      // Names that nobody else knows lead to the host.
      if (!url.includes('.behind.test')) {
        socket.end('HTTP/1.1 502 Bad Gateway\r\n\r\n')
        return
      }
      const up = connect(portOf(host), '127.0.0.1', () => {
        socket.write('HTTP/1.1 200 OK\r\n\r\n')
        up.pipe(socket)
        socket.pipe(up)
      })
      for (const each of [up, socket]) each.on('error', () => up.destroy())
    })
    for (const server of [host, proxy]) {
      server.listen(0, '127.0.0.1')
      await once(server, 'listening')
    }
    proxyUrl = `http://127.0.0.1:${portOf(proxy)}`
  })

  after(() => {
    for (const server of [host, proxy]) {
      server.closeAllConnections()
      server.close()
    }
  })

  beforeEach(() => {
    asked = []
    arrived = []
  })

  async function ask(
    order: Partial<ProxyOrder>,
    environment: Record<string, string> = {
      HTTP_PROXY: proxyUrl,
      HTTPS_PROXY: proxyUrl,
    }
  ): Promise<ProxyResult[]> {
    const given = { allowPrivateNetwork: false, urls: [], names: {}, ...order }
    const child = spawn(process.execPath, [CHILD, JSON.stringify(given)], {
      env: { PATH: process.env['PATH'], ...environment },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    return JSON.parse(await text(child.stdout)) as ProxyResult[]
  }

  it('go through it, and each hop of a redirect, with no secrets for the next', async () => {
    const [result] = await ask({
      allowPrivateNetwork: true,
      urls: ['http://pds.behind.test/there'],
    })
    assert.equal(result?.outcome, 'http://other.behind.test/here found')
    assert.deepEqual(asked, ['pds.behind.test:80', 'other.behind.test:80'])
    assert.deepEqual(
      arrived.map(({ url, headers }) => [url, headers.authorization]),
      [
        ['pds.behind.test/there', 'secret'],
        ['other.behind.test/here', undefined],
      ]
    )
  })

  it('do not go through it to hosts that NO_PROXY names, nor to this machine', async () => {
    const rules = [
      ['http://exact.test/', true],
      ['http://sub.exact.test/', true],
      ['http://domain.test/', true],
      ['http://sub.domain.test/', true],
      ['http://notdomain.test/', false],
      ['http://star.test/', true],
      ['http://sub.star.test/', true],
      ['http://port.test:81/', true],
      ['http://port.test:82/', false],
      ['http://EXACT.TEST/', true],
      ['http://127.0.0.1:9/', true],
      ['http://localhost:9/', true],
      ['http://[::1]:9/', true],
    ] as const
    const results = await ask(
      { allowPrivateNetwork: true, urls: rules.map(([url]) => url) },
      {
        http_proxy: proxyUrl,
        no_proxy: 'exact.test, .domain.test *.star.test,port.test:81',
      }
    )
    assert.deepEqual(
      results.map(({ url, proxied }) => [url, !proxied]),
      rules
    )
    // It is as Node.js itself does.
    assert.deepEqual(
      asked,
      rules.flatMap(([url, direct]) => {
        const { hostname, port } = new URL(url)
        return direct ? [] : `${hostname}:${port || 80}`
      })
    )
  })

  it('go to no address that is not public', async () => {
    const names = Object.fromEntries(
      FORBIDDEN_ANSWERS.map((address, at) => [`n${at}.bsky.network`, address])
    )
    const urls = [
      ...FORBIDDEN.map(([, url]) => url),
      ...Object.keys(names).map((name) => `https://${name}/`),
      'https://metadata.google.internal/',
      'https://printer.local./',
    ]
    const results = await ask({ urls, names })
    for (const { url, outcome } of results) {
      assert.match(outcome, /^(ForbiddenAddressError|HostError)/, url)
    }
    assert.deepEqual(asked, [])
  })

  it('go to public addresses, and to names that only the proxy knows', async () => {
    const results = await ask({
      urls: ['https://pds.bsky.network/', 'https://unknown.bsky.network/'],
      names: { 'pds.bsky.network': '93.184.215.14' },
    })
    assert.deepEqual(asked, [
      'pds.bsky.network:443',
      'unknown.bsky.network:443',
    ])
    for (const { outcome } of results) {
      assert.match(outcome, /^HostError: .*HTTPS_PROXY.*NO_PROXY/)
    }
  })
})

describe('redirects that are followed hop by hop', () => {
  /** Answers with a redirect until there are no more. */
  function hops(...locations: string[]) {
    const seen: Request[] = []
    const fetch = byHops(async (request) => {
      const location = locations[seen.length]
      seen.push(request)
      return location === undefined
        ? new Response('found')
        : new Response(null, { status: 307, headers: { location } })
    })
    return { fetch, seen }
  }

  it('keep secrets within an origin', async () => {
    const { fetch, seen } = hops('/b', 'https://b.test/c', 'https://a.test/d')
    const response = await fetch('https://a.test/a', {
      headers: { authorization: 'secret', range: 'bytes=0-1' },
    })
    assert.equal(await response.text(), 'found')
    assert.ok(response.redirected)
    assert.deepEqual(
      seen.map(({ url, headers }) => [
        url,
        headers.get('authorization'),
        headers.get('range'),
      ]),
      [
        ['https://a.test/a', 'secret', 'bytes=0-1'],
        ['https://a.test/b', 'secret', 'bytes=0-1'],
        ['https://b.test/c', null, 'bytes=0-1'],
        ['https://a.test/d', null, 'bytes=0-1'],
      ]
    )
  })

  it('end where they lead round, are not wanted, or would repeat a body', async () => {
    const round = hops(...Array<string>(100).fill('/again'))
    await assert.rejects(round.fetch('https://a.test/'), TypeError)
    assert.equal(round.seen.length, 21)
    await assert.rejects(
      hops('/b').fetch('https://a.test/', { redirect: 'error' }),
      TypeError
    )
    await assert.rejects(
      hops('/b').fetch('https://a.test/', { method: 'POST', body: 'x' }),
      TypeError
    )
    const manual = await hops('/b').fetch('https://a.test/', {
      redirect: 'manual',
    })
    assert.equal(manual.status, 307)
  })
})
