import type { DID, Link, Result } from '@ucanto/interface'
import { Verifier } from '@ucanto/principal'
import { CAR } from '@ucanto/transport'
import { verifyBlock } from '../space/index.ts'
import { ServiceUnreachableError, type ServiceInfo } from './connection.ts'

/** Size of an answer with a receipt, in bytes, at most. */
const MAX_SIZE = 1024 * 1024

/** What a service gave as a receipt is none, or it is not the service's. */
export class InvalidReceiptError extends Error {
  override readonly name = 'InvalidReceiptError'
}

/**
 * Asks a service for the receipt of a task, and checks who has signed it.
 *
 * @param service.info - as `discover` tells it
 * @returns what the task came to, or nothing as long as it goes on
 * @throws {@link InvalidReceiptError} {@link ServiceUnreachableError}
 */
export async function readReceipt(
  service: { url: URL; info: Pick<ServiceInfo, 'did' | 'agent'> },
  task: Link,
  {
    fetch = globalThis.fetch.bind(globalThis),
    signal,
  }: { fetch?: typeof globalThis.fetch; signal?: AbortSignal } = {}
): Promise<Result | undefined> {
  const url = new URL(`receipt/${task.toString()}`, service.url)
  let body: Uint8Array
  try {
    const response = await fetch(url, signal ? { signal } : {})
    if (response.status === 404) {
      await response.body?.cancel()
      return undefined
    }
    if (!response.ok) throw new Error(`it has status ${response.status}`)
    body = await readAtMost(response, MAX_SIZE)
  } catch (cause) {
    signal?.throwIfAborted()
    if (cause instanceof InvalidReceiptError) throw cause
    throw new ServiceUnreachableError(
      `${url.href} gives no answer; check the URL of the service and that it runs`,
      { cause }
    )
  }
  return verifyReceipt(body, task, service.info)
}

async function verifyReceipt(
  body: Uint8Array,
  task: Link,
  { did, agent }: Pick<ServiceInfo, 'did' | 'agent'>
): Promise<Result> {
  const refuse = (why: string, cause?: unknown) =>
    new InvalidReceiptError(
      `what the service gave as the receipt of ${task.toString()} ${why}; ask it again, or ask another service`,
      { cause }
    )
  let receipt
  try {
    const { roots, blocks } = CAR.codec.decode(body)
    for (const block of [...roots, ...blocks.values()]) {
      await verifyBlock(block)
    }
    const message = await CAR.request.decode({ headers: {}, body } as never)
    receipt = message.get(task)
  } catch (cause) {
    throw refuse('is no receipt of it', cause)
  }
  const verifier = Verifier.parse(agent as DID).withDID(did as DID)
  const { ok } = await receipt.verifySignature(verifier)
  if (!ok) throw refuse('was not signed by the service')
  return receipt.out
}

async function readAtMost(
  response: Response,
  size: number
): Promise<Uint8Array> {
  const chunks: Uint8Array[] = []
  let length = 0
  const body = response.body as AsyncIterable<Uint8Array> | null
  for await (const chunk of body ?? []) {
    length += chunk.length
    if (length > size) {
      throw new InvalidReceiptError(
        `${response.url} gives more than ${size} bytes as a receipt; ask another service`
      )
    }
    chunks.push(chunk)
  }
  const bytes = new Uint8Array(length)
  let offset = 0
  for (const chunk of chunks) {
    bytes.set(chunk, offset)
    offset += chunk.length
  }
  return bytes
}
