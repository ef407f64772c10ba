import { Delegation, DID } from '@ucanto/core'
import * as Server from '@ucanto/server'
import { CAR } from '@ucanto/transport'
import { Schema } from '@ucanto/validator'
import { createBackupService } from './backup.ts'
import { createClockService } from './clock.ts'
import type { ServiceContext } from './context.ts'
import { createValidation } from './validation.ts'

/**
 * All handlers as a plain tree: `can` is the path. The branches have no
 * prototype: nothing but a handler can be named.
 */
export function createService(context: ServiceContext) {
  return bare({
    clock: bare(createClockService(context)),
    backup: bare(createBackupService(context)),
  })
}

/** The Ucanto server with the service's handlers. */
export async function createServer(context: ServiceContext) {
  const { id, agent, authorities, logger } = context
  // Logins by email are attested by an upload service: it may do so in our
  // name if it is one of those that are configured.
  const attestations = await Promise.all(
    authorities.map(({ did }) =>
      Delegation.delegate({
        issuer: id,
        audience: DID.parse(did),
        capabilities: [{ can: 'ucan/attest', with: id.did() }],
        expiration: Infinity,
      })
    )
  )
  return Server.create({
    id,
    codec: CAR.inbound,
    service: createService(context),
    audience: Schema.literal(id.did()).or(Schema.literal(agent.did())),
    ...createValidation(context, attestations),
    catch: (error) => {
      logger.error({ err: error }, 'a handler failed')
    },
  })
}

function bare<T extends object>(tree: T): T {
  return Object.assign(Object.create(null) as T, tree)
}
