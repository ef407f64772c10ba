import { chmod, mkdir, open, readFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { ed25519 } from '@ucanto/principal'

/**
 * Reads the private key in a file, and makes both if there is no such file.
 *
 * @param path - of a file with a key as `ed25519.format` writes it; readable
 *   for its owner only
 * @throws {@link KeyFileError}
 */
export async function loadKeyFile(
  path: string
): Promise<ed25519.EdSigner & { created: boolean }> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  const signer = await ed25519.generate()
  try {
    const file = await open(path, 'wx', 0o600)
    try {
      await file.writeFile(`${ed25519.format(signer)}\n`)
      await file.sync()
    } finally {
      await file.close()
    }
    return Object.assign(signer, { created: true })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
      throw new KeyFileError(`the key file ${path} cannot be made`, {
        cause: error,
      })
    }
  }
  let text: string
  try {
    text = await readFile(path, 'utf8')
    await chmod(path, 0o600)
  } catch (cause) {
    throw new KeyFileError(`the key file ${path} cannot be read`, { cause })
  }
  try {
    return Object.assign(ed25519.parse(text.trim()), { created: false })
  } catch {
    // The cause may quote the key.
    throw new KeyFileError(
      `the file ${path} does not hold an Ed25519 key; name another file, or remove it to have a new key made`
    )
  }
}

/** A key file cannot be used. */
export class KeyFileError extends Error {
  override readonly name = 'KeyFileError'
}
