import { setImmediate } from 'node:timers/promises'
import { verifySignature } from '@atproto/crypto'
import * as dagCbor from '@ipld/dag-cbor'
import { base32 } from 'multiformats/bases/base32'
import { base64url } from 'multiformats/bases/base64'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import { z } from 'zod'
import { printableError } from './printable.ts'

const operationSchema = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('plc_operation'),
    rotationKeys: z.array(z.string()).min(1).max(10),
    verificationMethods: z.record(z.string(), z.string()),
    prev: z.string().nullable(),
    sig: z.string(),
  }),
  z.object({
    type: z.literal('plc_tombstone'),
    prev: z.string(),
    sig: z.string(),
  }),
  z.object({
    type: z.literal('create'),
    signingKey: z.string(),
    recoveryKey: z.string(),
    prev: z.null(),
    sig: z.string(),
  }),
])

type Operation = z.infer<typeof operationSchema>

const logSchema = z.array(
  z.object({ operation: z.unknown(), nullified: z.boolean() })
)

/** The log is not one that the holders of the account's keys have signed. */
export class InvalidPlcLogError extends Error {
  override readonly name = 'InvalidPlcLogError'
}

/**
 * Verifies the audit log of a `did:plc` and reads from it the keys that the
 * account has signed its repository with.
 *
 * What is verified is the chain of the operations that are not nullified: the
 * first hashes to the DID, each names the one before it, and each is signed by
 * a rotation key of the one before it. Whether an operation was nullified by
 * the rules of recovery is left to the directory.
 *
 * @param log - JSON text, as `GET /{did}/log/audit` answers it
 * @returns signing keys as `did:key`, oldest first, the current one last
 * @throws {@link InvalidPlcLogError}
 * @see https://web.plc.directory/spec/v0.1/did-plc
 */
export async function verifyPlcLog(
  did: string,
  log: string
): Promise<string[]> {
  try {
    return await verifyChain(did, log)
  } catch (cause) {
    throw new InvalidPlcLogError(
      `The PLC directory's log of ${did} is not valid. Check that the right directory is configured.`,
      { cause: printableError(cause) }
    )
  }
}

async function verifyChain(did: string, log: string): Promise<string[]> {
  const signingKeys: string[] = []
  let rotationKeys: string[] = []
  let prev: string | null = null
  for (const entry of logSchema.parse(JSON.parse(log))) {
    if (entry.nullified) continue
    const operation = operationSchema.parse(entry.operation)
    if (operation.prev !== prev) {
      throw new Error('An operation does not follow the one before it')
    }
    // Hashed as received, not as parsed: unknown fields are signed too.
    const digest = await sha256.digest(dagCbor.encode(entry.operation))
    if (prev === null) {
      if (did !== `did:plc:${base32.baseEncode(digest.digest).slice(0, 24)}`) {
        throw new Error('The first operation does not hash to the DID')
      }
      rotationKeys = rotationKeysOf(operation)
    }
    await assertSigned(entry.operation as object, rotationKeys)
    prev = CID.createV1(dagCbor.code, digest).toString()
    rotationKeys = rotationKeysOf(operation)
    const signingKey = signingKeyOf(operation)
    if (signingKey !== undefined) signingKeys.push(signingKey)
    // A long log is much arithmetic: others get their turn in between.
    await setImmediate()
  }
  if (prev === null) throw new Error('There is no operation in force')
  return signingKeys
}

async function assertSigned(operation: object, keys: string[]): Promise<void> {
  const { sig, ...unsigned } = operation as { sig: string }
  const bytes = dagCbor.encode(unsigned)
  const signature = base64url.baseDecode(sig)
  for (const key of keys) {
    if (await verifySignature(key, bytes, signature)) return
  }
  throw new Error('An operation is not signed by a key that may sign it')
}

function rotationKeysOf(operation: Operation): string[] {
  if (operation.type === 'plc_tombstone') return []
  if (operation.type === 'plc_operation') return operation.rotationKeys
  return [operation.recoveryKey, operation.signingKey]
}

function signingKeyOf(operation: Operation): string | undefined {
  if (operation.type === 'plc_tombstone') return undefined
  if (operation.type === 'plc_operation') {
    return operation.verificationMethods['atproto']
  }
  return operation.signingKey
}
