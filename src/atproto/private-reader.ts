import type { CID } from 'multiformats/cid'
import { z } from 'zod'
import { bytesEqual } from '../backup/bytes.ts'
import { readRepoCar } from '../backup/car.ts'
import { decodeCommit } from '../backup/commit.ts'
import {
  HostError,
  PartNotGrantedError,
  PartNotOfferedError,
} from '../backup/errors.ts'
import type {
  AccountReader,
  AccountSession,
  Identity,
  PrivateContent,
  PrivatePart,
  PrivateReader,
} from '../backup/interface.ts'
import { createAccountReader } from './account-reader.ts'
import type { HostGate } from './host-gate.ts'
import type { Fetch } from './safe-fetch.ts'
import { XrpcError, query } from './xrpc.ts'

/** Who answers for the host, as `DID#service`. */
export interface PrivateServices {
  appView: string
  chat: string
}

const BLUESKY_SERVICES: PrivateServices = {
  appView: 'did:web:api.bsky.app#bsky_appview',
  chat: 'did:web:api.bsky.chat#bsky_chat',
}

/** What is taken of one part. Sizes in bytes, times in milliseconds. */
export interface PrivateLimits {
  /** One answer that is read whole. */
  maxAnswerSize: number
  /** Pages of a list. */
  maxPages: number
  /** What comes of all pages of a list. */
  maxListSize: number
  /** All conversations. */
  maxExportSize: number
  /** One line of the conversations. */
  maxLineSize: number
  /** All answers of one part. */
  timeout: number
  /** All conversations. */
  exportTimeout: number
}

const DEFAULT_LIMITS: PrivateLimits = {
  maxAnswerSize: 4 * 1024 * 1024,
  maxPages: 10_000,
  maxListSize: 256 * 1024 * 1024,
  maxExportSize: 4 * 1024 * 1024 * 1024,
  maxLineSize: 4 * 1024 * 1024,
  timeout: 10 * 60_000,
  exportTimeout: 60 * 60_000,
}

/** What is read whole of an account: bytes, and milliseconds. */
const SMALL_ANSWER = { maxSize: 4 * 1024 * 1024, timeout: 60_000 }

const MAX_BLOCKS_BEFORE_COMMIT = 1000

const PAGE_SIZE = '100'

const NEWLINE = 0x0a

const JSON_TYPE = /^application\/json\s*(;|$)/i
const LINES_TYPE = /^application\/jsonl\s*(;|$)/i

const NOT_GRANTED = [
  'ScopeMissingError',
  'InvalidToken',
  'ExpiredToken',
  'AuthMissing',
  'AuthenticationRequired',
]
const NOT_OFFERED = ['MethodNotImplemented', 'XRPCNotSupported']

const BIRTH_DATE = 'app.bsky.actor.defs#personalDetailsPref'
const WITHOUT_BIRTH_DATE =
  'the birth date (personalDetailsPref) is not in it: hosts do not give it to apps'

const text = z.string().max(4096)
const profile = z.object({ did: text, handle: text.optional() })
const list = z.object({
  uri: text,
  cid: text,
  name: text,
  purpose: text,
  description: z.string().optional(),
  creator: profile,
})

/**
 * Lists: where they stand in the answer, and what of each item is the owner's.
 * What others say of themselves or how often they are liked changes all the
 * time, and would make each backup a new one.
 */
const LISTS: Partial<
  Record<PrivatePart, { method: string; field: string; item: z.ZodType }>
> = {
  mutes: {
    method: 'app.bsky.graph.getMutes',
    field: 'mutes',
    item: profile,
  },
  'muted-lists': {
    method: 'app.bsky.graph.getListMutes',
    field: 'lists',
    item: list,
  },
  'blocked-lists': {
    method: 'app.bsky.graph.getListBlocks',
    field: 'lists',
    item: list,
  },
  bookmarks: {
    method: 'app.bsky.bookmark.getBookmarks',
    field: 'bookmarks',
    item: z.object({
      subject: z.object({ uri: text, cid: text }),
      createdAt: text.optional(),
    }),
  },
  drafts: {
    method: 'app.bsky.draft.getDrafts',
    field: 'drafts',
    item: z.looseObject({ id: text }),
  },
}

