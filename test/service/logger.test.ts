import assert from 'node:assert/strict'
import { ed25519 } from '@ucanto/principal'
import { createLogger } from '../../src/service/logger.ts'

describe('logger', () => {
  /** Everything that is written while something is logged. */
  const written = (log: (logger: ReturnType<typeof createLogger>) => void) => {
    let text = ''
    log(createLogger('info', { write: (line) => (text += line) }))
    return text
  }

  it('writes an object a line', () => {
    const text = written((logger) => {
      logger.info({ run: 'bafy' }, 'run done')
      logger.debug('nobody asked')
    })
    const { level, time, ...rest } = JSON.parse(text) as Record<string, unknown>
    assert.equal(level, 30)
    assert.ok(typeof time === 'number')
    assert.deepEqual(rest, { run: 'bafy', msg: 'run done' })
    assert.ok(text.endsWith('}\n'))
  })

  it('writes no value under the name of a secret', () => {
    const names = ['authorization', 'cookie', 'password', 'accessJwt', 'token']
    for (const name of names) {
      for (const value of [
        { [name]: 'hush' },
        { headers: { [name]: 'hush' } },
        { request: { headers: { [name]: 'hush' } } },
      ]) {
        const text = written((logger) => logger.info(value, 'message'))
        assert.doesNotMatch(text, /hush/)
        assert.match(text, /\[secret\]/)
      }
    }
  })

  it('writes no secret that stands in a text', async () => {
    const key = ed25519.format(await ed25519.generate())
    const texts: Record<string, string> = {
      'postgres://alice:hush@localhost/db': 'hush',
      'http://user:hush@host.example/path?x=1': 'hush',
      'authorization: Bearer hush-hush-hush': 'hush',
      'DPoP hush.hush.hush': 'hush',
      'got eyJhbGciOiJFUzI1NiJ9.eyJodXNoIjoxfQ.c2lnbmF0dXJl': 'eyJ',
      [`the key is ${key}.`]: key,
    }
    for (const [message, secret] of Object.entries(texts)) {
      const text = written((logger) => {
        logger.info(message)
        logger.info({ nested: { very: { deep: { text: message } } } })
        logger.error(
          { err: new Error(message, { cause: new Error(message) }) },
          'failed'
        )
      })
      assert.ok(!text.includes(secret), text)
      for (const line of text.trimEnd().split('\n')) JSON.parse(line)
    }
  })

  it('leaves the rest as it is', () => {
    const message =
      'did:key:z6MkvpF1VvmvPV1XAsc2BsSLQFBKqPX3hUJHKXzwTtYx9Sts asked https://host.example/@alice for bafyreihykq7gn3xivqhzb2tsotwjk3qvvv5jgxwxzbhxuajjw33tcgfroq, alice@example.com'
    assert.match(
      written((logger) => logger.info(message)),
      new RegExp(message.replaceAll('.', '\\.'))
    )
  })
})
