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
