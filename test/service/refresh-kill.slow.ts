import assert from 'node:assert/strict'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { GRANT_POLICY } from '../../src/service/grants.ts'
import type { RefreshStep } from './refresh-agent.ts'
import { loadRefreshProcess, type RefreshProcess } from './refresh-process.ts'
import { createRefreshSetting } from './refresh-setting.ts'
import {
  createEmbeddedStore,
  createPostgresStore,
  databaseServer,
  type TestStore,
} from './slow-stores.ts'

const ROUNDS = Number(process.env.REFRESH_KILL_ROUNDS ?? 60)
const PREFERENCES = '/xrpc/app.bsky.actor.getPreferences'

/** Where the agent is killed, round after round. */
const MOMENTS: (
  | RefreshStep
  | 'any'
  | 'answer, together with its courier'
  | 'space, and the database is lost'
)[] = [
  'request',
  'journal',
  'any',
  'answer',
  'space',
  'any',
  'answer, together with its courier',
  'answer',
  'any',
  'space, and the database is lost',
]
/** How long an agent goes on that is killed at any moment, at most, in ms. */
const LONGEST = 250
const HOUR = 60 * 60_000

/**
 * The host trades each token once, and tells nobody twice what for. Between
 * the commit in the database of the host and the one in ours, the new session
 * is in memory only: in that of the process which refreshes, and in that of its
 * courier. Whenever the first is killed, the session is found again. Where both
 * are, no protocol brings it back, and the user has to authorize again: this
 * shows that it is said, and does no harm.
 */
describe('a refresh that is killed', () => {
  it('never loses a session, nor uses one twice, on SQLite', () =>
    killAgainAndAgain(createEmbeddedStore, ROUNDS))

  it('never loses a session, nor uses one twice, on PostgreSQL', function () {
    const server = databaseServer
    if (server === undefined) return this.skip()
    return killAgainAndAgain(() => createPostgresStore(server), ROUNDS / 3)
  })
})

async function killAgainAndAgain(
  createStore: () => Promise<TestStore>,
  rounds: number
): Promise<void> {
  await using resources = new AsyncDisposableStack()
  let ahead = 0
  const made = resources.use(
    await createRefreshSetting(createStore, { ahead: () => ahead })
  )
  const { account, space, store, stores, taken, refused, setting } = made
  const { keeper, publish } = made
  const authorize = async () => {
    await made.authorize()
    await publish(account)
  }
  const read = async () => {
    const session = await keeper.open(space.did, account)
    assert.ok(session)
    const response = await session.fetch(PREFERENCES)
    const text = await response.text()
    assert.equal(response.status, 200, text)
  }

  let moment: (typeof MOMENTS)[number] = 'any'
  let hasSent = () => {}
  const load = () =>
    loadRefreshProcess(async (step, kill) => {
      if (step === 'request') hasSent()
      if (moment.startsWith(step)) await kill()
    })
  // Processes take longer to load than to be killed: one is always ahead.
  let next: Promise<RefreshProcess> = load()
  resources.defer(async () => (await next)[Symbol.asyncDispose]())

  await authorize()
  const counts = new Map<string, number>()
  for (let round = 0; round < rounds; round++) {
    moment = MOMENTS[round % MOMENTS.length]!
    const said = `round ${round}, killed at ${moment}`
    const before = (await stores.grants.get(space.did, account))!.seq
    const takenBefore = taken.length
    const refusedBefore = refused.length
    {
      await using child = await next
      next = load()
      const courier = !moment.endsWith('together with its courier')
      await child.start({ ...setting, steps: true, courier })
      ahead += HOUR
      const sent = new Promise<void>((resolve) => (hasSent = resolve))
      const following = child.follow({
        opens: 1,
        ahead,
        publish: true,
      })
      if (moment === 'any') {
        await Promise.race([sent, following])
        await sleep(Math.random() * LONGEST)
        await child.kill()
        await following
      } else {
        assert.equal(await following, false, `${said}: it was not killed`)
      }
    }

    await store.settled()
    const isTaken = taken.length > takenBefore
    assert.ok(taken.length - takenBefore <= 1, said)
    assert.equal(refused.length, refusedBefore, said)
    const left = (await stores.grants.get(space.did, account))!
    const kept = left.seq - before
    assert.ok(kept <= Number(isTaken), said)
    if (moment === 'request') assert.equal(isTaken, false, said)
    if (moment.startsWith('answer')) assert.ok(isTaken && kept === 0, said)
    if (moment === 'request' || moment.startsWith('answer')) {
      assert.ok(left.refreshing, `${said}: it was under way`)
    }
    if (moment === 'journal') assert.equal(kept, 1, said)
    if (moment.startsWith('space')) {
      assert.equal((await space.read(account))?.seq, before + 1, said)
    }
    if (moment.endsWith('the database is lost')) {
      await stores.database.deleteFrom('grants').execute()
    }
    const isLost = moment.endsWith('together with its courier')
    // Traded, and not kept by who has traded it: by its courier, then.
    const isBetween = isTaken && kept === 0
    assert.equal(left.answer !== undefined, isBetween && !isLost, said)

    const what = isBetween
      ? isLost
        ? 'lost'
        : 'between'
      : kept
        ? 'after'
        : 'before'
    counts.set(what, (counts.get(what) ?? 0) + 1)
    // What is left of whoever was killed is taken over at once.
    ahead += GRANT_POLICY.lease
    if (what === 'after' || what === 'between') {
      // What was kept is used as it is.
      await read()
      assert.equal(taken.length, takenBefore + 1, said)
      const found = await stores.grants.get(space.did, account)
      assert.equal(found?.seq, before + 1, said)
      assert.equal(found.answer, undefined, said)
    }
    if (what === 'lost') {
      const opening = () => keeper.open(space.did, account)
      await assert.rejects(opening(), { name: 'ReauthorizeError' }, said)
      assert.equal(refused.length, refusedBefore + 1, said)
      // It is said once, and the host is left alone.
      await assert.rejects(opening(), { name: 'ReauthorizeError' }, said)
      assert.equal(refused.length, refusedBefore + 1, said)
      assert.equal((await keeper.list(space.did))[0]?.state, 'ended', said)
      await authorize()
      await read()
      continue
    }
    if (what !== 'before') ahead += HOUR
    await read()
    assert.equal(taken.length, takenBefore + 2 - Number(what === 'before'))
    assert.equal(refused.length, refusedBefore, said)
    await publish(account)
    assert.equal(
      (await space.read(account))?.seq,
      before + 2 - Number(what === 'before'),
      said
    )
  }

  for (const what of ['before', 'between', 'after', 'lost']) {
    assert.ok((counts.get(what) ?? 0) >= rounds / 20, `${what} a commit`)
  }
  assert.equal(new Set(taken).size, taken.length, 'no token was used twice')
  assert.equal(refused.length, counts.get('lost'))

  const rows = await stores.database.selectFrom('grants').selectAll().execute()
  const files = await readdir(store.dataFolder)
  const all = Buffer.concat([
    ...rows.flatMap((row) => Object.values(row).map(toBytes)),
    ...(await Promise.all(
      files.map((name) => readFile(join(store.dataFolder, name)))
    )),
    (await space.read(account))!.sealed,
  ])
  assert.ok(all.includes(space.did))
  for (const secret of [...taken, ...refused, 'refresh_token', 'dpopJwk']) {
    assert.ok(!all.includes(secret), 'a secret is kept in plain text')
  }
}

function toBytes(value: unknown): Uint8Array {
  return value instanceof Uint8Array ? value : Buffer.from(String(value))
}