/** Settings, which are kept byte for byte. */
const SETTINGS: Partial<Record<PrivatePart, Settings>> = {
  preferences: {
    method: 'app.bsky.actor.getPreferences',
    answer: z.looseObject({
      preferences: z.array(z.looseObject({ $type: text })),
    }),
    withheld: ({ preferences }) =>
      (preferences as { $type: string }[]).some(
        ({ $type }) => $type === BIRTH_DATE
      )
        ? undefined
        : WITHOUT_BIRTH_DATE,
  },
  'notification-preferences': {
    method: 'app.bsky.notification.getPreferences',
    answer: z.looseObject({ preferences: z.looseObject({}) }),
  },
}

interface Settings {
  method: string
  answer: z.ZodType<Record<string, unknown>>
  /** Says what is not in an answer although it should be. */
  withheld?: (answer: Record<string, unknown>) => string | undefined
}

const EXPORT = 'chat.bsky.actor.exportAccountData'

/**
 * Reads private parts with a session of the account's owner.
 *
 * @param options.services - whom the host asks on behalf of the owner
 * @param options.gate - says when a host may be asked; at any time, if left out
 * @see https://docs.bsky.app/docs/category/http-reference
 */
export function createPrivateReader({
  services = BLUESKY_SERVICES,
  gate,
  limits: changes,
}: {
  services?: PrivateServices
  gate?: HostGate
  limits?: Partial<PrivateLimits>
} = {}): PrivateReader {
  const limits = { ...DEFAULT_LIMITS, ...changes }
  return {
    async read(identity, session, part, { signal } = {}) {
      if (!session.parts.includes(part)) {
        throw new PartNotGrantedError(
          `the grant does not allow to read ${part}. Authorize again, with ${part} among what is included.`
        )
      }
      const isExport = part === 'conversations'
      const timeout = AbortSignal.timeout(
        isExport ? limits.exportTimeout : limits.timeout
      )
      const call = new Call(identity, session, {
        service: isExport ? services.chat : services.appView,
        gate,
        signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      })
      const settings = SETTINGS[part]
      if (settings) return readSettings(call, settings, limits)
      const list = LISTS[part]
      if (list) return { chunks: readList(call, list, limits) }
      return { chunks: readExport(call, limits) }
    },
  }
}

interface CallSettings {
  service: string
  gate: HostGate | undefined
  signal: AbortSignal
}

/** Calls of one part. */
class Call {
  readonly #identity: Identity
  readonly #session: AccountSession
  readonly #options: CallSettings

  constructor(
    identity: Identity,
    session: AccountSession,
    options: CallSettings
  ) {
    this.#identity = identity
    this.#session = session
    this.#options = options
  }

  get host(): string {
    return this.#identity.pds.host
  }

  /** The bytes of an answer, which is of the type. */
  async *bytes(
    method: string,
    parameters: Record<string, string | undefined>,
    { type, maxSize }: { type: RegExp; maxSize: number }
  ): AsyncGenerator<Uint8Array> {
    const { service, signal } = this.#options
    try {
      const response = await query(
        this.#fetch,
        this.#identity.pds,
        method,
        parameters,
        { signal, headers: { 'atproto-proxy': service } }
      )
      if (!type.test(response.headers.get('content-type') ?? '')) {
        await response.body.cancel()
        throw this.invalid(method, 'something of another type')
      }
      let size = 0
      for await (const chunk of response.body) {
        size += chunk.length
        if (size > maxSize) {
          throw this.invalid(method, `more than ${maxSize} bytes`)
        }
        yield chunk
      }
    } catch (error) {
      throw toPartError(error, method)
    }
  }

  /**
   * Counts as a request to the host, and as no more: what an answer is worth
   * depends on the service that the host has asked.
   */
  readonly #fetch: Fetch = async (input, init) => {
    const { gate, signal } = this.#options
    const { pds, did } = this.#identity
    const visit = await gate?.enter(
      { host: pds.host, account: did, patient: true },
      { signal }
    )
    try {
      const response = await sessionFetch(this.#session)(input, init)
      await visit?.answered()
      return response
    } catch (error) {
      await visit?.left()
      throw error
    }
  }

