import { mkdir, rename, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'

/** Writes a file of the agent's, for its owner only, whole or not at all. */
export async function writeWhole(
  path: string,
  content: Uint8Array | string
): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  const temporary = `${path}.${crypto.randomUUID()}`
  await writeFile(temporary, content, { mode: 0o600, flush: true })
  await rename(temporary, path)
}
