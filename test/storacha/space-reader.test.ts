import assert from 'node:assert/strict'
import { createServer, type RequestListener } from 'node:http'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { identity } from 'multiformats/hashes/identity'
import { sha256, sha512 } from 'multiformats/hashes/sha2'
import { createNativeSha256 } from '../../src/node/index.ts'
import { createSpaceReader } from '../../src/storacha/index.ts'

const bytes = new TextEncoder().encode('a block of a Space')
const MEBIBYTE = 1024 * 1024

describe('space reader', () => {
  let close: (() => void)[] = []
  let link: CID

  before(async () => {
    link = CID.createV1(raw.code, await sha256.digest(bytes))
  })

  afterEach(() => {
    for (const end of close) end()
    close = []
  })

  /** A gateway that answers as the test wants: real ones are honest. */
  async function gateway(listener: RequestListener): Promise<URL> {
    const server = createServer(listener)
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    close.push(() => {
      server.closeAllConnections()
      server.close()
    })
    return new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  }

  function readerOf(...gateways: URL[]) {
    return createSpaceReader({
      gateways,
      fetch: globalThis.fetch,
      createSha256: createNativeSha256,
    })
  }

  it('reads a block once', async () => {
    const paths: (string | undefined)[] = []
    const url = await gateway((request, response) => {
      paths.push(request.url)
      response.end(bytes)
    })
    const reader = readerOf(new URL('/base', url))
    assert.deepEqual((await reader.get(link))?.bytes, bytes)
    assert.deepEqual((await reader.get(link))?.bytes, bytes)
    assert.deepEqual(paths, [`/base/ipfs/${link}?format=raw`])
  })

  it('has what is in the CID', async () => {
    const inline = CID.createV1(raw.code, identity.digest(bytes))
    assert.deepEqual((await readerOf().get(inline))?.bytes, bytes)
  })

  it('reads nothing whose hash it cannot check', async () => {
    const other = CID.createV1(raw.code, await sha512.digest(bytes))
    await assert.rejects(readerOf().get(other), { name: 'GatewayError' })
  })

  it('answers nothing when nobody has it', async () => {
    const url = await gateway((_request, response) => {
      response.statusCode = 404
      response.end()
    })
    assert.equal(await readerOf(url).get(link), undefined)
  })

  it('asks the next gateway when one lies, fails, or has nothing', async () => {
    const liar = await gateway((_request, response) => response.end('lies'))
    const broken = await gateway((_request, response) => {
      response.statusCode = 500
      response.end()
    })
    const empty = await gateway((_request, response) => {
      response.statusCode = 410
      response.end()
    })
    const honest = await gateway((_request, response) => response.end(bytes))
    const reader = readerOf(liar, broken, empty, honest)
    assert.deepEqual((await reader.get(link))?.bytes, bytes)
  })

  it('says why when nobody gives it', async () => {
    const liar = await gateway((_request, response) => response.end('lies'))
    await assert.rejects(readerOf(liar).get(link), (error: Error) => {
      assert.equal(error.name, 'GatewayError')
      assert.match(error.message, /not those of/)
      return true
    })
  })

  it('does not read more than a block may have', async () => {
    let sent = 0
    const endless = await gateway((_request, response) => {
      const chunk = Buffer.alloc(MEBIBYTE)
      const send = () => {
        while (!response.destroyed && sent < 1000 * MEBIBYTE) {
          sent += chunk.length
          if (!response.write(chunk)) break
        }
      }
      response.on('drain', send)
      send()
    })
    await assert.rejects(readerOf(endless).get(link), { name: 'GatewayError' })
    assert.ok(sent < 100 * MEBIBYTE)
  })

  describe('and gateways that want fewer requests', () => {
    /** Lets some requests through, and refuses those that come before it says. */
    function limited({
      status,
      retryAfter,
    }: {
      status: number
      retryAfter?: string
    }): RequestListener {
      let refused = false
      return (_request, response) => {
        if (refused) return void response.end(bytes)
        refused = true
        response
          .writeHead(status, retryAfter ? { 'retry-after': retryAfter } : {})
          .end('slow down')
      }
    }

    for (const [what, answer] of [
      ['429 and seconds', { status: 429, retryAfter: '1' }],
      ['503 and seconds', { status: 503, retryAfter: '1' }],
      ['429 alone', { status: 429 }],
    ] as const) {
      it(`a gateway that answers with ${what} is waited for`, async () => {
        const url = await gateway(limited(answer))
        const began = performance.now()
        assert.deepEqual((await readerOf(url).get(link))?.bytes, bytes)
        assert.ok(performance.now() - began >= 990)
      })
    }

    it('a point in time is compared with the clock of the gateway', async () => {
      let asked = 0
      const url = await gateway((_request, response) => {
        if (++asked > 1) return void response.end(bytes)
        const date = Date.now() - 400 * 86_400_000
        response
          .writeHead(429, {
            date: new Date(date).toUTCString(),
            'retry-after': new Date(date + 1000).toUTCString(),
          })
          .end()
      })
      assert.deepEqual((await readerOf(url).get(link))?.bytes, bytes)
      assert.equal(asked, 2)
    })

    it('the next gateway is asked without a wait', async () => {
      const busy = await gateway((_request, response) => {
        response.writeHead(429, { 'retry-after': '60' }).end()
      })
      const other = await gateway((_request, response) => response.end(bytes))
      const began = performance.now()
      assert.deepEqual((await readerOf(busy, other).get(link))?.bytes, bytes)
      assert.ok(performance.now() - began < 900)
    })

    it('all that read from a gateway leave it alone together', async () => {
      let asked = 0
      const pauses: number[] = []
      const url = await gateway((_request, response) => {
        if (++asked > 1) return void response.end(bytes)
        response.writeHead(429, { 'retry-after': '1' }).end()
      })
      const reader = createSpaceReader({
        gateways: [url],
        fetch: globalThis.fetch,
        createSha256: createNativeSha256,
        onPause: ({ wait }) => pauses.push(wait),
      })
      const first = reader.get(link)
      while (asked === 0) await new Promise(setImmediate)
      await new Promise((resolve) => setTimeout(resolve, 50))
      const others = Array.from({ length: 10 }, () => reader.get(link))
      await new Promise((resolve) => setTimeout(resolve, 100))
      assert.equal(asked, 1)
      for (const block of await Promise.all([first, ...others])) {
        assert.deepEqual(block?.bytes, bytes)
      }
      assert.deepEqual(pauses, [1000])
    })

    it('one that wants to be left alone for long fails the read, and says for how long', async () => {
      let asked = 0
      const url = await gateway((_request, response) => {
        asked++
        response.writeHead(429, { 'retry-after': '600' }).end()
      })
      const reader = readerOf(url)
      const refused = { name: 'GatewayError', retryAfter: 600 }
      await assert.rejects(reader.get(link), refused)
      await assert.rejects(reader.get(link), refused)
      assert.equal(asked, 1)
    })

    it('a wait ends with the signal of the call and of the reader', async () => {
      const url = await gateway((_request, response) => {
        response.writeHead(429, { 'retry-after': '60' }).end()
      })
      const stop = new AbortController()
      const reader = createSpaceReader({
        gateways: [url],
        fetch: globalThis.fetch,
        createSha256: createNativeSha256,
        signal: stop.signal,
      })
      const signal = AbortSignal.timeout(50)
      await assert.rejects(reader.get(link, { signal }), {
        name: 'TimeoutError',
      })
      const reading = reader.get(link)
      setTimeout(() => stop.abort(new Error('enough')), 50)
      await assert.rejects(reading, /enough/)
    })
  })

  describe('parts of shards', () => {
    const whole = new Uint8Array(10_000).map((_, index) => index % 251)
    const range = { offset: 100, length: 50 }
    const expected = whole.subarray(100, 150)

    async function shard(location?: URL) {
      const { bytes: digest } = await sha256.digest(whole)
      return {
        digest,
        size: whole.length,
        ...(location ? { location: location.href } : {}),
      }
    }

    it('are asked for alone', async () => {
      let asked: string | undefined
      const url = await gateway((request, response) => {
        asked = request.headers.range
        response.statusCode = 206
        response.end(expected)
      })
      assert.deepEqual(
        await readerOf(url).getShardRange(await shard(), range),
        expected
      )
      assert.equal(asked, 'bytes=100-149')
    })

    it('are cut out where the range is ignored', async () => {
      const url = await gateway((_request, response) => response.end(whole))
      assert.deepEqual(
        await readerOf(url).getShardRange(await shard(), range),
        expected
      )
    })

    it('come from where the shard was stored if no gateway has it', async () => {
      const empty = await gateway((_request, response) => {
        response.statusCode = 404
        response.end()
      })
      const storage = await gateway((_request, response) => {
        response.statusCode = 206
        response.end(expected)
      })
      assert.deepEqual(
        await readerOf(empty).getShardRange(await shard(storage), range),
        expected
      )
    })

    it('are not shorter than asked for', async () => {
      const url = await gateway((_request, response) => {
        response.statusCode = 206
        response.end(expected.subarray(1))
      })
      await assert.rejects(readerOf(url).getShardRange(await shard(), range), {
        name: 'GatewayError',
      })
    })

    it('are not waited for when somebody stops', async () => {
      const url = await gateway(() => {})
      const stop = new AbortController()
      const reading = readerOf(url).getShardRange(await shard(), range, {
        signal: stop.signal,
      })
      setTimeout(() => stop.abort(new Error('enough')), 20)
      await assert.rejects(reading, /enough/)
    })
  })
})
