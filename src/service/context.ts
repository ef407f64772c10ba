import type { HostGate } from '../atproto/index.ts'
import type { Signer } from '@ucanto/interface'
import type { Logger } from 'pino'
import type { AccountReader, IdentityResolver, Time } from '../backup/index.ts'
import type { BackupLimits, CreateSpool } from '../backup/index.ts'
import type { CreateSha256 } from '../backup/sha256.ts'
import type { RhythmLimits } from '../scheduler/index.ts'
import type { Fetch, UploadServiceConfig } from '../storacha/index.ts'
import type { Stores } from '../stores/index.ts'
import type { GrantKeeper } from './grants.ts'
import type { Metrics } from './metrics.ts'
import type { Provisioning } from './provisioning.ts'
import type { Publisher } from './publisher.ts'
import type { Rates } from './rates.ts'
import type { Revocations } from './revocations.ts'
import type { Runner } from './runner.ts'
import type { Sharer } from './sharer.ts'
import type { Watchers } from './watchers.ts'

/** All that the handlers need of the world. */
export interface ServiceContext {
  /** Signs receipts; its DID is the service's `did:web`. */
  id: Signer
  /** The same key as `did:key`: the agent that acts in Spaces. */
  agent: Signer
  stores: Stores
  revocations: Revocations
  rates: Rates
  watchers: Watchers
  provisioning: Provisioning
  runner: Pick<Runner, 'kick'>
  identities: IdentityResolver
  /** Not there where no host would let us in: at an address without https. */
  grants: GrantKeeper | undefined
  publisher: Pick<Publisher, 'publish'>
  sharer: Pick<Sharer, 'share'>
  time: Time
  logger: Logger
  metrics?: Pick<Metrics, 'invoked'>
  /** How often schedules may be due. */
  rhythmLimits: RhythmLimits
  /** Schedules that one Space may have. */
  schedulesPerSpace: number
  /** Other services whose `did:web` may stand in proofs, with their keys. */
  authorities: Authority[]
}

/** A service that may attest for `did:mailto` accounts. */
export interface Authority {
  /** `did:web:…` */
  did: `did:web:${string}`
  /** `did:key:…` */
  key: `did:key:${string}`
}

/** What runs need beside the handlers' context. */
export interface PipelineContext {
  identities: IdentityResolver
  accounts: AccountReader
  /** Says when hosts of accounts may be asked. */
  gate?: HostGate | undefined
  uploadService: UploadServiceConfig
  gateways: URL[]
  /** For requests to Storacha, whose addresses are configuration. */
  fetch: Fetch
  /** For addresses that others name. */
  foreignFetch: Fetch
  createSpool: CreateSpool
  createSha256: CreateSha256
  limits: BackupLimits
}
