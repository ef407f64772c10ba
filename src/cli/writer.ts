import type { SpaceWriter } from '../backup/index.ts'
import { BACKUP_ABILITIES } from '../capabilities/index.ts'
import { createNativeSha256 } from '../node/index.ts'
import { connectUploadService, createSpaceWriter } from '../storacha/index.ts'
import { proofsFor } from './authority.ts'
import type { Session } from './session.ts'

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
