import { chmod, mkdir, open, readFile, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import type {
  AgentDataExport,
  ClientFactoryOptions,
} from '@storacha/client/types'
import { AgentFileError } from './errors.ts'

const VERSION = 1

/**
 * Keeps the agent of `@storacha/client`, with its private key and what was
 * delegated to it, in a file that only its owner can read. A save replaces the
 * file as a whole: whenever it is interrupted, there is the old file or the new
 * one.
 *
 * @param path - of the file; its folder is made if need be
 */
export function createAgentStore(
  path: string
): NonNullable<ClientFactoryOptions['store']> {
  return {
    async open() {},
    async close() {},

    async load() {
      let text: string
      try {
        text = await readFile(path, 'utf8')
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
        throw new AgentFileError(
          `the agent's file ${path} cannot be read; check who may read it`,
          { cause: error }
        )
      }
      return decode(text, path)
    },

    async save(data) {
      const folder = dirname(path)
      const temporary = `${path}.${crypto.randomUUID()}`
      try {
        await mkdir(folder, { recursive: true, mode: 0o700 })
        await chmod(folder, 0o700)
        await writeDurably(temporary, encode(data))
        await rename(temporary, path)
        await syncFolder(folder)
      } catch (cause) {
        await rm(temporary, { force: true })
        throw new AgentFileError(
          `the agent's file ${path} cannot be written; name another folder with --home`,
          { cause }
        )
      }
    },

    async reset() {
      await rm(path, { force: true })
    },
  }
}

function encode(data: AgentDataExport): string {
  return JSON.stringify({ version: VERSION, agent: data }, (_, value) => {
    if (value instanceof Map) return { $map: [...value.entries()] as unknown[] }
    if (value instanceof ArrayBuffer) return encodeBytes(new Uint8Array(value))
    if (value instanceof Uint8Array) return encodeBytes(value)
    return value as unknown
  })
}

function encodeBytes(bytes: Uint8Array) {
  return { $bytes: Buffer.from(bytes).toString('base64') }
}

function decode(text: string, path: string): AgentDataExport {
  const unusable = () =>
    // The cause may quote the key.
    new AgentFileError(
      `the file ${path} does not hold an agent; name another folder with --home, or move the file away to start with a new agent`
    )
  let file: unknown
  try {
    file = JSON.parse(text, (_, value: unknown) => {
      const { $map, $bytes } = Object(value) as Record<string, unknown>
      if (Array.isArray($map)) return new Map($map as [unknown, unknown][])
      if (typeof $bytes === 'string') {
        return new Uint8Array(Buffer.from($bytes, 'base64'))
      }
      return value
    })
  } catch {
    throw unusable()
  }
  const { version, agent } = Object(file) as {
    version?: unknown
    agent?: AgentDataExport
  }
  if (typeof version === 'number' && version > VERSION) {
    throw new AgentFileError(
      `the file ${path} was written by a newer version of bluesky-backups; use that one`
    )
  }
  if (
    version !== VERSION ||
    !(agent?.delegations instanceof Map) ||
    !(agent.spaces instanceof Map) ||
    typeof agent.principal !== 'object'
  ) {
    throw unusable()
  }
  return agent
}

async function writeDurably(path: string, text: string): Promise<void> {
  const file = await open(path, 'wx', 0o600)
  try {
    await file.writeFile(text)
    await file.sync()
  } finally {
    await file.close()
  }
}

/** A name in a folder is durable when the folder is. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
