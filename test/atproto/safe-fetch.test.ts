import assert from 'node:assert/strict'
import dns from 'node:dns'
import { getEventListeners } from 'node:events'
import type { RequestListener } from 'node:http'
import { syncBuiltinESMExports } from 'node:module'
import { isIP, Socket } from 'node:net'
import tls from 'node:tls'
import { setTimeout } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import { createSafeFetch } from '../../src/atproto/safe-fetch.ts'
import type { SafeFetchOptions } from '../../src/atproto/safe-fetch.ts'
import { ForbiddenAddressError, HostError } from '../../src/backup/errors.ts'
import { FORBIDDEN, FORBIDDEN_ANSWERS } from './forbidden.ts'
import { startServer, type TestServer } from './network.ts'

const ALLOWED = [
  ['IPv4', 'https://1.1.1.1/'],
  ['IPv6', 'https://[2606:4700:4700::1111]/'],
  ['IPv6 that is no ISATAP', 'https://[2606:4700:0:5efe::1]/'],
] as const

type Callback = (error: null, addresses: dns.LookupAddress[]) => void

const local = (options: Partial<SafeFetchOptions> = {}) =>
  createSafeFetch({ allowPrivateNetwork: true, ...options })

describe('safe fetch', () => {
  describe('addresses', () => {
    const { small, stream, repo } = createSafeFetch({
      allowPrivateNetwork: false,
    })
    for (const [what, url] of FORBIDDEN) {
      it(`refuses ${what}: ${url}`, async () => {
        for (const fetch of [small, stream, repo]) {
          await assert.rejects(
            fetch(url, { redirect: 'follow' }),
            ForbiddenAddressError
          )
        }
      })
    }

    it('refuses them as Request too', async () => {
      await assert.rejects(
        small(new Request('https://127.0.0.1/', { redirect: 'error' })),
        ForbiddenAddressError
      )
    })

    it('never shows a password', async () => {
      const url = 'https://alice:hunter2@127.0.0.1/'
      await assert.rejects(
        small(url, { redirect: 'error' }),
        (error: Error) => !/hunter2|alice/.test(error.message)
      )
    })

    for (const address of FORBIDDEN_ANSWERS) {
      it(`refuses a public name that resolves to ${address}`, async () => {
        for (const addresses of [[address], ['1.1.1.1', address]]) {
          using _names = answerNames(() => addresses)
          for (const fetch of [small, stream]) {
            await assert.rejects(
              fetch('https://rebound.bsky.network/', { redirect: 'error' }),
              ForbiddenAddressError
            )
          }
        }
      })
    }

    it('refuses a name that resolves to a private address from the second time on', async () => {
      let asked = 0
      using _names = answerNames(() => [++asked > 1 ? '10.0.0.1' : '1.1.1.1'])
      await using server = await startServer((_, response) =>
        // So that there has to be a second connection.
        response.writeHead(200, { connection: 'close' }).end('hello')
      )
      using _connections = leadTo(server)
      const url = 'https://rebinding.bsky.network/'
      const response = await small(url, { redirect: 'error' })
      assert.equal(await response.text(), 'hello')
      await assert.rejects(
        small(url, { redirect: 'error' }),
        ForbiddenAddressError
      )
      assert.equal(asked, 2)
    })

    for (const [what, url] of ALLOWED) {
      it(`goes to public ${what}: ${url}`, async () => {
        await using server = await startServer((_, response) =>
          response.end('hello')
        )
        for (const fetch of [small, stream]) {
          using connections = leadTo(server)
          const response = await fetch(url, { redirect: 'error' })
          assert.equal(await response.text(), 'hello')
          const { hostname } = new URL(url)
          const [host] = connections.hosts
          assert.equal(host, hostname.replace(/[[\]]/g, ''))
        }
      })
    }

    for (const address of [
      '1.1.1.1',
      '2606:4700:4700::1111',
      '::ffff:1.1.1.1',
    ]) {
      it(`goes to a public name that resolves to ${address}`, async () => {
        await using server = await startServer((_, response) =>
          response.end('hello')
        )
        using _names = answerNames(() => [address])
        using connections = leadTo(server)
        const url = 'https://public.bsky.network/'
        const response = await small(url, { redirect: 'error' })
        assert.equal(await response.text(), 'hello')
        assert.deepEqual(connections.hosts, ['public.bsky.network'])
      })
    }

    for (const location of [
      'http://127.0.0.1/',
      'https://127.0.0.1/',
      'https://10.0.0.1/',
      'https://[::1]/',
      'https://[::7f00:1]/',
      'https://[2606:4700::5efe:7f00:1]/',
      'https://localhost/',
      'https://private.bsky.network/',
      'http://public.bsky.network/',
      'https://public.bsky.network:8443/',
      'https://example.com/',
    ]) {
      it(`refuses to be sent by a public host to ${location}`, async () => {
        let asked = 0
        await using server = await startServer((_, response) => {
          asked++
          response.writeHead(302, { location, connection: 'close' }).end()
        })
        using _names = answerNames((name) => [
          name === 'private.bsky.network' ? '::a00:1' : '1.1.1.1',
        ])
        using _connections = leadTo(server)
        for (const fetch of [small, stream]) {
          await assert.rejects(
            fetch('https://public.bsky.network/', { redirect: 'follow' }),
            ForbiddenAddressError
          )
        }
        // The first hop of each was made, and no other.
        assert.equal(asked, 2)
      })
    }

    it('is sent by a public host to another', async () => {
      await using server = await startServer((request, response) =>
        request.headers.host === 'public.bsky.network'
          ? response.writeHead(302, { location: 'https://1.1.1.1/' }).end()
          : response.end('hello')
      )
      using _names = answerNames(() => ['1.1.1.1'])
      using _connections = leadTo(server)
      const url = 'https://public.bsky.network/'
      const response = await small(url, { redirect: 'follow' })
      assert.equal(await response.text(), 'hello')
    })

    it('refuses to be sent to a forbidden name, or to a file', async () => {
      // Also where private addresses are allowed.
      const { small, stream } = local()
      for (const location of ['http://example.com/', 'file:///etc/passwd']) {
        await using server = await startServer((_, response) =>
          response.writeHead(302, { location }).end()
        )
        for (const fetch of [small, stream]) {
          await assert.rejects(
            fetch(server.url, { redirect: 'follow' }),
            location.startsWith('http') ? ForbiddenAddressError : HostError
          )
        }
      }
    })

    it('follows redirects to where it may go', async () => {
      await using server = await startServer((request, response) =>
        request.url === '/'
          ? response.writeHead(302, { location: '/there' }).end()
          : response.end('hello')
      )
      const response = await local().small(server.url, { redirect: 'follow' })
      assert.equal(response.url, `${server.url.href}there`)
      assert.equal(response.redirected, true)
      assert.equal(await response.text(), 'hello')
    })

    it('fails on a redirect when none is wanted', async () => {
      await using server = await startServer((_, response) =>
        response.writeHead(302, { location: '/there' }).end()
      )
      await assert.rejects(
        local().small(server.url, { redirect: 'error' }),
        HostError
      )
    })

    it('fails on endless redirects', async () => {
      let count = 0
      await using server = await startServer((_, response) =>
        response.writeHead(302, { location: `/${count++}` }).end()
      )
      await assert.rejects(
        local().small(server.url, { redirect: 'follow' }),
        HostError
      )
      assert.ok(count < 30)
    })
  })

  describe('requests', () => {
    it('sends the headers and the user agent', async () => {
      await using server = await startServer((request, response) =>
        response.end(JSON.stringify(request.headers))
      )
      const { small } = local({ userAgent: 'bluesky-backups/1' })
      const headers = { accept: 'text/plain' }
      const inputs = [
        () => small(server.url, { redirect: 'error', headers }),
        () => small(new Request(server.url, { redirect: 'error', headers })),
      ]
      for (const fetch of inputs) {
        const sent = (await (await fetch()).json()) as Record<string, string>
        assert.equal(sent['user-agent'], 'bluesky-backups/1')
        assert.equal(sent['accept'], 'text/plain')
      }
    })

    it('passes an answer without a body', async () => {
      await using server = await startServer((_, response) =>
        response.writeHead(204).end()
      )
      const response = await local().small(server.url, { redirect: 'error' })
      assert.equal(response.status, 204)
      assert.equal(response.body, null)
    })

    it('fails with HostError when nobody listens', async () => {
      const server = await startServer(() => {})
      await server[Symbol.asyncDispose]()
      await assert.rejects(local().small(server.url, { redirect: 'error' }), {
        name: 'HostError',
        retryable: true,
        message: /did not answer.*ECONNREFUSED.*Try again/,
      })
    })
  })

  describe('limits', () => {
    it('ends an answer that announces to be too large', async () => {
      await using server = await startServer((_, response) =>
        response
          .writeHead(200, { 'content-length': 2000 })
          .end(new Uint8Array(2000))
      )
      const { small, stream } = local({
        small: { maxSize: 1999 },
        stream: { maxSize: 1999 },
      })
      for (const fetch of [small, stream]) {
        await assert.rejects(
          fetch(server.url, { redirect: 'error' }),
          HostError
        )
      }
    })

    it('ends an endless answer at its limit', async () => {
      await using server = await startServer(endless)
      const { small } = local({ small: { maxSize: 100_000 } })
      const response = await small(server.url, { redirect: 'error' })
      await assert.rejects(response.arrayBuffer(), HostError)
    })

    it('counts bytes after decompression', async () => {
      const bomb = gzipSync(new Uint8Array(3_000_000))
      await using server = await startServer((_, response) =>
        response.writeHead(200, { 'content-encoding': 'gzip' }).end(bomb)
      )
      const response = await local().small(server.url, { redirect: 'error' })
      await assert.rejects(response.arrayBuffer(), HostError)
    })

    it('takes an answer of exactly the limit', async () => {
      await using server = await startServer((_, response) =>
        response.end(new Uint8Array(2000))
      )
      const { small } = local({ small: { maxSize: 2000 } })
      const response = await small(server.url, { redirect: 'error' })
      assert.equal((await response.arrayBuffer()).byteLength, 2000)
    })

    it('does not wait for ever for the head', async () => {
      await using server = await startServer(() => {})
      const { small, stream } = local({
        small: { timeout: 50 },
        stream: { headTimeout: 50 },
      })
      for (const fetch of [small, stream]) {
        await assert.rejects(fetch(server.url, { redirect: 'error' }), {
          name: 'HostError',
          message: /0\.05 seconds/,
        })
      }
    })

    it('ends a small answer that trickles', async () => {
      await using server = await startServer(trickle)
      const { small } = local({ small: { timeout: 100 } })
      const response = await small(server.url, { redirect: 'error' })
      await assert.rejects(response.text(), HostError)
    })

    it('lets a stream trickle', async () => {
      await using server = await startServer(trickle)
      const { stream } = local({
        stream: { headTimeout: 300, idleTimeout: 300 },
      })
      const response = await stream(server.url, { redirect: 'error' })
      let size = 0
      for await (const bytes of response.body!) {
        size += bytes.length
        if (size === 20) break
      }
      assert.equal(size, 20)
    })

    it('ends a stream that trickles below the least rate', async () => {
      await using server = await startServer(trickle)
      const { stream, repo } = local({
        stream: { idleTimeout: 300, leastRate: 1_000_000, rateWindow: 100 },
      })
      for (const fetch of [stream, repo]) {
        const response = await fetch(server.url, { redirect: 'error' })
        await assert.rejects(response.text(), {
          name: 'HostError',
          message: /sent less than 1000000 bytes a second for 0\.1 seconds/,
        })
      }
    })

    it('measures the rate of a stream anew in each window', async () => {
      await using server = await startServer((_, response) => {
        response.write(Buffer.alloc(1_000_000))
        trickle(_, response)
      })
      const { stream } = local({
        stream: { idleTimeout: 300, leastRate: 1_000, rateWindow: 100 },
      })
      const response = await stream(server.url, { redirect: 'error' })
      await assert.rejects(response.text(), HostError)
    })

    it('does not count the time of a slow reader against the rate', async () => {
      await using server = await startServer((_, response) => {
        response.write('first')
        response.write('second')
        response.end('last')
      })
      const { stream } = local({
        stream: { idleTimeout: 300, leastRate: 1_000_000, rateWindow: 50 },
      })
      const response = await stream(server.url, { redirect: 'error' })
      let text = ''
      for await (const bytes of response.body!) {
        text += Buffer.from(bytes).toString()
        await setTimeout(100)
      }
      assert.equal(text, 'firstsecondlast')
    })

    it('waits longer for a repository to begin than for other streams', async () => {
      await using server = await startServer((_, response) => {
        void setTimeout(150).then(() => {
          response.flushHeaders()
          return setTimeout(150).then(() => response.end('repository'))
        })
      })
      const { stream, repo } = local({
        stream: { headTimeout: 50, idleTimeout: 50, repoTimeout: 1_000 },
      })
      await assert.rejects(stream(server.url, { redirect: 'error' }), HostError)
      const response = await repo(server.url, { redirect: 'error' })
      assert.equal(await response.text(), 'repository')
    })

    it('does not wait for ever for the first byte of a repository', async () => {
      await using server = await startServer((_, response) => {
        response.flushHeaders()
      })
      const { repo } = local({ stream: { repoTimeout: 50 } })
      const response = await repo(server.url, { redirect: 'error' })
      await assert.rejects(response.text(), HostError)
    })

    it('ends a stream that goes silent', async () => {
      await using server = await startServer((_, response) => {
        response.write('some')
      })
      const { stream } = local({ stream: { idleTimeout: 50 } })
      const response = await stream(server.url, { redirect: 'error' })
      await assert.rejects(response.text(), {
        name: 'HostError',
        message: /sent nothing for 0\.05 seconds/,
      })
    })

    it('does not count the time of a slow reader', async () => {
      await using server = await startServer((_, response) => {
        response.write('first')
        response.end('last')
      })
      const { stream } = local({ stream: { idleTimeout: 50 } })
      const response = await stream(server.url, { redirect: 'error' })
      await setTimeout(150)
      assert.equal(await response.text(), 'firstlast')
    })

    it('fails when the connection breaks in the middle', async () => {
      await using server = await startServer((_, response) => {
        response.writeHead(200, { 'content-length': 100 })
        response.write('some', () => response.destroy())
      })
      const response = await local().stream(server.url, { redirect: 'error' })
      await assert.rejects(response.text(), HostError)
    })
  })

  describe('abort', () => {
    const reason = new Error('enough')

    it('fails with the reason before the request', async () => {
      await assert.rejects(
        local().small('http://127.0.0.1:1', {
          redirect: 'error',
          signal: AbortSignal.abort(reason),
        }),
        reason
      )
    })

    it('fails with the reason while waiting for the head', async () => {
      const controller = new AbortController()
      await using server = await startServer(() => controller.abort(reason))
      const { signal } = controller
      const inputs = [
        () => local().stream(server.url, { redirect: 'error', signal }),
        () =>
          local().stream(
            new Request(server.url, { redirect: 'error', signal })
          ),
      ]
      await assert.rejects(inputs[0]!(), reason)
      await assert.rejects(inputs[1]!(), reason)
    })

    it('fails with the reason in the middle of a body, and hangs up', async () => {
      const hungUp = Promise.withResolvers<void>()
      await using server = await startServer((_, response) => {
        response.on('close', hungUp.resolve)
        response.write('some')
      })
      const controller = new AbortController()
      const response = await local().stream(server.url, {
        redirect: 'error',
        signal: controller.signal,
      })
      await assert.rejects(async () => {
        for await (const _ of response.body!) controller.abort(reason)
      }, reason)
      await hungUp.promise
    })

    it('hangs up when a stream is left early', async () => {
      const hungUp = Promise.withResolvers<void>()
      await using server = await startServer((request, response) => {
        response.on('close', hungUp.resolve)
        endless(request, response)
      })
      const response = await local().stream(server.url, { redirect: 'error' })
      for await (const _ of response.body!) break
      await hungUp.promise
    })

    it('hangs up when a stream is left before it is read', async () => {
      const hungUp = Promise.withResolvers<void>()
      await using server = await startServer((request, response) => {
        response.on('close', hungUp.resolve)
        endless(request, response)
      })
      const response = await local().stream(server.url, { redirect: 'error' })
      await response.body![Symbol.asyncIterator]().return?.()
      await hungUp.promise
    })

    it('leaves no listener on the signal', async () => {
      await using server = await startServer((_, response) =>
        response.end('ok')
      )
      const { signal } = new AbortController()
      const response = await local().small(server.url, {
        redirect: 'error',
        signal,
      })
      await response.text()
      assert.equal(getEventListeners(signal, 'abort').length, 0)
    })
  })
})

