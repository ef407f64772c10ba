import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Delegation } from '@ucanto/core'
import type { Delegation as DelegationView } from '@ucanto/interface'
import { AgentFileError } from './errors.ts'
import { writeWhole } from './files.ts'
import type { Session } from './session.ts'

const SUFFIX = '.ucan'
const REVOKED_SUFFIX = '.revoked.ucan'

/** A delegation that this agent has given. */
export interface Issued {
  delegation: DelegationView
  /** Whether this agent has revoked it. */
  revoked: boolean
}

/** Delegations that an agent has given, a file each: it can take them back. */
export interface IssuedDelegations {
  keep(delegation: DelegationView): Promise<void>
  /** Notes that the delegation was revoked; it need not have been kept. */
  markRevoked(delegation: DelegationView): Promise<void>
  /** @throws {@link AgentFileError} */
  list(): Promise<Issued[]>
}

/** Where the agent of a session keeps them. */
export function issuedFolder({ config }: Pick<Session, 'config'>): string {
  return join(config.home, 'delegations')
}

/** @param folder - where they are; made when there is the first */
export function createIssuedDelegations(folder: string): IssuedDelegations {
  const write = async (delegation: DelegationView, suffix: string) => {
    const { ok, error } = await delegation.archive()
    if (error) throw error
    await writeWhole(join(folder, `${delegation.cid.toString()}${suffix}`), ok)
  }
  return {
    keep: (delegation) => write(delegation, SUFFIX),
    markRevoked: (delegation) => write(delegation, REVOKED_SUFFIX),
    async list() {
      const names = await readdir(folder).catch(
        (error: NodeJS.ErrnoException): string[] => {
          if (error.code === 'ENOENT') return []
          throw new AgentFileError(
            `the folder ${folder} cannot be read (${error.code})`,
            { cause: error }
          )
        }
      )
      const issued: Issued[] = []
      for (const name of names.sort()) {
        const revoked = name.endsWith(REVOKED_SUFFIX)
        if (!name.endsWith(SUFFIX)) continue
        const twin = `${name.slice(0, -SUFFIX.length)}${REVOKED_SUFFIX}`
        if (!revoked && names.includes(twin)) continue
        const path = join(folder, name)
        const { ok } = await Delegation.extract(await readFile(path))
        if (!ok) {
          throw new AgentFileError(
            `${path} does not hold a delegation; move it away to go on without it`
          )
        }
        issued.push({ delegation: ok, revoked })
      }
      return issued
    },
  }
}
