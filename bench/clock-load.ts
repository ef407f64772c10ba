import { Agent, request } from 'node:http'
import { buffer } from 'node:stream/consumers'
import { DID, Message } from '@ucanto/core'
import { CAR } from '@ucanto/transport'
import { ed25519 } from '@ucanto/principal'
import type { Receipt } from '@ucanto/interface'
import { Clock } from '../src/capabilities/index.ts'
import { withNativeSigning } from '../src/node/index.ts'
import { eventOf } from '../test/service/harness.ts'

const HOUR = 60 * 60
/** Events that one call brings while a clock is filled: as many as ours takes. */
const EVENTS_PER_CALL = 256

export type Event = Awaited<ReturnType<typeof eventOf>>
export type Space = ed25519.EdSigner

/** A server of clocks, or one that answers whatever it is sent. */
export interface Server {
  name: string
  url: URL
  did: string
  isClock?: boolean
}

/** A signed request, ready to be sent. */
interface Signed {
  headers: Record<string, string>
  body: Uint8Array
}

export async function createSpace(): Promise<Space> {
  return withNativeSigning(await ed25519.generate())
}

/** Events, each of which replaces the one before. */
export async function chainOf(
  name: string,
  count: number,
  parent?: Event
): Promise<Event[]> {
  const chain: Event[] = []
  for (let last = parent; chain.length < count;) {
    last = await eventOf(`${name} ${chain.length}`, last ? [last] : [])
    chain.push(last)
  }
  return chain
}

/** Signs an advance with the key of the Space: one signature to check. */
export function signAdvance(
  { did }: Server,
  space: Space,
  events: Event[]
): Promise<Signed> {
  const event = events.at(-1)
  if (!event) throw new RangeError('no events')
  const invocation = Clock.advance.invoke({
    ...subject(did, space),
    nb: { event: event.cid },
    facts: [Object.fromEntries(events.map(({ cid }) => [cid.toString(), cid]))],
  })
  for (const block of events) invocation.attach(block)
  return encode(invocation)
}

/** Signs a question for the head; each is another task. */
export function signHead({ did }: Server, space: Space): Promise<Signed> {
  return encode(
    Clock.head.invoke({ ...subject(did, space), nonce: crypto.randomUUID() })
  )
}

function subject(did: string, space: Space) {
  return {
    issuer: space,
    audience: DID.parse(did),
    with: space.did(),
    expiration: Math.floor(Date.now() / 1000) + HOUR,
  }
}

async function encode(invocation: unknown): Promise<Signed> {
  const message = await Message.build({ invocations: [invocation] as never })
  const { headers, body } = CAR.request.encode(message as never)
  return { headers: { ...headers }, body }
}

/**
 * Sends requests over one connection for each lane, those of a lane one after
 * another, and checks the answers when all are there.
 *
 * @returns milliseconds from the first request to the last answer, and those of
 *   each request
 */
export async function send(
  { url, name, isClock = true }: Server,
  lanes: Signed[][]
): Promise<{ ms: number; each: number[] }> {
  const agent = new Agent({ keepAlive: true, maxSockets: lanes.length })
  const answers: { status: number; body: Uint8Array }[] = []
  const each: number[] = []
  const started = performance.now()
  await Promise.all(
    lanes.map(async (lane) => {
      for (const signed of lane) {
        const sent = performance.now()
        answers.push(await post(url, agent, signed))
        each.push(performance.now() - sent)
      }
    })
  )
  const ms = performance.now() - started
  agent.destroy()
  for (const { status, body } of answers) {
    if (status !== 200) throw new Error(`${name} answered ${status}`)
    if (!isClock) continue
    const { receipts } = await CAR.response.decode({
      headers: {},
      body,
    } as never)
    for (const { out } of receipts.values() as Iterable<Receipt>) {
      if (out.error) throw new Error(`${name}: ${JSON.stringify(out.error)}`)
    }
  }
  return { ms, each }
}

function post(
  url: URL,
  agent: Agent,
  { headers, body }: Signed
): Promise<{ status: number; body: Uint8Array }> {
  return new Promise((resolve, reject) => {
    const outgoing = request(
      url,
      {
        method: 'POST',
        agent,
        headers: { ...headers, 'content-length': body.byteLength },
      },
      (response) => {
        buffer(response).then(
          (bytes) => resolve({ status: response.statusCode ?? 0, body: bytes }),
          reject
        )
      }
    )
    outgoing.once('error', reject)
    outgoing.end(body)
  })
}

/** Advances a clock to the end of a chain. */
export async function fill(
  server: Server,
  space: Space,
  chain: Event[]
): Promise<void> {
  const lane: Signed[] = []
  for (let at = 0; at < chain.length; at += EVENTS_PER_CALL) {
    lane.push(
      await signAdvance(server, space, chain.slice(at, at + EVENTS_PER_CALL))
    )
  }
  await send(server, [lane])
}
