import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import {
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { createMemorySpool, createSha256 } from '../../src/backup/index.ts'
import {
  createFileSpool,
  createNativeSha256,
  KeyFileError,
  loadKeyFile,
  PACKAGE,
  systemTime,
} from '../../src/node/index.ts'

describe('Node.js', () => {
  let folder: string

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-node-'))
  })

  afterEach(() => rm(folder, { recursive: true }))

  describe('key file', () => {
    it('is made once, for its owner only, and read again', async () => {
      const path = join(folder, 'deep', 'service.key')
      const made = await loadKeyFile(path)
      assert.equal(made.created, true)
      assert.equal((await stat(path)).mode & 0o777, 0o600)
      const read = await loadKeyFile(path)
      assert.equal(read.created, false)
      assert.equal(read.did(), made.did())
    })

    it('is closed to others if it was open', async () => {
      const path = join(folder, 'service.key')
      await loadKeyFile(path)
      const text = await readFile(path, 'utf8')
      await rm(path)
      await writeFile(path, text, { mode: 0o644 })
      await loadKeyFile(path)
      assert.equal((await stat(path)).mode & 0o777, 0o600)
    })

    it('is never quoted when it is no key', async () => {
      const path = join(folder, 'service.key')
      await writeFile(path, 'MgCsecret-secret')
      await assert.rejects(loadKeyFile(path), (error: Error) => {
        assert.ok(error instanceof KeyFileError)
        assert.ok(
          !JSON.stringify([error.message, error.stack]).includes(
            'secret-secret'
          )
        )
        assert.equal(error.cause, undefined)
        return true
      })
    })

    it('cannot be a folder', async () => {
      await assert.rejects(loadKeyFile(folder), { name: 'KeyFileError' })
    })
  })

  describe('spools', () => {
    const spools = {
      'in memory': () => createMemorySpool(),
      'in a file': () => createFileSpool(folder),
    }
    for (const [where, create] of Object.entries(spools)) {
      it(`gives back what was written, ${where}`, async () => {
        await fc.assert(
          fc.asyncProperty(
            fc.array(fc.uint8Array({ maxLength: 3000 }), { maxLength: 30 }),
            fc.array(fc.tuple(fc.nat(), fc.nat()), { maxLength: 10 }),
            async (parts, reads) => {
              const spool = create()
              for (const part of parts) await spool.write(part)
              const whole = Buffer.concat(parts)
              assert.equal(spool.size, whole.length)
              for (const [a, b] of reads) {
                const offset = whole.length === 0 ? 0 : a % whole.length
                const length =
                  whole.length === 0 ? 0 : b % (whole.length - offset)
                assert.deepEqual(
                  Buffer.from(await spool.read(offset, length)),
                  whole.subarray(offset, offset + length)
                )
              }
              await spool.close()
            }
          ),
          { numRuns: 50 }
        )
      })
    }

    it('move from memory into a file that has no name', async () => {
      const spool = createFileSpool(folder)
      const part = new Uint8Array(1_000_003).map((_, index) => index % 251)
      const parts = 20
      for (let index = 0; index < parts; index++) await spool.write(part)
      assert.equal(spool.size, parts * part.length)
      for (const index of [0, 7, 8, 9, parts - 1]) {
        assert.deepEqual(
          await spool.read(index * part.length, part.length),
          part
        )
      }
      assert.deepEqual(
        await spool.read(part.length - 2, 4),
        Uint8Array.of(...part.subarray(-2), ...part.subarray(0, 2))
      )
      assert.throws(() => spool.read(spool.size - 1, 2), RangeError)
      assert.deepEqual(await readdir(folder), [])
      await spool.close()
      assert.throws(() => spool.read(0, 1), TypeError)
    })
  })

  it('hashes as everybody does', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 500 })), (parts) => {
        const expected = createHash('sha256')
          .update(Buffer.concat(parts))
          .digest('hex')
        for (const create of [createSha256, createNativeSha256]) {
          const hash = create()
          for (const part of parts) hash.update(part)
          assert.equal(Buffer.from(hash.digest()).toString('hex'), expected)
        }
      })
    )
  })

  it('sleeps until it is woken', async () => {
    const before = systemTime.now()
    await systemTime.sleep(5)
    assert.ok(systemTime.now() - before >= 4)
    const stop = new AbortController()
    const sleeping = systemTime.sleep(60_000, stop.signal)
    stop.abort()
    await assert.rejects(sleeping, { name: 'AbortError' })
  })

  it('knows its own package', () => {
    assert.equal(PACKAGE.name, 'bluesky-backups')
    assert.match(PACKAGE.version, /^\d+\.\d+\.\d+/)
  })
})
