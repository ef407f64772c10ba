import assert from 'node:assert/strict'
import { readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Keyset } from '@atproto/oauth-client-node'
import { loadClientKeys } from '../../src/node/index.ts'
import { createFolder } from '../service/harness.ts'

const DAY = 24 * 60 * 60_000
const YEAR = 365 * DAY
const now = Date.UTC(2025, 2, 12)

describe('keys of an OAuth client', () => {
  const namesOf = (keys: Keyset) => [...keys].map(({ kid }) => kid)

  it('are made once, for their owner only, and tell nobody what is secret', async () => {
    await using folder = await createFolder()
    const path = join(folder.path, 'deep', 'client-keys.json')
    const made = await loadClientKeys(path, { now })
    assert.equal((await stat(path)).mode & 0o777, 0o600)
    assert.deepEqual(
      namesOf(await loadClientKeys(path, { now: now + 1 })),
      namesOf(made)
    )
    assert.deepEqual(await readdir(join(folder.path, 'deep')), [
      'client-keys.json',
    ])
    const told = JSON.stringify(made.publicJwks)
    const [key, ...others] = (JSON.parse(told) as { keys: object[] }).keys
    assert.deepEqual(others, [])
    assert.deepEqual(
      { ...key, kid: '', x: '', y: '' },
      {
        kty: 'EC',
        crv: 'P-256',
        alg: 'ES256',
        key_ops: ['verify'],
        kid: '',
        x: '',
        y: '',
      }
    )
    const { d } = made.privateJwks.keys[0] as { d: string }
    assert.ok(!told.includes(d))
  })

  it('are followed by new ones, and stay while grants may use them', async () => {
    await using folder = await createFolder()
    const path = join(folder.path, 'client-keys.json')
    const at = async (time: number) =>
      namesOf(await loadClientKeys(path, { now: now + time }))
    const [first] = await at(0)
    assert.deepEqual(await at(YEAR - 1), [first])
    // Hosts are told of the new one before it signs.
    const [still, second, ...others] = await at(YEAR)
    assert.equal(still, first)
    assert.ok(second !== undefined && others.length === 0)
    assert.deepEqual(await at(YEAR + DAY - 1), [first, second])
    assert.deepEqual(await at(YEAR + DAY), [second, first])

    // A grant lasts two years, and the first has signed for one and a day.
    const [, , third] = await at(2 * YEAR)
    assert.ok((await at(3 * YEAR + DAY)).includes(first))
    const later = await at(4 * YEAR + DAY)
    assert.ok(!later.includes(first))
    assert.ok(later.includes(second))
    assert.ok(later.includes(third))
  })

  it('are the same for all who start at once', async () => {
    await using folder = await createFolder()
    const path = join(folder.path, 'client-keys.json')
    const all = await Promise.all(
      Array.from({ length: 8 }, () => loadClientKeys(path, { now }))
    )
    assert.equal(new Set(all.flatMap(namesOf)).size, 1)
  })

  it('are not made anew when the file is no good', async () => {
    await using folder = await createFolder()
    const path = join(folder.path, 'client-keys.json')
    await loadClientKeys(path, { now })
    const text = await readFile(path, 'utf8')
    const { d } = (JSON.parse(text) as { keys: { jwk: { d: string } }[] })
      .keys[0]!.jwk
    for (const broken of [
      '',
      '{}',
      '{"keys":[]}',
      text.slice(0, -9),
      text.replace('"EC"', '"OKP"'),
    ]) {
      await writeFile(path, broken)
      await assert.rejects(loadClientKeys(path, { now }), (error: Error) => {
        assert.equal(error.name, 'KeyFileError')
        assert.match(error.message, /put back/)
        assert.ok(!String(error.stack).includes(d))
        return true
      })
      assert.equal(await readFile(path, 'utf8'), broken)
    }
  })
})