/** Answers for name servers what public names are, until it is disposed of. */
function answerNames(answer: (name: string) => readonly string[]): Disposable {
  const { lookup } = dns
  const replaced = (name: string, options: object, callback: Callback) => {
    if (!name.endsWith('.bsky.network')) {
      return lookup(name, options, callback as never)
    }
    const addresses = answer(name)
    callback(
      null,
      addresses.map((address) => ({ address, family: isIP(address) }))
    )
  }
  dns.lookup = replaced as unknown as typeof lookup
  syncBuiltinESMExports()
  return {
    [Symbol.dispose]() {
      dns.lookup = lookup
      syncBuiltinESMExports()
    },
  }
}

/**
 * Has secure connections end at a server of this machine, until it is disposed
 * of: nothing but the last step, for which there would have to be an internet,
 * is replaced.
 */
function leadTo({ url }: TestServer): Disposable & { hosts: string[] } {
  const { connect } = tls
  const hosts: string[] = []
  const replaced = ({ host = '', lookup }: tls.ConnectionOptions) => {
    hosts.push(host)
    const socket = new Socket()
    const go = (error?: Error | null) => {
      if (error) return socket.destroy(error)
      socket.connect(Number(url.port), url.hostname)
    }
    socket.once('connect', () => socket.emit('secureConnect'))
    // Literal addresses are not looked up by real connections either.
    if (isIP(host)) go()
    else lookup?.(host, { all: true }, go)
    return socket
  }
  tls.connect = replaced as unknown as typeof connect
  return {
    hosts,
    [Symbol.dispose]() {
      tls.connect = connect
    },
  }
}

const endless: RequestListener = (_, response) => {
  const chunk = new Uint8Array(65_536)
  const write = () => {
    while (!response.destroyed && response.write(chunk));
    response.once('drain', write)
  }
  write()
}

const trickle: RequestListener = (_, response) => {
  const timer = setInterval(() => response.write('.'), 20)
  response.on('close', () => clearInterval(timer))
}
