import assert from 'node:assert/strict'
import { loadRefreshProcess } from './refresh-process.ts'
import { createRefreshSetting } from './refresh-setting.ts'
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
  const { account, space, stores, taken, refused, setting, authorize } =
    resources.use(await createRefreshSetting(createStore))
  await authorize()
  const processes = await Promise.all(
    ['one', 'two'].map(async () => {
      const child = resources.use(await loadRefreshProcess(async () => {}))
      await child.start({ ...setting, steps: false, courier: true })
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
