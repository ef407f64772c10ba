/**
 * The protocol: every capability of the service, with what it answers. The
 * namespaces read as sentences.
 *
 * @example
 * ```ts
 * import * as Capabilities from 'bluesky-backups/capabilities'
 *
 * const invocation = Capabilities.Backup.run.invoke({
 *   issuer: agent,
 *   audience: service,
 *   with: space,
 *   nb: { account: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz' },
 *   proofs,
 * })
 * ```
 *
 * @packageDocumentation
 */
import type { AuthorizationService } from './authorization.ts'
import type { BackupService } from './backup.ts'
import type { ClockService } from './clock.ts'
import type { RevocationService } from './revocation.ts'

export * as Authorization from './authorization.ts'
export * as Backup from './backup.ts'
export * as Clock from './clock.ts'
export * as Revocation from './revocation.ts'

export { isAccountDID } from './common.ts'

/** All that the service answers to. */
export interface Service {
  authorization: AuthorizationService
  backup: BackupService
  clock: ClockService
  ucan: RevocationService
}

/** Abilities that `GET /` lists: those that can be invoked. */
export const ABILITIES = [
  'clock/head',
  'clock/advance',
  'backup/run',
  'backup/status',
  'backup/schedule',
  'backup/schedules',
  'backup/pause',
  'backup/resume',
  'backup/unschedule',
  'authorization/request',
  'authorization/list',
  'authorization/revoke',
  'authorization/share',
  'ucan/revoke',
] as const

/**
 * Ability of Storacha by which a service asks whether a Space has a provider.
 * An invocation names a delegation of it to the service's `did:key` in a fact
 * with this key.
 */
export const SPACE_INFO = 'space/info'

/**
 * What a service needs in a Space to back an account up into it: these are
 * Storacha's and the clock's, and are delegated to the service's `did:key`.
 */
export const BACKUP_ABILITIES = [
  'space/blob/add',
  'space/index/add',
  'upload/add',
  'clock/head',
  'clock/advance',
] as const

/** What a service needs so that it makes backups by itself. */
export const SCHEDULE_ABILITIES = ['backup/run', ...BACKUP_ABILITIES] as const
