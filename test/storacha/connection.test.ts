import assert from 'node:assert/strict'
import {
  connectUploadService,
  type RetryPolicy,
} from '../../src/storacha/index.ts'

const POLICY: RetryPolicy = {
  retries: 2,
  minDelay: 1,
  timeout: 200,
  receiptTimeout: 500,
}

describe('connection to an upload service', () => {
  function connectTo(
    fetch: typeof globalThis.fetch,
    options: { policy?: Partial<RetryPolicy>; signal?: AbortSignal } = {}
  ) {
    return connectUploadService(
      {
        url: new URL('http://127.0.0.1:9/'),
        did: 'did:web:up.test',
        receiptsUrl: new URL('http://127.0.0.1:9/receipt/'),
      },
      {
        fetch,
        policy: { ...POLICY, ...options.policy },
        ...(options.signal ? { signal: options.signal } : {}),
      }
    )
  }

  it('repeats requests that fail for a while, and counts them', async () => {
    let calls = 0
    const service = connectTo(async () => {
      calls++
      if (calls === 1) throw new TypeError('fetch failed')
      if (calls === 2) return new Response('', { status: 503 })
      return new Response('fine')
    })
    assert.equal(
      await (await service.fetch('http://127.0.0.1:9/x')).text(),
      'fine'
    )
    assert.equal(service.requests, 3)
  })

  it('gives up after some repetitions', async () => {
    const service = connectTo(async () => new Response('', { status: 502 }))
    await assert.rejects(service.fetch('http://127.0.0.1:9/x?token=secret'), {
      name: 'TransientResponseError',
      message: 'http://127.0.0.1:9 answered with status 502',
    })
    assert.equal(service.requests, 3)
  })

  it('waits as long as it is asked to', async () => {
    let calls = 0
    const service = connectTo(
      async () =>
        ++calls === 1
          ? new Response('', { status: 429, headers: { 'retry-after': '1' } })
          : new Response('fine'),
      { policy: { timeout: 2_000 } }
    )
    const began = performance.now()
    const response = await service.fetch('http://127.0.0.1:9/x')
    assert.equal(await response.text(), 'fine')
    assert.ok(performance.now() - began >= 990)
  })

  it('does not wait longer than a try may take', async () => {
    const service = connectTo(
      async () =>
        new Response('', { status: 503, headers: { 'retry-after': '60' } })
    )
    await assert.rejects(service.fetch('http://127.0.0.1:9/x'), {
      name: 'TransientResponseError',
      retryAfter: 60,
    })
    assert.equal(service.requests, 1)
  })

  it('does not repeat what was refused', async () => {
    const service = connectTo(async () => new Response('', { status: 403 }))
    assert.equal((await service.fetch('http://127.0.0.1:9/x')).status, 403)
    assert.equal(service.requests, 1)
  })

  it('does not wait for ever', async () => {
    const service = connectTo(
      (_input, init) =>
        new Promise((_resolve, reject) => {
          init?.signal?.addEventListener('abort', () =>
            reject(init.signal?.reason as Error)
          )
        }),
      { policy: { retries: 1, timeout: 20 } }
    )
    await assert.rejects(service.fetch('http://127.0.0.1:9/x'))
    assert.equal(service.requests, 2)
  })

  it('stops when it is told', async () => {
    const stop = new AbortController()
    const service = connectTo(
      async () => {
        stop.abort(new Error('enough'))
        throw new TypeError('fetch failed')
      },
      { signal: stop.signal }
    )
    await assert.rejects(service.fetch('http://127.0.0.1:9/x'))
    assert.equal(service.requests, 1)
  })

  it('stops when one request is told to', async () => {
    const stop = new AbortController()
    const service = connectTo(async () => {
      stop.abort(new Error('enough'))
      throw new TypeError('fetch failed')
    })
    await assert.rejects(
      service.fetch('http://127.0.0.1:9/x', { signal: stop.signal })
    )
    assert.equal(service.requests, 1)
  })

  it('waits for a receipt that is not there yet', async () => {
    let calls = 0
    const service = connectTo(async () =>
      ++calls < 3 ? new Response('', { status: 404 }) : new Response('receipt')
    )
    const response = await service.fetch('http://127.0.0.1:9/receipt/bafy')
    assert.equal(await response.text(), 'receipt')
  })

  it('does not wait for other things that are not there', async () => {
    const service = connectTo(async () => new Response('', { status: 404 }))
    assert.equal((await service.fetch('http://127.0.0.1:9/x')).status, 404)
    assert.equal(service.requests, 1)
  })

  it('does not wait for a receipt for ever', async () => {
    const service = connectTo(async () => new Response('', { status: 404 }))
    const response = await service.fetch('http://127.0.0.1:9/receipt/bafy')
    assert.equal(response.status, 404)
  })
})
