import { readFileSync } from 'node:fs'
import { findPackageJSON } from 'node:module'

/** What this package says of itself. */
export interface PackageInfo {
  name: string
  version: string
  description: string
  /** Name of a package → its exact version. */
  devDependencies: Record<string, string>
}

/** Read from the package's own file, in a checkout and when installed. */
export const PACKAGE: PackageInfo = readPackage()

function readPackage(): PackageInfo {
  const path = findPackageJSON(import.meta.url)
  if (path === undefined) throw new Error('the package has no package.json')
  return JSON.parse(readFileSync(path, 'utf8')) as PackageInfo
}
