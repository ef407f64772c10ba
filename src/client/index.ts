/**
 * A typed client of the service, for the CLI, the browser app and others.
 *
 * @example
 * ```ts
 * import { Backup, connect, discover } from 'bluesky-backups/client'
 *
 * const url = new URL('https://backups.example')
 * const { did } = await discover(url)
 * const connection = connect({ url, did })
 * const { ok, error } = await Backup.run(
 *   { issuer: agent, with: space, proofs },
 *   { account: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz', delegation },
 *   { connection }
 * )
 * ```
 *
 * @packageDocumentation
 */
export * as Authorization from './authorization.ts'
export * as Backup from './backup.ts'
export * as Clock from './clock.ts'
export * as Revocation from './revocation.ts'
export { InvalidReceiptError, readReceipt } from './receipt.ts'
export { followRuns } from './follow-runs.ts'
export { watch } from './watch.ts'
export {
  RECONNECT_POLICY,
  WatchRefusedError,
  type ReconnectPolicy,
  type WatchOptions,
} from './events.ts'
export {
  connect,
  discover,
  ServiceUnreachableError,
  type Connection,
  type InvocationConfig,
  type InvocationOptions,
  type ServiceInfo,
} from './connection.ts'
