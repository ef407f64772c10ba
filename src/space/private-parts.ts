import { MAX_AUTHORIZATIONS } from './authorization.ts'
import { JSON_CODE } from './codec.ts'
import { DecodeError } from './errors.ts'
import type {
  AbsentPart,
  PlainPart,
  PrivatePart,
  PrivatePartRecord,
  PrivateParts,
  SealedPart,
} from './interface.ts'
import { MAX_DETAIL_LENGTH } from './missing-blob.ts'
import {
  type Check,
  anyOf,
  checkAscending,
  fileLink,
  integer,
  link,
  list,
  oneOf,
  optional,
  partial,
  recipient,
  struct,
  text,
} from './schema.ts'

/** The private parts that there are, in the order in which they are shown. */
export const PRIVATE_PARTS = [
  'preferences',
  'mutes',
  'muted-lists',
  'blocked-lists',
  'bookmarks',
  'notification-preferences',
  'drafts',
  'conversations',
] as const satisfies PrivatePart[]

/** All agents of an account, the one that seals, and the recovery. */
const MAX_RECIPIENTS = MAX_AUTHORIZATIONS + 2

const detail = optional(text(MAX_DETAIL_LENGTH))

const absent = struct<AbsentPart>({
  outcome: oneOf(['not-granted', 'not-offered', 'failed']),
  detail,
})

const sealed = struct<SealedPart>({
  outcome: oneOf(['ok']),
  detail,
  sealed: fileLink,
  size: integer,
  recipients,
})

const plain = struct<PlainPart>({
  outcome: oneOf(['ok']),
  detail,
  plain: anyOf(link(JSON_CODE), fileLink),
  size: integer,
})

/** What came of the private parts of one backup. */
export const privateParts: Check<PrivateParts> = partial(
  PRIVATE_PARTS,
  (value, path): PrivatePartRecord => {
    const { outcome, plain: link } = Object(value) as Record<string, unknown>
    if (outcome !== 'ok') return absent(value, path)
    return link === undefined ? sealed(value, path) : plain(value, path)
  }
)

function recipients(value: unknown, path: string): string[] {
  const checked = list(recipient, MAX_RECIPIENTS)(value, path)
  if (checked.length === 0) {
    throw new DecodeError(`${path} must name somebody`)
  }
  const encoder = new TextEncoder()
  checkAscending(
    checked.map((each) => encoder.encode(each)),
    path
  )
  return checked
}

/** Whether a part is in the Space as an age file. */
export function isSealed(
  part: PrivatePartRecord | undefined
): part is SealedPart {
  return part?.outcome === 'ok' && 'sealed' in part
}

/** Whether a part is in the Space for everybody to read. */
export function isPlain(
  part: PrivatePartRecord | undefined
): part is PlainPart {
  return part?.outcome === 'ok' && 'plain' in part
}
