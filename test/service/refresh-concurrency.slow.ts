import assert from 'node:assert/strict'
import { ed25519 } from '@ucanto/principal'
import { withNativeSigning } from '../../src/node/index.ts'
import type { Authorization, DID } from '../../src/space/index.ts'
import { openStores } from '../../src/stores/index.ts'
import { consent } from '../network/consent.ts'
import { startPds, startPlc } from '../network/pds.ts'
import { createRefreshAgent } from './refresh-agent.ts'
import { loadRefreshProcess, type Question } from './refresh-process.ts'
import {
  createEmbeddedStore,
  createPostgresStore,
  databaseServer,
  type TestStore,
} from './slow-stores.ts'

const REFRESHES = Number(process.env.CONCURRENT_REFRESHES ?? 1_000)
/** Of so many refreshes, one is wanted by several in each process. */
const CROWDED = 10
const CROWD = 4
const HOUR = 60 * 60_000
const SPACE: DID = 'did:key:z6MkgGwb4xuUuddp6KsJqKNstgHUzkup95CyebHLDZZka9eU'

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

  let content: Authorization | undefined
  const { keeper } = createRefreshAgent({
    ...hosts,
    agent,
    store: stores.grants,
    readAuthorization: async () => content,
    writeAuthorization: async () => {},
    ahead: () => 0,
  })
  const { url } = await keeper.request({
    space: SPACE,
    account,
    delegation: Uint8Array.of(1),
  })
  const { handle: username, password } = alice
  const back = await consent(url, { username, password })
  await keeper.conclude(back.searchParams)

  const answer = async (question: Question) => {
    if (question.is === 'write') {
      assert.ok(question.authorization.seq >= (content?.seq ?? 0))
      content = question.authorization
    }
    return content
  }
  const processes = await Promise.all(
    ['one', 'two'].map(async () => {
      const child = resources.use(await loadRefreshProcess(answer))
      await child.start({
        ...hosts,
        space: SPACE,
        account,
        key: ed25519.format(agent),
        stores: store.options,
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
  const grant = await stores.grants.get(SPACE, account)
  assert.equal(grant?.seq, REFRESHES + 1)
  assert.equal(grant.state, 'active')
  assert.equal(content?.seq, REFRESHES + 1)
}
