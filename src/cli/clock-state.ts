import {
  accounts,
  latestBackup,
  listBackups,
  readAccount,
  readAuthorization,
  readAuthorizations,
  readState,
  type BlockFetcher,
  type DID,
  type Link,
  type State,
} from '../space/index.ts'
import { inWaves } from './waves.ts'

/** An account of a state, in short. */
export interface AccountSummary {
  account: string
  /** Time of the last backup. */
  lastBackup: string | null
}

/** An account of a state; what of it could not be read says why. */
export interface AccountDetails extends AccountSummary {
  authorizations: {
    agent: string
    seq: number
    /** Unix seconds. */
    expiration: number
  }[]
  /** Number of backups. */
  backups: number
  error?: Error
}

/**
 * Reads which accounts a state has.
 *
 * @throws {@link MissingBlockError} {@link DecodeError} {@link GatewayError}
 */
export async function summarizeState(
  blocks: BlockFetcher,
  state: Link<State>
): Promise<AccountSummary[]> {
  return inWaves(await accounts(blocks, state), async (account) => {
    const latest = await latestBackup(blocks, state, account)
    return { account, lastBackup: latest?.timestamp ?? null }
  })
}

/**
 * Reads all of a state but the backups themselves.
 *
 * @throws {@link MissingBlockError} {@link DecodeError} {@link GatewayError} if
 *   not even its accounts can be read
 */
export async function inspectState(
  blocks: BlockFetcher,
  state: Link<State>
): Promise<AccountDetails[]> {
  const links = await readState(blocks, state)
  return inWaves(Object.keys(links).sort() as DID[], async (account) => {
    const details: AccountDetails = {
      account,
      authorizations: [],
      backups: 0,
      lastBackup: null,
    }
    try {
      const { authorizations } = await readAccount(
        blocks,
        links[account] as State[DID]
      )
      const agents = await readAuthorizations(blocks, authorizations)
      details.authorizations = await inWaves(
        Object.entries(agents),
        async ([agent, link]) => {
          const { seq, expiration } = await readAuthorization(blocks, link)
          return { agent, seq, expiration }
        }
      )
      for await (const { timestamp } of listBackups(blocks, state, account)) {
        details.backups++
        details.lastBackup = timestamp
      }
    } catch (error) {
      details.error = error instanceof Error ? error : new Error(String(error))
    }
    return details
  })
}
