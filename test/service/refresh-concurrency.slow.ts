import assert from 'node:assert/strict'
import { ed25519 } from '@ucanto/principal'
import { withNativeSigning } from '../../src/node/index.ts'
import type { DID } from '../../src/space/index.ts'
import { openStores } from '../../src/stores/index.ts'
import { consent } from '../network/consent.ts'
import { startPds, startPlc } from '../network/pds.ts'
import { createRefreshAgent } from './refresh-agent.ts'
import { requestFor } from './grants-harness.ts'
import { loadRefreshProcess } from './refresh-process.ts'
import {
  createEmbeddedStore,
  createPostgresStore,
  databaseServer,
  type TestStore,
} from './slow-stores.ts'
import { createSpacePlace, openSpaceAt } from './test-space.ts'

const REFRESHES = Number(process.env.CONCURRENT_REFRESHES ?? 1_000)
/** Of so many refreshes, one is wanted by several in each process. */
const CROWDED = 10
const CROWD = 4
const HOUR = 60 * 60_000

describe('two processes with one grant', () => {
  const title = (where: string) =>
    `refresh it ${REFRESHES} times and never twice with one token, ${where}`

  it(title('on SQLite'), () => refreshAgainAndAgain(createEmbeddedStore))

  it(title('on PostgreSQL'), function () {
    const server = databaseServer
    if (server === undefined) return this.skip()
    return refreshAgainAndAgain(() => createPostgresStore(server))
  })
})

async function refreshAgainAndAgain(
  createStore: () => Promise<TestStore>
): Promise<void> {
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
  const account = alice.did as DID
  const store = resources.use(await createStore())
  const stores = resources.use(await openStores(store.options))
  const agent = withNativeSigning(await ed25519.generate())
  const hosts = { plcUrl: plc.url, pdsUrl: pds.url }

  const { place } = resources.use(await createSpacePlace(agent))
  const space = openSpaceAt(agent, place)
  const { keeper } = createRefreshAgent({
    ...hosts,
    agent,
    space,
    store: stores.grants,
    ahead: () => 0,
  })
  const { url } = await keeper.request(requestFor(alice, { space: space.did }))
  const { handle: username, password } = alice
  const back = await consent(url, { username, password })
  await keeper.conclude(back.searchParams)

  const processes = await Promise.all(
    ['one', 'two'].map(async () => {
      const child = resources.use(await loadRefreshProcess(async () => {}))
      await child.start({
        ...hosts,
        space: place,
        account,
        key: ed25519.format(agent),
        stores: store.serviceOptions,
        steps: false,
      })
      return child
    })
  )
  for (let round = 1; round <= REFRESHES; round++) {
    const order = {
      opens: round % CROWDED === 0 ? CROWD : 1,
      ahead: round * HOUR,
      publish: round % 10 === 0,
    }
    await Promise.all(processes.map((child) => child.follow(order)))
    assert.equal(taken.length, round, 'all share one refresh')
    assert.deepEqual(refused, [])
  }
  assert.equal(new Set(taken).size, REFRESHES)
  const grant = await stores.grants.get(space.did, account)
  assert.equal(grant?.seq, REFRESHES + 1)
  assert.equal(grant.state, 'active')
  assert.equal((await space.read(account))?.seq, REFRESHES + 1)
}
