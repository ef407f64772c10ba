/**
 * The service: Ucanto handlers over HTTP, and the runs they start.
 *
 * @example
 * ```ts
 * import { readConfig, startService } from 'bluesky-backups/service'
 *
 * await using service = await startService(readConfig({}, process.env))
 * console.log(service.url.href, service.did)
 * ```
 *
 * @packageDocumentation
 */
export {
  ConfigError,
  flagOf,
  readConfig,
  SETTINGS,
  variableOf,
  type ServiceConfig,
  type SettingName,
} from './config.ts'
export type { ServiceContext } from './context.ts'
export { createService } from './server.ts'
export { DataFolderError, KeyMismatchError, ListenError } from './errors.ts'
export {
  startService,
  type RunningService,
  type ServiceOptions,
} from './start.ts'
