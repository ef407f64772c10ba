/**
 * What a browser agent does with its key, for `sealing.browser.ts` to call.
 *
 * @packageDocumentation
 */
import { ed25519 } from '@ucanto/principal'
import * as RSA from '@ucanto/principal/rsa'
import {
  deriveIdentity,
  openAuthorization,
  openPart,
  recipientOf,
  sealAuthorization,
  sealPart,
  type Authorization,
  type SealingAgent,
} from '../../src/space/index.ts'

export type Kind = 'rsa' | 'ed25519'

const SUBJECT = {
  space: 'did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH',
  account: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz',
} as const

const DATABASE = 'agent'
const STORE = 'keys'

type Agent = SealingAgent & { toArchive(): unknown }

/** Makes an agent and keeps its key in IndexedDB, as browsers keep it. */
async function create(kind: Kind): Promise<string> {
  const agent: Agent =
    kind === 'rsa'
      ? await RSA.generate({ extractable: false })
      : await ed25519.generate()
  const archive = agent.toArchive()
  await transact('readwrite', (store) => store.put(archive, kind))
  return agent.did()
}

async function load(kind: Kind): Promise<Agent> {
  const archive = await transact('readonly', (store) => store.get(kind))
  return kind === 'rsa'
    ? RSA.from(archive as never)
    : ed25519.from(archive as never)
}

/** Tries to get the private key out of what is stored. */
async function extract(kind: Kind): Promise<string> {
  const { keys } = (await transact('readonly', (store) => store.get(kind))) as {
    keys: Record<string, CryptoKey>
  }
  const [key] = Object.values(keys)
  if (!(key instanceof CryptoKey)) return 'it lies open'
  try {
    await crypto.subtle.exportKey('pkcs8', key)
    return 'it was taken out'
  } catch (error) {
    return (error as Error).name
  }
}

async function seal(kind: Kind, secret: string): Promise<Plain> {
  const agent = await load(kind)
  const { sealed, ...rest } = await sealAuthorization(
    agent,
    { ...SUBJECT, seq: 1, expiration: 1_800_000_000 },
    new TextEncoder().encode(secret)
  )
  return { ...rest, sealed: [...sealed] }
}

async function open(kind: Kind, { sealed, ...rest }: Plain): Promise<string> {
  const authorization: Authorization = {
    ...rest,
    sealed: Uint8Array.from(sealed),
  }
  const payload = await openAuthorization(
    await load(kind),
    SUBJECT,
    authorization
  )
  return new TextDecoder().decode(payload)
}

async function recipient(kind: Kind): Promise<string> {
  return recipientOf(await deriveIdentity(await load(kind), SUBJECT))
}

async function sealFor(recipients: string[], text: string): Promise<number[]> {
  const stream = await sealPart(recipients, new Blob([text]).stream())
  return [...new Uint8Array(await new Response(stream as never).arrayBuffer())]
}

async function openSealed(kind: Kind, sealed: number[]): Promise<string> {
  const identity = await deriveIdentity(await load(kind), SUBJECT)
  const bytes = Uint8Array.from(sealed)
  const opened = await openPart(identity, new Blob([bytes]).stream())
  return new Response(opened as never).text()
}

/** Can be handed over to another process. */
type Plain = Omit<Authorization, 'sealed'> & { sealed: number[] }

async function transact<T>(
  mode: IDBTransactionMode,
  act: (store: IDBObjectStore) => IDBRequest<T>
): Promise<T> {
  const opening = indexedDB.open(DATABASE, 1)
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE)
  const database = await settled(opening)
  try {
    return await settled(
      act(database.transaction(STORE, mode).objectStore(STORE))
    )
  } finally {
    database.close()
  }
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () =>
      reject(new Error('IndexedDB', { cause: request.error }))
  })
}

const exposed = { create, extract, seal, open, recipient, sealFor, openSealed }
export type Exposed = typeof exposed

Object.assign(globalThis, { agent: exposed, ready: true })
