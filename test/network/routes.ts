import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Agent } from '@storacha/upload-api'
import { unwrap } from '@storacha/client/result'
import type {
  Service,
  UcantoServerTestContext,
} from '@storacha/upload-api/types'
import { CAR as CARCodec, Message } from '@ucanto/core'
import type { IPLDBlock, UCANLink } from '@ucanto/interface'
import { CAR } from '@ucanto/transport'
import * as dagCBOR from '@ipld/dag-cbor'
import type { MultihashDigest } from 'multiformats'
import { base58btc } from 'multiformats/bases/base58'
import * as Digest from 'multiformats/hashes/digest'
import { sha256 } from 'multiformats/hashes/sha2'
import * as Link from 'multiformats/link'
import { BlobMismatchError } from './blob-files.ts'
import type { BlobFiles } from './blob-files.ts'
import type { Gateway } from './gateway.ts'
import { readBody, RequestError, sendBytes, sendContent } from './http.ts'
import type { Indexer } from './indexer.ts'
import type { StorageNode } from './storage-node.ts'

const CAR_TYPE = 'application/vnd.ipld.car'

/** What the HTTP server of the network stands in front of. */
export interface RoutesOptions {
  context: Pick<
    UcantoServerTestContext,
    'agentStore' | 'revocationsStorage' | 'service' | 'url'
  >
  agent: Agent<Service>
  blobs: BlobFiles
  node: StorageNode
  indexer: Indexer
  gateway: Gateway
  /** Called with the link of a mail. */
  confirm: (link: URL) => Promise<void>
  /** Called with the size of each blob uploaded. */
  onBlob: (size: number) => void
}

type Route = (
  request: IncomingMessage,
  response: ServerResponse,
  url: URL
) => Promise<void>

/**
 * Everything the network answers over HTTP, on one port.
 *
 * @throws {RequestError} there is nothing, or the request is not valid
 */
