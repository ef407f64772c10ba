import {
  DEFAULT_LIMITS,
  type RecordContext,
  type SpaceWriter,
} from '../backup/index.ts'
import { BACKUP_ABILITIES } from '../capabilities/index.ts'
import { createNativeSha256, systemTime } from '../node/index.ts'
import { connectUploadService, createSpaceWriter } from '../storacha/index.ts'
import { proofsFor } from './authority.ts'
import type { Session } from './session.ts'

/** What a change of the state in the Space needs, by the agent's own power. */
export async function openRecord(
  session: Session,
  signal: AbortSignal
): Promise<RecordContext> {
  return {
    writer: openWriter(session, signal),
    reader: session.reader,
    clock: await session.clock(),
    createSha256: createNativeSha256,
    time: systemTime,
    limits: DEFAULT_LIMITS,
    onWarning: (message) => session.warn(message),
  }
}

/** Opens the Space for writing, by the agent's own power. */
export function openWriter(session: Session, signal: AbortSignal): SpaceWriter {
  const { config, client } = session
  const space = session.space()
  const service = connectUploadService(
    {
      url: config.uploadServiceUrl,
      did: config.uploadServiceDid,
      receiptsUrl: config.receiptsUrl,
    },
    { signal }
  )
  return createSpaceWriter(
    service,
    {
      issuer: client.agent.issuer,
      space,
      proofs: proofsFor(client, space, BACKUP_ABILITIES),
    },
    { sha256: createNativeSha256 }
  )
}
