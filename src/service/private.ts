import type { Signer } from '@ucanto/interface'
import {
  createOwnersReader,
  createPrivateReader,
  type HostGate,
} from '../atproto/index.ts'
import {
  GatewayError,
  PartNotGrantedError,
  type PrivateContext,
} from '../backup/index.ts'
import { deriveIdentity, type DID } from '../space/index.ts'
import { StoreUnavailableError } from '../stores/index.ts'
import { ReauthorizeError, SpaceUnreadableError } from './grant-errors.ts'
import type { GrantKeeper } from './grants.ts'

/** What an agent reads private parts with: the grants that it keeps. */
export function createPrivateContext({
  agent,
  keeper,
  space,
  gate,
  delegation,
  plain = false,
}: {
  agent: Signer
  keeper: Pick<GrantKeeper, 'open'>
  space: DID
  /** Says when hosts may be asked; at any time, if left out. */
  gate?: HostGate | undefined
  /** CAR with a task and what allows to write grants into the Space. */
  delegation?: Uint8Array
  /** Seals nothing; only where the user says so. */
  plain?: boolean
}): PrivateContext {
  const options = gate ? { gate } : {}
  const given = delegation ? { delegation } : {}
  return {
    async session(account) {
      const session = await whileGranted(() =>
        keeper.open(space, account, given)
      )
      return (
        session && {
          account,
          parts: session.parts,
          fetch: (pathname, init) =>
            whileGranted(() => session.fetch(pathname, init)),
        }
      )
    },
    reader: createPrivateReader(options),
    accounts: (session) => createOwnersReader(session, options),
    identity: (account) => deriveIdentity(agent, { space, account }),
    // Its message names the database, and what failed there is of no account.
    endsRun: (error) => error instanceof StoreUnavailableError,
    plain,
  }
}

async function whileGranted<T>(act: () => Promise<T>): Promise<T> {
  try {
    return await act()
  } catch (error) {
    if (error instanceof ReauthorizeError) {
      throw new PartNotGrantedError(error.message, { cause: error })
    }
    if (error instanceof SpaceUnreadableError) {
      throw new GatewayError(error.message, { cause: error })
    }
    throw error
  }
}
