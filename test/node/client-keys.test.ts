import assert from 'node:assert/strict'
import {
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises'
import { join } from 'node:path'
import type { Keyset } from '@atproto/oauth-client-node'
import { loadClientKeys, openClientKeys } from '../../src/node/index.ts'
import { createFolder } from '../service/harness.ts'

const MINUTE = 60_000
const DAY = 24 * 60 * MINUTE
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

  describe('in a process that runs for long', () => {
    /** A process whose time is what is said. */
    const open = async (path: string) => {
      let at = 0
      const warnings: [string, Error][] = []
      const keys = await openClientKeys(path, {
        time: { now: () => now + at, sleep: async () => {} },
        onWarning: (message, error) => warnings.push([message, error as Error]),
      })
      return {
        warnings,
        at: async (time: number) => {
          at = time
          return namesOf(await keys.current())
        },
      }
    }

    it('are followed by new ones', async () => {
      await using folder = await createFolder()
      const path = join(folder.path, 'client-keys.json')
      const process = await open(path)
      const [first] = await process.at(0)
      assert.deepEqual(await process.at(YEAR - 1), [first])
      const [still, second, ...others] = await process.at(YEAR + MINUTE)
      assert.equal(still, first)
      assert.ok(second !== undefined && others.length === 0)
      assert.deepEqual(await process.at(YEAR + 2 * DAY), [second, first])
      assert.deepEqual(
        namesOf(await loadClientKeys(path, { now: now + YEAR + 2 * DAY })),
        [second, first]
      )
      assert.deepEqual(process.warnings, [])
    })

    it('are those that another process has made, within a minute', async () => {
      await using folder = await createFolder()
      const path = join(folder.path, 'client-keys.json')
      const process = await open(path)
      const [first] = await process.at(YEAR - MINUTE)
      await loadClientKeys(path, { now: now + YEAR })
      const [, second] = namesOf(
        await loadClientKeys(path, { now: now + YEAR })
      )
      assert.deepEqual(await process.at(YEAR - 1), [first])
      const all = await Promise.all([process.at(YEAR), process.at(YEAR)])
      assert.deepEqual(all, [
        [first, second],
        [first, second],
      ])
    })

    it('stay what they were while the file is no good, and none is made', async () => {
      await using folder = await createFolder()
      const path = join(folder.path, 'client-keys.json')
      const away = join(folder.path, 'away.json')
      const process = await open(path)
      const before = await process.at(0)
      await rename(path, away)
      let time = 0
      const stays = async (why: RegExp) => {
        process.warnings.length = 0
        time += MINUTE
        assert.deepEqual(await process.at(time), before)
        const [[message, error] = [], ...others] = process.warnings
        assert.match(message ?? '', /the last ones stay/)
        assert.equal(error?.name, 'KeyFileError')
        assert.match(error.message, why)
        assert.deepEqual(others, [])
      }
      await stays(/is gone; put it back/)
      // Also when there is to be a new one.
      time = 2 * YEAR
      await stays(/is gone; put it back/)
      assert.deepEqual(await readdir(folder.path), ['away.json'])
      await mkdir(path)
      await stays(/cannot be read/)
      await rm(path, { recursive: true })
      await writeFile(path, '{}')
      await stays(/does not hold keys/)
      assert.equal(await readFile(path, 'utf8'), '{}')

      process.warnings.length = 0
      await rename(away, path)
      const [first, second] = await process.at(time + MINUTE)
      assert.deepEqual([first], before)
      assert.ok(second !== undefined)
      assert.deepEqual(process.warnings, [])
    })
  })
})
