import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createRequire } from 'node:module'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import pino from 'pino'
import { SCHEDULE_ABILITIES } from '../../src/capabilities/index.ts'
import { SCHEDULER_POLICY } from '../../src/scheduler/index.ts'
import {
  readConfig,
  startService,
  type RunningService,
} from '../../src/service/index.ts'
import {
  seedAccount,
  startNetwork,
  type Account,
  type Network,
} from '../network/index.ts'
import { until } from '../service/harness.ts'
import { Agent, createFolder } from './harness.ts'

const EMAIL = 'alice@example.com'
const CLI = createRequire(import.meta.url).resolve('@storacha/cli/bin.js')
const run = promisify(execFile)

/** What people have who use Storacha already: its own command. */
describe('delegations of the storacha command', function () {
  this.timeout(60_000)

  const resources = new AsyncDisposableStack()
  let folder: string
  let network: Network
  let service: RunningService
  let account: Account
  let alice: Agent
  let space: string

  before(async () => {
    folder = resources.use(await createFolder()).path
    network = resources.use(await startNetwork())
    service = resources.use(
      await startService(
        readConfig(
          {
            port: '0',
            dataFolder: join(folder, 'service'),
            minScheduleInterval: '1',
            drainTimeout: '0',
          },
          network.environment
        ),
        {
          logger: pino({ level: 'silent' }),
          schedulerPolicy: { ...SCHEDULER_POLICY, sweep: 50, poll: 20 },
        }
      )
    )
    account = await network.pds.createAccount({ handle: 'alice.test' })
    await seedAccount(account.agent, { posts: 3, blobs: [1000] })

    await storacha('first', 'login', EMAIL)
    await storacha(
      'first',
      ...['space', 'create', 'backups', '--no-recovery'],
      ...['--customer', EMAIL, '--account', EMAIL],
      '--no-gateway-authorization'
    )
    space = (await storacha('first', 'space', 'ls')).match(/did:key:\w+/)![0]
    // It logs in when the Space is there already.
    await storacha('second', 'login', EMAIL)
    await storacha('second', 'space', 'use', space)

    alice = new Agent(join(folder, 'alice'), {
      ...network.environment,
      BLUESKY_BACKUPS_SERVICE_URL: service.url.href,
    })
    await alice.json(['login', EMAIL])
    await alice.json(['space', 'use', space])
  })

  after(() => resources.disposeAsync())

  afterEach(() => alice.run(['unschedule', 'alice.test']))

  /** The command, with a home of its own. */
  const storacha = async (agent: string, ...argv: string[]) => {
    const { stdout } = await run(process.execPath, [CLI, ...argv], {
      env: {
        PATH: process.env.PATH,
        HOME: join(folder, agent),
        XDG_CONFIG_HOME: join(folder, agent),
        NO_UPDATE_NOTIFIER: '1',
        STORACHA_SERVICE_URL: network.storacha.url,
        STORACHA_SERVICE_DID: network.storacha.did,
        STORACHA_RECEIPTS_URL: network.storacha.receiptsUrl,
      },
      timeout: 30_000,
    })
    return stdout
  }

  const delegate = (agent: string, ...options: string[]) =>
    storacha(
      agent,
      ...['delegation', 'create', service.agent],
      ...SCHEDULE_ABILITIES.flatMap((can) => ['--can', can]),
      ...options
    )

  const schedule = (delegation: string) =>
    alice.json([
      ...['schedule', 'alice.test', '--every', '1s'],
      ...['--delegation', delegation],
    ])

  const backedUp = () =>
    until(async () => {
      const { schedules } = await alice.json(['schedules'])
      const { state, reason, lastRun } = schedules[0]
      assert.equal(state, 'active', JSON.stringify(reason))
      return lastRun && (lastRun.outcome as string)
    }, 20_000)

  it('make backups, from a file', async () => {
    const file = join(folder, 'grant.car')
    await delegate('second', '-o', file)
    const made = await schedule(file)
    assert.equal(made.schedule.account, account.did)
    assert.equal(await backedUp(), 'first')
    const { backups } = await alice.json(['backup', 'ls'])
    assert.equal(backups.length, 1)
  })

  it('make backups, from text in base64', async () => {
    const text = await delegate('second', '--base64')
    const file = join(folder, 'grant.txt')
    await writeFile(file, text)
    for (const given of [file, text.trim()]) {
      await account.agent.post({ text: 'news' })
      await schedule(given)
      assert.equal(await backedUp(), 'incremental')
      await alice.json(['unschedule', 'alice.test'])
    }
  })

  it('are given by the agent that made the Space after a reset, not before', async () => {
    const file = join(folder, 'again.car')
    await assert.rejects(
      delegate('first', '-o', file),
      /cannot delegate capability backup\/run/
    )
    await storacha('first', 'reset')
    await storacha('first', 'login', EMAIL)
    await storacha('first', 'space', 'use', space)
    await delegate('first', '-o', file)
    await schedule(file)
    assert.match(await backedUp(), /incremental|unchanged/)
  })
})