export function createRoutes({
  context,
  agent,
  blobs,
  node,
  indexer,
  gateway,
  confirm,
  onBlob,
}: RoutesOptions): (
  request: IncomingMessage,
  response: ServerResponse
) => Promise<void> {
  const invoke: Route = async (request, response) => {
    const { status, headers, body } = await agent.request({
      headers: request.headers as Record<string, string>,
      body: await readBody(request),
    })
    response.writeHead(status ?? 200, headers)
    response.end(body)
  }

  const getReceipt: Route = async (_request, response, url) => {
    const task = parseLink(lastSegment(url))
    const receipt = await context.agentStore.receipts.get(task)
    if (receipt.error)
      throw new RequestError(404, `${task.toString()} has no receipt yet`)
    const message = await Message.build({ receipts: [receipt.ok] })
    sendBytes(response, CAR_TYPE, CAR.request.encode(message).body)
  }

  const getRevocations: Route = async (_request, response, url) => {
    const delegation = parseLink(lastSegment(url)).toString()
    const scopes = await findRevocations(delegation)
    const blocks = new Map<string, IPLDBlock>()
    const revocations = []
    for (const [scope, { cause }] of scopes) {
      const invocation = unwrap(await context.agentStore.invocations.get(cause))
      // As at the real service, the block of the cause is an archive of it.
      const bytes = unwrap(await invocation.archive())
      blocks.set(cause.toString(), { cid: cause, bytes })
      revocations.push({
        delegation: { '/': delegation },
        scope,
        cause: { '/': cause.toString() },
      })
    }
    if (revocations.length === 0) {
      throw new RequestError(404, 'Delegation not revoked')
    }
    const root = await encodeBlock({ 'revocations@0.0.1': { revocations } })
    sendBytes(response, CAR_TYPE, CARCodec.encode({ roots: [root], blocks }))
  }

  const findRevocations = async (delegation: string) => {
    const found = unwrap(
      await context.revocationsStorage.query({ [delegation]: {} })
    )
    const { [delegation as keyof typeof found]: scopes = {} } = found
    return Object.entries(scopes as Record<string, { cause: UCANLink }>)
  }

  const getClaims: Route = async (_request, response, { searchParams }) => {
    const digests = searchParams.getAll('multihash').map(parseDigest)
    sendBytes(response, CAR_TYPE, await indexer.createAnswer(digests))
  }

  const putBlob: Route = async (request, response, url) => {
    const digest = parseDigest(lastSegment(url))
    const size = node.allocated(digest)
    if (size === undefined) {
      throw new RequestError(403, 'Allocate the blob before uploading it')
    }
    try {
      await blobs.write(digest, size, request)
    } catch (cause) {
      if (!(cause instanceof BlobMismatchError)) throw cause
      throw new RequestError(400, cause.message, { cause })
    }
    onBlob(size)
    response.writeHead(200).end()
  }

  const getBlob: Route = async (request, response, url) => {
    const digest = parseDigest(lastSegment(url))
    const size = await blobs.size(digest)
    if (size === undefined) throw new RequestError(404, 'There is no such blob')
    await sendContent(request, response, {
      mimeType: 'application/octet-stream',
      size,
      read: (offset, length) => blobs.read(digest, offset, length),
    })
  }

  const confirmEmail: Route = async (_request, response, url) => {
    await confirm(url)
    sendBytes(response, 'text/plain', 'Your email address is confirmed.')
  }

  const getDocument: Route = async (_request, response) => {
    sendBytes(
      response,
      'application/json',
      JSON.stringify(createDocument(context.service))
    )
  }

  const options: Route = async (_request, response) => {
    response.writeHead(204).end()
  }

  const routes: Record<string, Route> = {
    'POST /': invoke,
    'GET /receipt': getReceipt,
    'GET /revocations': getRevocations,
    'GET /claims': getClaims,
    'GET /ipfs': (...input) => gateway.serve(...input),
    'HEAD /ipfs': (...input) => gateway.serve(...input),
    'PUT /blob': putBlob,
    'GET /blob': getBlob,
    'HEAD /blob': getBlob,
    'GET /validate-email': confirmEmail,
    'GET /.well-known': getDocument,
  }

  return async (request, response) => {
    const url = new URL(request.url ?? '/', context.url)
    const [, place] = url.pathname.split('/')
    const route =
      request.method === 'OPTIONS'
        ? options
        : routes[`${request.method} /${place}`]
    if (!route) {
      throw new RequestError(
        404,
        `There is no ${request.method} ${url.pathname}`
      )
    }
    await route(request, response, url)
  }
}

async function encodeBlock(value: unknown) {
  const bytes = dagCBOR.encode(value)
  return { cid: Link.create(dagCBOR.code, await sha256.digest(bytes)), bytes }
}

/** @see https://w3c-ccg.github.io/did-method-web/ */
function createDocument(service: UcantoServerTestContext['service']) {
  const did = service.did()
  return {
    '@context': ['https://www.w3.org/ns/did/v1'],
    id: did,
    verificationMethod: [
      {
        id: `${did}#key`,
        type: 'Multikey',
        controller: did,
        publicKeyMultibase: service.toDIDKey().slice('did:key:'.length),
      },
    ],
  }
}

function lastSegment({ pathname }: URL): string {
  return pathname.slice(pathname.lastIndexOf('/') + 1)
}

function parseLink(text: string): UCANLink {
  return parse(text, 'a CID', (text) => Link.parse(text) as UCANLink)
}

function parseDigest(text: string): MultihashDigest {
  return parse(text, 'a multihash in base58btc', (text) =>
    Digest.decode(base58btc.decode(text))
  )
}

function parse<T>(text: string, kind: string, decode: (text: string) => T): T {
  try {
    return decode(text)
  } catch (cause) {
    throw new RequestError(400, `"${text}" is not ${kind}`, { cause })
  }
}
