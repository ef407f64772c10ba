import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { buffer } from 'node:stream/consumers'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { CarWriter } from '@ipld/car'
import * as dagCBOR from '@ipld/dag-cbor'
import * as dagPB from '@ipld/dag-pb'
import type { BlockDecoder, MultihashDigest } from 'multiformats'
import { createUnsafe } from 'multiformats/block'
import { CID } from 'multiformats/cid'
import type { BlobFiles } from './blob-files.ts'
import { RequestError, sendContent } from './http.ts'
import type { Indexer } from './indexer.ts'

/** Codecs whose blocks may link to other blocks. */
const CODECS = new Map<number, BlockDecoder<number, unknown>>([
  [dagCBOR.code, dagCBOR],
  [dagPB.code, dagPB],
])

export interface GatewayOptions {
  blobs: BlobFiles
  indexer: Indexer
  /** Whether the bytes sent are wrong, asked at each request. */
  lies: () => boolean
}

/** Bytes in a blob. */
interface Extent {
  blob: MultihashDigest
  offset: number
  length: number
}

/**
 * A trustless gateway: gives the block or the DAG of a CID, and also each
 * stored blob as one block, whichever codec its CID has.
 *
 * @see https://specs.ipfs.tech/http-gateways/trustless-gateway/
 */
export class Gateway {
  readonly #blobs: BlobFiles
  readonly #indexer: Indexer
  readonly #lies: () => boolean

  constructor({ blobs, indexer, lies }: GatewayOptions) {
    this.#blobs = blobs
    this.#indexer = indexer
    this.#lies = lies
  }

  /**
   * Answers a request for `/ipfs/:cid`.
   *
   * @throws {RequestError} the request is not valid, or there is no such block
   */
  async serve(
    request: IncomingMessage,
    response: ServerResponse,
    { pathname, searchParams }: URL
  ): Promise<void> {
    const cid = parseCID(pathname.slice('/ipfs/'.length))
    const format =
      searchParams.get('format') ??
      /application\/vnd\.ipld\.(raw|car)/.exec(
        request.headers.accept ?? ''
      )?.[1]
    switch (format) {
      case 'raw':
        return this.#sendBlock(request, response, cid)
      case 'car':
        return this.#sendDAG(request, response, cid)
      default:
        throw new RequestError(400, 'Ask for ?format=raw or ?format=car')
    }
  }

  async #sendBlock(
    request: IncomingMessage,
    response: ServerResponse,
    cid: CID
  ): Promise<void> {
    const extent = await this.#locate(cid)
    await sendContent(request, response, {
      mimeType: 'application/vnd.ipld.raw',
      size: extent.length,
      read: (offset, length) =>
        this.#read({ ...extent, offset: extent.offset + offset, length }),
    })
  }

  async #sendDAG(
    request: IncomingMessage,
    response: ServerResponse,
    cid: CID
  ): Promise<void> {
    await this.#locate(cid)
    response.writeHead(200, {
      'content-type': 'application/vnd.ipld.car; version=1; order=dfs; dups=n',
    })
    if (request.method === 'HEAD') {
      response.end()
      return
    }
    const { writer, out } = CarWriter.create([cid])
    const write = async () => {
      for await (const block of this.#walk(cid)) await writer.put(block)
      await writer.close()
    }
    // A block that is missing ends the connection before the CAR is complete.
    const aborted = new AbortController()
    await Promise.all([
      write().catch((error: unknown) => {
        aborted.abort(error)
        throw error
      }),
      pipeline(Readable.from(out), response, { signal: aborted.signal }),
    ])
  }

  /** The blocks of a DAG, each once, parents first. */
  async *#walk(root: CID): AsyncGenerator<{ cid: CID; bytes: Uint8Array }> {
    const seen = new Set<string>()
    const pending = [root]
    for (let cid = pending.pop(); cid; cid = pending.pop()) {
      if (seen.has(cid.toString())) continue
      seen.add(cid.toString())
      const { blob, offset, length } = await this.#locate(cid)
      const bytes = await buffer(this.#blobs.read(blob, offset, length))
      const codec = CODECS.get(cid.code)
      if (codec) {
        const links = createUnsafe({ bytes, cid, codec }).links()
        pending.push(...[...links].map(([, child]) => child).reverse())
      }
      yield { cid, bytes: this.#lies() ? corrupt(bytes) : bytes }
    }
  }

  async #locate(cid: CID): Promise<Extent> {
    const size = await this.#blobs.size(cid.multihash)
    if (size !== undefined) {
      return { blob: cid.multihash, offset: 0, length: size }
    }
    const slice = this.#indexer.find(cid.multihash)
    if (!slice)
      throw new RequestError(404, `Nobody has added ${cid.toString()}`)
    return { blob: slice.shard, offset: slice.offset, length: slice.length }
  }

  #read({ blob, offset, length }: Extent): Readable {
    const bytes = this.#blobs.read(blob, offset, length)
    return this.#lies() ? bytes.map(corrupt) : bytes
  }
}

function corrupt(bytes: Uint8Array): Uint8Array {
  return bytes.map((byte) => byte ^ 0xff)
}

function parseCID(text: string): CID {
  try {
    return CID.parse(text)
  } catch (cause) {
    throw new RequestError(400, `${text} is not a CID`, { cause })
  }
}
