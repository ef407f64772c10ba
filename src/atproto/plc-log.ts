/**
 * The audit log of a `did:plc`, verified from its first operation.
 *
 * @see https://web.plc.directory/spec/v0.1/did-plc
 * @packageDocumentation
 */
import { verifySignature } from '@atproto/crypto'
import * as dagCBOR from '@ipld/dag-cbor'
import { base32 } from 'multiformats/bases/base32'
import { base64url } from 'multiformats/bases/base64'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import { z } from 'zod'
import type { DID } from '../backup/interface.ts'

const PLC_ID_LENGTH = 24
const MAX_OPERATIONS = 10_000

const didKey = z.string().startsWith('did:key:').max(512)

const operation = z.discriminatedUnion('type', [
  z.looseObject({
    type: z.literal('plc_operation'),
    rotationKeys: z.array(didKey).max(32),
    verificationMethods: z.record(z.string(), z.string()),
    prev: z.string().nullable(),
    sig: z.string(),
  }),
  z.looseObject({
    type: z.literal('create'),
    signingKey: didKey,
    recoveryKey: didKey,
    prev: z.null(),
    sig: z.string(),
  }),
  z.looseObject({
    type: z.literal('plc_tombstone'),
    prev: z.string(),
    sig: z.string(),
  }),
])

const auditLog = z
  .array(z.looseObject({ operation, nullified: z.boolean() }))
  .max(MAX_OPERATIONS)

/** The log is not one that the owner of the DID has signed. */
export class InvalidPlcLogError extends Error {
  override readonly name = 'InvalidPlcLogError'
}

/**
 * Verifies the log: its first operation hashes to the DID, each other follows
 * from the one before, and each is signed by a key that may.
 *
 * @param did - `did:plc:…`
 * @param text - JSON of the audit log, with nullified operations
 * @returns the signing keys of the account, oldest first, without repetitions
 * @throws {@link InvalidPlcLogError}
 */
export async function signingKeysOf(did: DID, text: string): Promise<DID[]> {
  let log: z.infer<typeof auditLog>
  try {
    log = auditLog.parse(JSON.parse(text))
  } catch (cause) {
    throw new InvalidPlcLogError('the PLC log has not the form of one', {
      cause,
    })
  }
  const keys: DID[] = []
  let previous: string | null = null
  let allowed: string[] | undefined
  for (const entry of log) {
    if (entry.nullified) continue
    const { sig, ...unsigned } = entry.operation
    const signed = dagCBOR.encode(entry.operation)
    const digest = await sha256.digest(signed)
    if (allowed === undefined) {
      const id = base32.baseEncode(digest.digest).slice(0, PLC_ID_LENGTH)
      if (did !== `did:plc:${id}`) {
        throw new InvalidPlcLogError(
          'the first operation is not that of the DID'
        )
      }
    }
    if (entry.operation.prev !== previous) {
      throw new InvalidPlcLogError(
        'an operation does not follow the one before'
      )
    }
    const signers: string[] = allowed ?? rotationKeysOf(entry.operation)
    if (!(await isSigned(dagCBOR.encode(unsigned), sig, signers))) {
      throw new InvalidPlcLogError(
        'an operation is not signed by a rotation key'
      )
    }
    previous = CID.createV1(dagCBOR.code, digest).toString()
    allowed = rotationKeysOf(entry.operation)
    const key = signingKeyOf(entry.operation)
    if (key !== undefined && !keys.includes(key)) keys.push(key)
  }
  return keys
}

type Operation = z.infer<typeof operation>

function rotationKeysOf(operation: Operation): string[] {
  switch (operation.type) {
    case 'plc_operation':
      return operation.rotationKeys
    case 'create':
      return [operation.recoveryKey, operation.signingKey]
    case 'plc_tombstone':
      return []
  }
}

function signingKeyOf(operation: Operation): DID | undefined {
  const key =
    operation.type === 'create'
      ? operation.signingKey
      : operation.type === 'plc_operation'
        ? operation.verificationMethods['atproto']
        : undefined
  return key?.startsWith('did:key:') ? (key as DID) : undefined
}

async function isSigned(
  message: Uint8Array,
  signature: string,
  keys: string[]
): Promise<boolean> {
  for (const key of keys) {
    try {
      const sig = base64url.baseDecode(signature)
      if (await verifySignature(key, message, sig)) return true
    } catch {
      // A key or a signature that cannot be read verifies nothing.
    }
  }
  return false
}
