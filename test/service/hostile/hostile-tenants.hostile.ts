import assert from 'node:assert/strict'
import {
  createEmbeddedStore,
  createPostgresStore,
  databaseServer,
  type TestStore,
} from '../slow-stores.ts'
import { runTenants } from './tenants.ts'

const MINUTES = Number(process.env.HOSTILE_MINUTES ?? 10)
/** Milliseconds from the time of a backup to its end. */
const MAX_LATENESS = 60_000
/** Milliseconds without an answer. */
const MAX_SILENCE = 1_000
const MAX_MEMORY = 700e6
const MAX_GROWTH = 200e6
/** Steps that each attack takes at least in a minute. */
const MIN_STEPS = 8

describe('hostile tenants', () => {
  it('do not delay the backups of others, on SQLite', () =>
    run(createEmbeddedStore))

  it('do not delay the backups of others, on PostgreSQL', async function () {
    const server = databaseServer
    if (server === undefined) return this.skip()
    await run(() => createPostgresStore(server))
  })
})

async function run(createStore: () => Promise<TestStore>): Promise<void> {
  await using store = await createStore()
  const figures = await runTenants(store, { minutes: MINUTES, hostile: true })
  console.log(JSON.stringify(figures, null, 1))
  for (const [name, outcomes] of Object.entries(figures.attacks)) {
    const steps = Object.values(outcomes).reduce((sum, one) => sum + one, 0)
    assert.ok(steps >= MIN_STEPS * MINUTES, `${name}: only ${steps} steps`)
  }
  // Each minute, a backup of each good Space is due.
  assert.ok(figures.backups >= 20 * (MINUTES - 1), `${figures.backups}`)
  assert.ok(figures.lateness <= MAX_LATENESS, `late by ${figures.lateness} ms`)
  assert.ok(figures.silence <= MAX_SILENCE, `silent for ${figures.silence} ms`)
  assert.ok(figures.memory <= MAX_MEMORY, `${figures.memory} bytes of memory`)
  assert.ok(
    figures.growth <= MAX_GROWTH,
    `the database grew by ${figures.growth} bytes`
  )
}