  async text(
    method: string,
    parameters: Record<string, string | undefined>,
    { maxAnswerSize }: PrivateLimits
  ): Promise<string> {
    const options = { type: JSON_TYPE, maxSize: maxAnswerSize }
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
    let text = ''
    const chunks = this.bytes(method, parameters, options)
    const decode = (chunk?: Uint8Array) => {
      try {
        return decoder.decode(chunk, { stream: chunk !== undefined })
      } catch {
        throw this.invalid(method, 'something that is not UTF-8')
      }
    }
    for await (const chunk of chunks) text += decode(chunk)
    return text + decode()
  }

  /** What does not have the shape of the protocol; it may be private. */
  invalid(method: string, what: string): HostError {
    return new HostError(
      `${this.host} answered ${method} with ${what}. Try again later.`
    )
  }
}

/**
 * Reads an account with a session of its owner, who may read it also when it is
 * deactivated; and when it is taken down, for as long as its host takes the
 * session at all.
 */
export function createOwnersReader(
  session: AccountSession,
  { gate }: { gate?: HostGate } = {}
): AccountReader {
  const stream = sessionFetch(session)
  const accounts = createAccountReader({
    fetch: { stream, repo: stream, small: capped(stream) },
    ...(gate ? { gate } : {}),
  })
  return {
    ...accounts,
    async latestCommit(identity, options) {
      try {
        return await accounts.latestCommit(identity, options)
      } catch (error) {
        const { cause } = error as Error
        if (!(cause instanceof XrpcError) || cause.status >= 500) throw error
        // Hosts let the owner of what was taken down fetch all of it, and do
        // not tell where it begins.
        return findCommit(identity, await accounts.repo(identity, options))
      }
    },
  }
}

/** The commit in a CAR, near its beginning; not verified. */
async function findCommit(
  identity: Identity,
  chunks: AsyncIterable<Uint8Array>
): Promise<{ cid: CID; rev: string }> {
  const { root, blocks } = await readRepoCar(chunks)
  let count = 0
  for await (const { digest, bytes } of blocks) {
    if (root && bytesEqual(digest, root.multihash.digest)) {
      return { cid: root, rev: decodeCommit(bytes, identity.did).rev }
    }
    if (++count === MAX_BLOCKS_BEFORE_COMMIT) break
  }
  throw new HostError(
    `${identity.pds.host} sent a repository without a commit. Try again later.`
  )
}

/** Answers that are read whole end early rather than fill the memory. */
function capped(fetch: Fetch): Fetch {
  return async (input, init) => {
    const timeout = AbortSignal.timeout(SMALL_ANSWER.timeout)
    const signal = init?.signal
      ? AbortSignal.any([init.signal, timeout])
      : timeout
    const response = await fetch(input, { ...init, signal })
    let size = 0
    const body = response.body?.pipeThrough(
      new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
        transform(chunk, controller) {
          size += chunk.length
          if (size <= SMALL_ANSWER.maxSize) controller.enqueue(chunk)
          else {
            controller.error(
              new HostError(
                `the host of the account answered with more than ${SMALL_ANSWER.maxSize} bytes. Try again later.`
              )
            )
          }
        },
      })
    )
    const { url, status, headers } = response
    const limited = new Response(body ?? null, { status, headers })
    return Object.defineProperty(limited, 'url', { value: url })
  }
}

/** A fetch that goes to the host of the account, wherever the URL points. */
function sessionFetch(session: AccountSession): Fetch {
  return async (input, init) => {
    const url = new URL(input instanceof Request ? input.url : input)
    return session.fetch(`${url.pathname}${url.search}`, init)
  }
}

async function readSettings(
  call: Call,
  { method, answer, withheld }: Settings,
  limits: PrivateLimits
): Promise<PrivateContent> {
  const text = await call.text(method, {}, limits)
  const detail = withheld?.(parse(call, method, text, answer))
  return {
    chunks: only(new TextEncoder().encode(text)),
    ...(detail === undefined ? {} : { detail }),
  }
}

// A generator, so that all parts are read in the same way.
async function* only(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes
}

