import { readFile } from 'node:fs/promises'
import * as Proof from '@storacha/client/proof'
import { Delegation } from '@ucanto/core'
import type { Delegation as DelegationView } from '@ucanto/interface'
import { base64 } from 'multiformats/bases/base64'
import { identity } from 'multiformats/hashes/identity'
import * as Link from 'multiformats/link'
import { UsageError } from './errors.ts'

const CAR_CODE = 0x0202

/**
 * Reads a delegation in one of the forms that tools write: a CAR with the
 * delegation or with its blocks alone, or either as text in base64.
 *
 * @returns nothing if it is none
 */
export async function parseDelegation(
  bytes: Uint8Array
): Promise<DelegationView | undefined> {
  const { ok } = await Delegation.extract(bytes)
  return (
    ok ??
    (await parseText(new TextDecoder().decode(bytes))) ??
    (await parseText(encodeText(bytes)))
  )
}

/**
 * Reads a delegation that somebody named.
 *
 * @param word - a file with it, or itself as text in base64
 * @param option - the option that it was given with
 * @throws {@link UsageError}
 */
export async function readDelegation(
  word: string,
  option: string
): Promise<DelegationView> {
  const bytes = await readFile(word).catch(() => undefined)
  const found = bytes ? await parseDelegation(bytes) : await parseText(word)
  if (found) return found
  throw new UsageError(
    bytes
      ? `${option}: the file ${word} does not hold a delegation, neither as a CAR nor as text`
      : `${option}: "${word.slice(0, 60)}" is neither a file that can be read nor a delegation in base64`
  )
}

/** The text of an archive, as `storacha delegation create --base64` has it. */
export function encodeText(archive: Uint8Array): string {
  return Link.create(CAR_CODE, identity.digest(archive)).toString(base64)
}

/** Both alphabets of base64 are around. */
async function parseText(text: string): Promise<DelegationView | undefined> {
  const encoded = text
    .trim()
    .replaceAll('-', '+')
    .replaceAll('_', '/')
    .replace(/^u/, 'm')
  try {
    const delegation = await Proof.parse(encoded)
    // What is not a delegation shows when it is looked at.
    delegation.audience.did()
    return delegation
  } catch {
    return undefined
  }
}
