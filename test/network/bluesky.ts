import { Secp256k1Keypair } from '@atproto/crypto'
import { Client, didForCreateOp, signOperation } from '@did-plc/lib'
import { openLoopbackServer } from './loopback-server.ts'

/** How a method is answered. */
export interface Answer {
  status?: number
  type?: string
  /** Objects are sent as JSON. */
  body: unknown
}

/**
 * Stands for the AppView and the chat service, behind which there is nothing
 * that could be run here. It is asked by the real PDS on behalf of an account.
 */
export interface Bluesky extends AsyncDisposable {
  url: string
  /** NSID of a method → its answer; others are not implemented. */
  answers: Record<string, Answer | ((query: URLSearchParams) => Answer)>
  /** Methods that were asked for, and by which account. */
  requests: { method: string; account: string }[]
  /**
   * Makes an identity for the chat service, which hosts find its address by.
   *
   * @returns `did:plc:…#bsky_chat`
   */
  registerChat(plcUrl: string): Promise<string>
}

export async function startBluesky(): Promise<Bluesky> {
  const server = await openLoopbackServer()
  const bluesky: Bluesky = {
    url: server.url,
    answers: {},
    requests: [],
    async registerChat(plcUrl) {
      const key = await Secp256k1Keypair.create()
      const operation = await signOperation(
        {
          type: 'plc_operation',
          rotationKeys: [key.did()],
          verificationMethods: { atproto: key.did() },
          alsoKnownAs: [],
          services: {
            bsky_chat: { type: 'BskyChatService', endpoint: server.url },
          },
          prev: null,
        },
        key
      )
      const did = await didForCreateOp(operation)
      await new Client(plcUrl).sendOperation(did, operation)
      return `${did}#bsky_chat`
    },
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  }
  server.serve((request, response) => {
    const url = new URL(request.url ?? '/', server.url)
    const method = url.pathname.replace('/xrpc/', '')
    bluesky.requests.push({
      method,
      account: issuerOf(request.headers.authorization ?? ''),
    })
    const given = bluesky.answers[method] ?? {
      status: 501,
      body: { error: 'MethodNotImplemented', message: 'no such method' },
    }
    const {
      status = 200,
      type = 'application/json',
      body,
    } = typeof given === 'function' ? given(url.searchParams) : given
    response.writeHead(status, { 'content-type': type })
    response.end(
      typeof body === 'string' || body instanceof Uint8Array
        ? body
        : JSON.stringify(body)
    )
  })
  return bluesky
}

/** For whom a host asks, as the token that it signed says. */
function issuerOf(authorization: string): string {
  const [, payload] = authorization.replace('Bearer ', '').split('.')
  if (!payload) return ''
  const { iss } = JSON.parse(Buffer.from(payload, 'base64url').toString()) as {
    iss: string
  }
  return iss
}
