import { once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import type { ed25519 } from '@ucanto/principal'
import type { Storacha } from '../../network/index.ts'
import type { HostileAccount } from './hosts.ts'

/** Where hostile tenants connect from, so that others are told apart. */
export const ADDRESS = '127.0.0.66'
/** Milliseconds after which an attacker gives up on an answer. */
const PATIENCE = 20_000

/** What hostile tenants are told about the network, as JSON. */
export interface Target {
  url: string
  /** `did:web` of the service. */
  did: string
  /** `did:key` of the service's agent. */
  agent: string
  storacha: Pick<Storacha, 'url' | 'did' | 'receiptsUrl'>
  plcUrl: string
  /** Archives of the keys of Spaces that have a storage provider. */
  provisioned: string[]
  /** Number of Spaces without one: fresh keys. */
  strangers: number
  /** Accounts on an honest host that hostile Spaces back up. */
  accounts: `did:plc:${string}`[]
}

/** A hostile Space, which is its own agent. */
export type Tenant = ed25519.EdSigner

/** What attacks act upon. */
export interface World extends Target {
  tenants: Tenant[]
  freshKeys: Tenant[]
  /** Accounts on hostile hosts. */
  hostileAccounts: HostileAccount[]
}

/** One kind of attack, repeated for as long as the tenants are hostile. */
export interface Attack {
  name: string
  /** Milliseconds between the start of two steps. */
  pace: number
  /**
   * @returns what came of the step, in a word: it is counted
   */
  step(round: number): Promise<string>
}

/**
 * Sends a request from the address of the attackers.
 *
 * @returns the status and the body of the answer
 */
export async function send(
  url: string | URL,
  {
    method = 'POST',
    headers = { 'content-type': 'application/vnd.ipld.car' },
    body,
  }: {
    method?: string
    headers?: Record<string, string>
    body?: Uint8Array
  } = {}
): Promise<{ status: number; body: Uint8Array }> {
  const sent = request(url, {
    method,
    headers: {
      ...headers,
      ...(body ? { 'content-length': `${body.length}` } : {}),
    },
    localAddress: ADDRESS,
    agent: false,
    signal: AbortSignal.timeout(PATIENCE),
  })
  sent.end(body)
  const [response] = (await once(sent, 'response')) as [IncomingMessage]
  const parts: Buffer[] = []
  for await (const part of response) parts.push(part as Buffer)
  return {
    status: response.statusCode ?? 0,
    body: new Uint8Array(Buffer.concat(parts)),
  }
}
