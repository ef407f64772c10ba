import assert from 'node:assert/strict'
import { CACHE_POLICY, createCache } from '../../src/atproto/oauth/cache.ts'

const { size, entry } = CACHE_POLICY

const metadata = (length: number) => ({ padding: 'x'.repeat(length) })

describe('what hosts have said', () => {
  it('is kept, and forgotten when that is said', () => {
    const cache = createCache<object>()
    cache.set('https://a.example', { issuer: 'https://a.example' })
    assert.deepEqual(cache.get('https://a.example'), {
      issuer: 'https://a.example',
    })
    cache.del('https://a.example')
    assert.equal(cache.get('https://a.example'), undefined)
    assert.equal(cache.size(), 0)
  })

  it('is not kept when it is too long, nor what was said before', () => {
    const cache = createCache<object>()
    cache.set('https://a.example', metadata(1))
    cache.set('https://a.example', metadata(entry))
    assert.equal(cache.get('https://a.example'), undefined)
    assert.equal(cache.size(), 0)
  })

  it('takes no more room, however many say how much', () => {
    for (const length of [0, 1_000, entry - 1_000]) {
      const cache = createCache<object>()
      for (let count = 0; count < 20_000; count++) {
        cache.set(`https://${count}.example`, metadata(length))
        if (cache.size() > size) break
      }
      assert.ok(cache.size() <= size)
      // The last are the ones that are left.
      assert.ok(cache.get('https://19999.example'))
      assert.equal(cache.get('https://0.example'), undefined)
    }
  })

  it('is a text too', () => {
    const cache = createCache<string>()
    cache.set('https://a.example', 'a nonce')
    assert.equal(cache.get('https://a.example'), 'a nonce')
  })
})
