import type { Delegation, Signer } from '@ucanto/interface'
import type { Logger } from 'pino'
import { orAbort } from '../atproto/or-abort.ts'
import type { Clock, SpaceReader, SpaceWriter } from '../backup/index.ts'
import { createClock } from '../client/clock.ts'
import type { Connection } from '../client/connection.ts'
import {
  connectUploadService,
  createSpaceReader,
  createSpaceWriter,
} from '../storacha/index.ts'
import type { PipelineContext } from './context.ts'

/** What the service needs to act in Spaces. */
export interface SpacesContext extends Pick<
  PipelineContext,
  'uploadService' | 'gateways' | 'fetch' | 'foreignFetch' | 'createSha256'
> {
  agent: Signer
  /** To our own handlers: there is no way around validation. */
  connection: () => Connection
}

/** Opens a Space for writing, by what was delegated to the service's agent. */
export function openSpace(
  context: SpacesContext,
  {
    space,
    proofs,
    signal,
  }: {
    space: `did:key:${string}`
    proofs: Delegation[]
    signal: AbortSignal
  }
): { writer: SpaceWriter; clock: Clock } {
  const { agent, uploadService, fetch, createSha256 } = context
  const service = connectUploadService(uploadService, { fetch, signal })
  return {
    writer: createSpaceWriter(
      service,
      { issuer: agent, space, proofs },
      { sha256: createSha256 }
    ),
    clock: createClock(
      { issuer: agent, with: space, proofs },
      { connection: context.connection() }
    ),
  }
}

/** Reads Spaces, all that there are. */
export function openReader({
  gateways,
  foreignFetch: fetch,
  createSha256,
  logger,
}: Pick<SpacesContext, 'gateways' | 'foreignFetch' | 'createSha256'> & {
  logger: Logger
}): SpaceReader {
  return createSpaceReader({
    gateways,
    fetch,
    createSha256,
    onPause: ({ gateway, wait }) =>
      logger.info({ gateway, wait }, 'a gateway wants fewer requests'),
  })
}

/** The same reader; what it is asked for ends with the signal. */
export function abortable(
  reader: SpaceReader,
  signal: AbortSignal
): SpaceReader {
  return {
    keep: (blocks) => reader.keep(blocks),
    async get(link) {
      signal.throwIfAborted()
      return orAbort(reader.get(link, { signal }), signal)
    },
    async getShardRange(shard, range) {
      signal.throwIfAborted()
      return orAbort(reader.getShardRange(shard, range, { signal }), signal)
    },
  }
}
