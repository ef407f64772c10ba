import { mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { JoseKey, Keyset, type Jwk } from '@atproto/oauth-client-node'
import { z } from 'zod'
import type { Time } from '../backup/interface.ts'
import { KeyFileError } from './key-file.ts'

const DAY = 24 * 60 * 60 * 1000

/** Milliseconds after which there is a new key that signs. */
const ROTATION = 365 * DAY

/**
 * Milliseconds that a key is kept after there was a newer one. A grant names
 * the key that it began with and lasts two years: none needs it any longer.
 */
const KEPT = 3 * 365 * DAY

/**
 * Milliseconds from which on a new key signs. Until then hosts may know only
 * what they were told before, and other processes may tell them only that.
 */
const ANNOUNCED = DAY

/**
 * Milliseconds after which a process that runs reads the file again: another
 * may have made a key meanwhile. Much less than it takes until that one signs.
 */
const REREAD = 60_000

/** A lock that is so old was left behind, in milliseconds. */
const STALE_LOCK = 60_000

const fileSchema = z.object({
  keys: z
    .array(
      z.object({
        /** Unix milliseconds. */
        created: z.number(),
        jwk: z.looseObject({ kid: z.string().min(1), d: z.string().min(1) }),
      })
    )
    .min(1),
})

type KeyFile = z.infer<typeof fileSchema>

/** The keys of an OAuth client in a process that runs for long. */
export interface ClientKeys {
  /** @returns keys as {@link loadClientKeys} does, at most a minute old */
  current(): Promise<Keyset>
}

/**
 * Opens the keys of an OAuth client that other processes have, too: what they
 * add to the file is noticed, and a key that is a year old is followed by a new
 * one also while the process runs. When the file cannot be read then, or is
 * gone, the keys stay what they were: a new one in their place would end all
 * grants.
 *
 * @param onWarning - told of a file that could not be read again
 * @throws {@link KeyFileError}
 */
export async function openClientKeys(
  path: string,
  {
    time,
    onWarning,
  }: { time: Time; onWarning: (message: string, error: unknown) => void }
): Promise<ClientKeys> {
  let keys = await loadClientKeys(path, { now: time.now() })
  let last = time.now()
  let reading: Promise<void> | undefined

  const readAgain = async () => {
    try {
      keys = await loadClientKeys(path, { now: time.now(), create: false })
    } catch (error) {
      onWarning(
        'the client keys cannot be read again; the last ones stay',
        error
      )
    }
  }

  return {
    async current() {
      const now = time.now()
      if (!reading && now - last >= REREAD) {
        last = now
        reading = readAgain().finally(() => (reading = undefined))
      }
      await reading
      return keys
    },
  }
}

/**
 * Reads the keys by which the service proves to hosts of accounts who it is,
 * and makes a first one if there is no such file. A key that is a year old is
 * followed by a new one, which hosts are told of a day before it signs; old ones
 * stay for as long as a grant may use them.
 *
 * @param path - readable for its owner only
 * @param options.now - Unix milliseconds
 * @param options.create - whether to make the file if there is none
 * @returns keys for ES256, the one that signs first
 * @throws {@link KeyFileError}
 */
export async function loadClientKeys(
  path: string,
  { now, create = true }: { now: number; create?: boolean }
): Promise<Keyset> {
  if (create) await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  const readIfThere = async () => {
    const found = await read(path)
    if (!found && !create) throw missing(path)
    return found
  }
  let file = await readIfThere()
  const newest = Math.max(...(file?.keys ?? []).map(({ created }) => created))
  if (!file || now - newest >= ROTATION) {
    file = await locked(path, async () => {
      const present = (await readIfThere()) ?? { keys: [] }
      const [latest] = present.keys
      // Somebody else may have made one meanwhile.
      if (latest && now - latest.created < ROTATION) return present
      return write(path, [await createKey(now), ...present.keys], now)
    })
  }
  const isNew = ({ created }: KeyFile['keys'][number]) =>
    now - created < ANNOUNCED
  const keys = [
    ...file.keys.filter((key) => !isNew(key)),
    ...file.keys.filter(isNew),
  ]
  try {
    return new Keyset(
      await Promise.all(keys.map(({ jwk }) => JoseKey.fromJWK(jwk as Jwk)))
    )
  } catch {
    // The cause may quote a key.
    throw unusable(path)
  }
}

async function createKey(now: number): Promise<KeyFile['keys'][number]> {
  const key = await JoseKey.generate(['ES256'], crypto.randomUUID())
  // Of what it could do by its kind, it does this.
  const jwk = { ...key.privateJwk, alg: 'ES256', key_ops: ['sign'] }
  return { created: now, jwk: jwk as never }
}

async function read(path: string): Promise<KeyFile | undefined> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new KeyFileError(`the key file ${path} cannot be read`, { cause })
  }
  try {
    return fileSchema.parse(JSON.parse(text))
  } catch {
    throw unusable(path)
  }
}

/** Replaces the file as a whole: a crash leaves it as it was. */
async function write(
  path: string,
  keys: KeyFile['keys'],
  now: number
): Promise<KeyFile> {
  const kept = keys.filter((_key, at) => {
    const next = keys[at - 1]
    return !next || now - next.created < KEPT
  })
  const file = { keys: kept }
  const temporary = `${path}.new`
  try {
    await rm(temporary, { force: true })
    const handle = await open(temporary, 'wx', 0o600)
    try {
      await handle.writeFile(`${JSON.stringify(file, null, 2)}\n`)
      await handle.sync()
    } finally {
      await handle.close()
    }
    await rename(temporary, path)
  } catch (cause) {
    throw new KeyFileError(`the key file ${path} cannot be written`, { cause })
  }
  return file
}

/** One process at a time: another's key must not be lost. */
async function locked<T>(path: string, work: () => Promise<T>): Promise<T> {
  const lock = `${path}.lock`
  for (;;) {
    try {
      await (await open(lock, 'wx', 0o600)).close()
      break
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') {
        throw new KeyFileError(`the file ${lock} cannot be made`, { cause })
      }
    }
    const { mtimeMs } = await stat(lock).catch(() => ({ mtimeMs: 0 }))
    if (Date.now() - mtimeMs > STALE_LOCK) await rm(lock, { force: true })
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  try {
    return await work()
  } finally {
    await rm(lock, { force: true })
  }
}

function missing(path: string): KeyFileError {
  return new KeyFileError(
    `the key file ${path} is gone; put it back, or all accounts have to be authorized again`
  )
}

function unusable(path: string): KeyFileError {
  return new KeyFileError(
    `the file ${path} does not hold keys of an OAuth client; put back the one it was, or remove it, and have all accounts authorized again`
  )
}
