import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { inspect } from 'node:util'
import { openStores } from '../../src/stores/index.ts'

describe('PostgreSQL that is not there', () => {
  const hangingUp = createServer((socket) => socket.destroy())
  let port = 0

  before(async () => {
    await once(hangingUp.listen(0, '127.0.0.1'), 'listening')
    port = (hangingUp.address() as AddressInfo).port
  })
  after(() => hangingUp.close())

  const urls = {
    'nobody listens': () => 'postgres://alice:789s3cret@127.0.0.1:1/db',
    'who listens hangs up': () =>
      `postgres://alice:789s3cret@127.0.0.1:${port}/db`,
    'the password is a parameter': () =>
      'postgres://127.0.0.1:1/db?password=789s3cret',
    'the password has a #': () => 'postgres://alice:789#s3cret@127.0.0.1:1/db',
    'the password has a /': () => 'postgres://alice:789/s3cret@127.0.0.1:1/db',
    'the password has a ?': () => 'postgres://alice:789?s3cret@127.0.0.1:1/db',
    'the password has an @': () => 'postgres://alice:789@s3cret@127.0.0.1:1/db',
    'the password has a %': () => 'postgres://alice:789%s3cret@127.0.0.1:1/db',
    'it is another database': () => 'mysql://alice:789s3cret@127.0.0.1:1/db',
    'it is no URL': () => 'host=127.0.0.1 password=789s3cret',
    'it is empty': () => '',
  }
  for (const [sentence, url] of Object.entries(urls)) {
    it(`is an error without the password when ${sentence}`, async () => {
      const opening = openStores({ databaseUrl: url() })
      await assert.rejects(opening, (error: Error) => {
        assert.equal(error.name, 'StoreUnavailableError')
        assert.match(error.message, /DATABASE_URL/)
        const text = inspect(error, { depth: 9, showHidden: true })
        assert.doesNotMatch(text, /789|s3cret/)
        return true
      })
    })
  }
})
