import { ed25519 } from '@ucanto/principal'
import type { Signer } from '@ucanto/interface'
import { withNativeSigning } from '../../src/node/index.ts'
import type { DID } from '../../src/space/index.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import { consent } from '../network/consent.ts'
import { startPds, startPlc } from '../network/pds.ts'
import { requestFor } from './grants-harness.ts'
import { createRefreshAgent, type RefreshAgent } from './refresh-agent.ts'
import type { Setting } from './refresh-process.ts'
import type { TestStore } from './slow-stores.ts'
import { createSpacePlace, openSpaceAt, type TestSpace } from './test-space.ts'

/** An agent with a grant, and others in other processes that share it. */
export interface RefreshSetting extends RefreshAgent, AsyncDisposable {
  account: DID
  space: TestSpace
  store: TestStore
  stores: Stores
  /** Tokens that the host has traded. */
  taken: string[]
  /** Tokens that the host has not taken. */
  refused: string[]
  /** Lets the agent into the account, as its user does. */
  authorize: () => Promise<void>
  /** What an agent in another process is told. */
  setting: Omit<Setting, 'steps' | 'courier'>
}

/**
 * A real PDS, a real Space whose clock a service has, and an agent.
 *
 * @param options.ahead - how far the agent's time is, in milliseconds
 */
export async function createRefreshSetting(
  createStore: () => Promise<TestStore>,
  { ahead = () => 0 }: { ahead?: () => number } = {}
): Promise<RefreshSetting> {
  await using resources = new AsyncDisposableStack()
  const taken: string[] = []
  const refused: string[] = []
  const plc = resources.use(await startPlc())
  const pds = resources.use(
    await startPds({
      plcUrl: plc.url,
      onRefresh: ({ token, isTaken }) => {
        const tokens = isTaken ? taken : refused
        tokens.push(token)
      },
    })
  )
  const alice = await pds.createAccount({ handle: 'alice.test' })
  const store = resources.use(await createStore())
  const stores = resources.use(await openStores(store.options))
  const key = await ed25519.generate()
  const agent: Signer = withNativeSigning(key)
  const hosts = { plcUrl: plc.url, pdsUrl: pds.url }
  const { place } = resources.use(await createSpacePlace(agent))
  const space = openSpaceAt(agent, place)
  const { keeper, publish } = createRefreshAgent({
    ...hosts,
    agent,
    space,
    store: stores.grants,
    ahead,
  })
  const account = alice.did as DID
  const owned = resources.move()
  return {
    ...{ account, space, store, stores, taken, refused, keeper, publish },
    async authorize() {
      const include = ['preferences']
      const { url } = await keeper.request(
        requestFor(alice, { space: space.did, include })
      )
      const { handle: username, password } = alice
      const back = await consent(url, { username, password })
      await keeper.conclude(back.searchParams)
    },
    setting: {
      ...hosts,
      space: place,
      account,
      key: ed25519.format(key),
      stores: store.serviceOptions,
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}