/** All pages of a list as one JSON text, a page at a time in memory. */
async function* readList(
  call: Call,
  { method, field, item }: { method: string; field: string; item: z.ZodType },
  limits: PrivateLimits
): AsyncGenerator<Uint8Array> {
  const page = z.object({
    [field]: z.array(item),
    cursor: z.string().max(4096).nullish(),
  })
  const encoder = new TextEncoder()
  let cursor: string | undefined
  let size = 0
  let separator = '\n'
  yield encoder.encode(`{"${field}":[`)
  for (let pages = 0; pages < limits.maxPages; pages++) {
    const text = await call.text(method, { limit: PAGE_SIZE, cursor }, limits)
    const answer = parse(call, method, text, page) as Record<
      string,
      unknown
    > & {
      cursor?: string | null
    }
    let lines = ''
    for (const each of answer[field] as unknown[]) {
      lines += `${separator}${JSON.stringify(each)}`
      separator = ',\n'
    }
    const chunk = encoder.encode(lines)
    size += chunk.length
    if (size > limits.maxListSize) break
    if (chunk.length > 0) yield chunk
    if (!answer.cursor) {
      yield encoder.encode('\n]}\n')
      return
    }
    if (answer.cursor === cursor) break
    cursor = answer.cursor
  }
  throw new HostError(
    `${call.host} does not come to the end of ${method}. Tell the people who run it.`
  )
}

/** The lines of an export, each of which is JSON. */
async function* readExport(
  call: Call,
  { maxExportSize, maxLineSize }: PrivateLimits
): AsyncGenerator<Uint8Array> {
  const lines = new Lines((why) => call.invalid(EXPORT, why), maxLineSize)
  const options = { type: LINES_TYPE, maxSize: maxExportSize }
  for await (const chunk of call.bytes(EXPORT, {}, options)) {
    lines.check(chunk)
    yield chunk
  }
  lines.end()
}

/** Checks lines of JSON that come in pieces. */
class Lines {
  readonly #invalid: (what: string) => Error
  readonly #maxSize: number
  #held: Uint8Array[] = []
  #size = 0

  constructor(invalid: (what: string) => Error, maxSize: number) {
    this.#invalid = invalid
    this.#maxSize = maxSize
  }

  check(chunk: Uint8Array): void {
    let start = 0
    for (;;) {
      const end = chunk.indexOf(NEWLINE, start)
      this.#hold(chunk.subarray(start, end < 0 ? undefined : end))
      if (end < 0) return
      this.end()
      start = end + 1
    }
  }

  /** Ends the line that was begun. */
  end(): void {
    const line = new Uint8Array(this.#size)
    let offset = 0
    for (const part of this.#held) {
      line.set(part, offset)
      offset += part.length
    }
    this.#held = []
    this.#size = 0
    try {
      const text = new TextDecoder('utf-8', { fatal: true }).decode(line)
      if (text.trim() !== '') JSON.parse(text)
    } catch {
      // The cause would quote what is private.
      throw this.#invalid('a line that is not JSON')
    }
  }

  #hold(part: Uint8Array): void {
    this.#size += part.length
    if (this.#size > this.#maxSize) {
      throw this.#invalid(`a line of more than ${this.#maxSize} bytes`)
    }
    if (part.length > 0) this.#held.push(part)
  }
}

function parse<T>(
  call: Call,
  method: string,
  text: string,
  schema: z.ZodType<T>
): T {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    // The cause would quote what is private.
    throw call.invalid(method, 'something that is not JSON')
  }
  const result = schema.safeParse(json)
  if (result.success) return result.data
  throw call.invalid(method, 'a shape that the protocol does not have')
}

function toPartError(error: unknown, method: string): unknown {
  if (error instanceof DOMException && error.name === 'TimeoutError') {
    return new HostError(`${method} takes too long. Try again later.`, {
      cause: error,
    })
  }
  if (!(error instanceof XrpcError)) return error
  const { status, error: name, detail } = error
  // What else the host says may be private, and outcomes are for all to read.
  const known = /^[A-Za-z]{1,64}$/.test(name) ? ` ${name}` : ''
  const message = `${method} was answered with ${status}${known}`
  if (status === 401 || status === 403 || NOT_GRANTED.includes(name)) {
    return new PartNotGrantedError(
      `${message}. Authorize again to have it in backups.`,
      { cause: error }
    )
  }
  if (
    status === 404 ||
    status === 501 ||
    NOT_OFFERED.includes(name) ||
    /^no service configured/i.test(detail)
  ) {
    return new PartNotOfferedError(message, { cause: error })
  }
  return new HostError(`${message}. Try again later.`, { cause: error })
}
