import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { create } from '@storacha/client'
import { CAR, delegate, DID } from '@ucanto/core'
import { ed25519 } from '@ucanto/principal'
import {
  BACKUP_ABILITIES,
  SCHEDULE_ABILITIES,
} from '../../src/capabilities/index.ts'
import { createAgentStore } from '../../src/cli/agent-store.ts'
import { decodeDelegations } from '../../src/service/authority.ts'
import type { RunningService } from '../../src/service/index.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import { startNetwork, type Account, type Network } from '../network/index.ts'
import { Agent, createFolder, startTestService } from './harness.ts'

const OTHER_ACCOUNT = 'did:plc:vwzwgnygau7ed7b7wt5ux7y2'
const HOUR = 3600 * 1000
const DAY = 24 * HOUR
const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/

describe('schedules on the command line', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: RunningService
  let stores: Stores
  let folder: string
  let account: Account
  let alice: Agent
  let space: string

  before(async () => {
    folder = resources.use(await createFolder()).path
    network = resources.use(await startNetwork())
    const dataFolder = join(folder, 'service')
    service = resources.use(await startTestService(network, dataFolder))
    stores = resources.use(
      await openStores({ path: join(dataFolder, 'service.sqlite') })
    )
    account = await network.pds.createAccount({ handle: 'alice.test' })
    alice = createAgent('alice')
    await alice.json(['login', 'alice@example.com'])
    space = (await alice.json(['space', 'create', 'backups'])).did
  })

  after(() => resources.disposeAsync())

  afterEach(async () => {
    for (const each of await stores.schedules.list(space)) {
      await stores.schedules.remove(space, each.account)
    }
  })

  const createAgent = (name: string) =>
    new Agent(join(folder, name), {
      ...network.environment,
      BLUESKY_BACKUPS_SERVICE_URL: service.url.href,
    })

  const refused = async (argv: string[], code: number, message: RegExp) => {
    const finished = await alice.run(argv)
    assert.equal(finished.code, code, finished.stderr)
    assert.match(finished.stderr, message)
  }

  it('are none at first', async () => {
    const { code, stdout } = await alice.run(['schedules'])
    assert.equal(code, 0)
    assert.match(stdout, /^no schedules yet; .* schedule HANDLE --every 1h/)
    const { schedules } = await alice.json(['schedules'])
    assert.deepEqual(schedules, [])
  })

  it('are made with the least delegation, which the agent can take back', async () => {
    const { schedule } = await alice.json([
      'schedule',
      '@Alice.test',
      '--every',
      '1h',
    ])
    assert.equal(schedule.account, account.did)
    assert.equal(schedule.every, 3600)
    assert.equal(schedule.state, 'active')
    assert.match(schedule.next, ISO)
    const wait = Date.parse(schedule.next) - Date.now()
    assert.ok(wait > -1000 && wait <= HOUR)
    const left = Date.parse(schedule.delegation.expiration) - Date.now()
    assert.ok(left > 364 * DAY && left <= 365 * DAY)

    const kept = await stores.schedules.delegation(space, account.did)
    const [delegation] = decodeDelegations(kept!.bytes)
    assert.equal(delegation?.audience.did(), service.agent)
    assert.deepEqual(delegation.capabilities, [
      { can: 'backup/run', with: space, nb: { account: account.did } },
      ...BACKUP_ABILITIES.map((can) => ({ can, with: space })),
    ])
    const { delegations } = await alice.json(['delegation', 'ls'])
    assert.ok(
      delegations.some(
        ({ cid }: { cid: string }) => cid === schedule.delegation.cid
      )
    )
  })

  it('are shown with what they are, when and until when', async () => {
    const { stdout } = await alice.run([
      'schedule',
      account.did,
      '--cron',
      '0 4 * * *',
      '--timezone',
      'Europe/Berlin',
      '--include',
      'none',
      '--expires-in',
      'never',
    ])
    assert.match(stdout, new RegExp(`^account +${account.did}\nwhen +0 4 \\* `))
    assert.match(stdout, /\(Europe\/Berlin\)\nparts +repo\nstate +active\n/)
    assert.match(stdout, /\nnext run +\S+T0[23]:00:\S+Z\n/)
    // For ever, but not longer than the agent itself may.
    const end = /\nends +(\S+)\n$/.exec(stdout)?.[1] ?? ''
    assert.ok(Date.parse(end) - Date.now() < 366 * DAY)
    const table = (await alice.run(['schedules'])).stdout
    assert.match(
      table,
      /^ACCOUNT +WHEN +STATE +NEXT RUN +LAST RUN +DELEGATION ENDS\n/
    )
    assert.match(
      table,
      new RegExp(
        `\n${account.did} +0 4 \\* \\* \\* \\(Europe/Berlin\\) +active +\\S+Z +none yet +${end}\n$`
      )
    )
  })

  it('take a delegation of any form that tools write', async () => {
    const file = join(folder, 'grant.car')
    await alice.json(['delegate', '--run', '-o', file])
    const { delegation: text, cid } = await alice.json(['delegate', '--run'])
    const written = join(folder, 'grant.txt')
    await writeFile(written, `${text}\n`)
    const url = `u${text.slice(1).replaceAll('+', '-').replaceAll('/', '_')}`
    for (const word of [file, text, written, url]) {
      const { schedule } = await alice.json([
        'schedule',
        'alice.test',
        '--every',
        '1d',
        '--delegation',
        word,
      ])
      assert.equal(schedule.every, 86_400)
      if (word !== file) assert.equal(schedule.delegation.cid, cid)
    }
  })

  it('take a delegation as the client of Storacha makes it', async () => {
    const client = await create({
      store: createAgentStore(join(alice.home, 'agent.json')),
    })
    const delegation = await client.createDelegation(
      DID.parse(service.agent),
      [...SCHEDULE_ABILITIES] as never,
      { expiration: Math.floor(Date.now() / 1000) + 86_400 }
    )
    const { ok: archive } = await delegation.archive()
    const blocks = [...delegation.export()]
    // Older versions write the blocks alone.
    const legacy = CAR.encode({
      blocks: new Map(blocks.map((block) => [`${block.cid}`, block])),
    })
    for (const content of [archive!, legacy]) {
      const file = join(folder, 'storacha.car')
      await writeFile(file, content)
      const { schedule } = await alice.json([
        'schedule',
        'alice.test',
        '--every',
        '1h',
        '--delegation',
        file,
      ])
      assert.equal(schedule.delegation.cid, delegation.cid.toString())
      assert.equal(
        Date.parse(schedule.delegation.expiration),
        delegation.expiration * 1000
      )
    }
  })

  it('tell what a delegation lacks', async () => {
    const file = join(folder, 'small.car')
    await alice.json(['delegate', '-o', file])
    const { code, json } = await alice.run([
      'schedule',
      'alice.test',
      '--every',
      '1h',
      '--delegation',
      file,
      '--json',
    ])
    assert.equal(code, 1)
    assert.equal(json.error.name, 'InsufficientDelegation')
    assert.match(json.error.message, /does not allow backup\/run in/)
    await alice.json([
      'delegate',
      '--run',
      '--account',
      OTHER_ACCOUNT,
      '-o',
      file,
    ])
    await refused(
      ['schedule', 'alice.test', '--every', '1h', '--delegation', file],
      1,
      /for did:plc:vw\w+, not for did:plc:/
    )
  })

  it('pause, for some time or until they are resumed', async () => {
    const account = ['alice.test']
    const made = await alice.json(['schedule', ...account, '--every', '1h'])
    const paused = (await alice.json(['pause', ...account])).schedule
    assert.equal(paused.state, 'paused')
    assert.equal(paused.next, null)
    assert.match(
      (await alice.run(['pause', ...account])).stdout,
      /\nstate +paused\nnext run +none\n/
    )
    const resumed = (await alice.json(['resume', ...account])).schedule
    assert.equal(resumed.state, 'active')
    const between = Date.parse(resumed.next) - Date.parse(made.schedule.next)
    assert.equal(between % HOUR, 0)
    const { stdout } = await alice.run(['pause', ...account, '--for', '8h'])
    const until = Date.parse(/paused until (\S+)/.exec(stdout)?.[1] ?? '')
    assert.ok(Math.abs(until - Date.now() - 8 * HOUR) < 60_000)
    const table = (await alice.run(['schedules'])).stdout
    assert.match(table, /every 1h +paused until \S+ +\S+Z +none yet/)
  })

  it('end, and may be ended again', async () => {
    const { schedule } = await alice.json([
      'schedule',
      'alice.test',
      '--every',
      '1h',
    ])
    const { stdout } = await alice.run(['unschedule', 'alice.test'])
    assert.match(
      stdout,
      new RegExp(`delegation revoke ${schedule.delegation.cid}`)
    )
    const again = await alice.run(['unschedule', 'alice.test'])
    assert.equal(again.code, 0)
    assert.match(again.stdout, /there was no schedule of did:plc:/)
    assert.deepEqual(await alice.json(['unschedule', account.did]), {
      account: account.did,
      schedule: null,
    })
    for (const word of ['pause', 'resume']) {
      await refused([word, 'alice.test'], 1, /has no schedule of did:plc:/)
    }
  })

  it('show how the last run went', async () => {
    await alice.json(['schedule', 'alice.test', '--every', '1h'])
    const run = (await alice.json(['schedules'])).schedules[0].delegation.cid
    await stores.schedules.claimDue({
      now: Date.now() + DAY,
      limit: 10,
      owner: 'test',
      lease: HOUR,
    })
    await stores.schedules.settle(space, account.did, 'test', {
      state: 'active',
      next: Date.now() + HOUR,
      lastRun: {
        run,
        finished: Date.parse('2026-01-02T03:04:05.678Z'),
        outcome: 'failed',
        error: { name: 'HostError', message: 'no\nanswer \u001b[31m' },
      },
      now: Date.now(),
    })
    const { stdout } = await alice.run(['schedules'])
    assert.match(stdout, / 2026-01-02T03:04:05\.678Z failed +\S+Z\n/)
    assert.match(
      stdout,
      new RegExp(`\n${account.did} failed: HostError: no answer \\?\\[31m\n$`)
    )
    const { schedules } = await alice.json(['schedules'])
    assert.equal(schedules[0].lastRun.outcome, 'failed')
    assert.equal(schedules[0].lastRun.finished, '2026-01-02T03:04:05.678Z')
    assert.equal(schedules[0].renew, null)
  })

  describe('whose delegation is about to end', () => {
    it('show the command that renews it, and it does', async () => {
      const options = ['--service', service.url.href]
      await alice.json([
        'schedule',
        'alice.test',
        '--cron',
        '30 4 * * MON-FRI',
        '--timezone',
        'Europe/Berlin',
        '--include',
        'blobs',
        '--expires-in',
        '6d',
      ])
      const { stdout } = await alice.run(['schedules', ...options])
      const command = `bluesky-backups schedule ${account.did} --cron '30 4 * * MON-FRI' --timezone Europe/Berlin --include blobs --service ${service.url.href}`
      assert.ok(
        stdout.endsWith(
          `the delegation for ${account.did} ends in 5d; renew it with \`${command}\`\n`
        ),
        stdout
      )
      const { schedules } = await alice.json(['schedules', ...options])
      assert.equal(schedules[0].renew, command)

      const words = command.match(/'[^']*'|\S+/g)!.slice(1)
      await alice.json(words.map((word) => word.replaceAll("'", '')))
      const [renewed] = (await alice.json(['schedules'])).schedules
      assert.equal(renewed.renew, null)
      assert.equal(renewed.cron, '30 4 * * MON-FRI')
      assert.deepEqual(renewed.include, ['blobs'])
      const left = Date.parse(renewed.delegation.expiration) - Date.now()
      assert.ok(left > 364 * DAY)
    })

    it('say when the agent itself has to renew what it may do', async () => {
      const bob = createAgent('bob')
      const client = await create({
        store: createAgentStore(join(bob.home, 'agent.json')),
      })
      const issuer = await ed25519.generate()
      await network.storacha.provision(issuer.did())
      const proof = await delegate({
        issuer,
        audience: client.agent,
        capabilities: [{ can: '*', with: issuer.did() }],
        expiration: Math.floor(Date.now() / 1000) + 3 * 86_400,
      })
      await client.addSpace(proof)
      await client.setCurrentSpace(issuer.did())
      const words = ['schedule', 'alice.test', '--every', '1h']
      const { code, stderr } = await bob.run(words)
      assert.equal(code, 0, stderr)
      assert.match(
        stderr,
        /^warning: what allows this agent .* ends on \S+Z; log in again with/m
      )
      const { stderr: none } = await bob.run([...words, '--expires-in', '1d'])
      assert.doesNotMatch(none, /what allows this agent/)
    })

    it('have stopped for it, and go on when it is renewed', async () => {
      await alice.json([
        'schedule',
        'alice.test',
        '--every',
        '90m',
        '--include',
        'none',
      ])
      await stores.schedules.claimDue({
        now: Date.now() + DAY,
        limit: 10,
        owner: 'test',
        lease: HOUR,
      })
      await stores.schedules.settle(space, account.did, 'test', {
        state: 'stopped',
        reason: { name: 'DelegationRevoked', message: 'it was revoked' },
        now: Date.now(),
      })
      const { stdout } = await alice.run(['schedules'])
      assert.match(stdout, / stopped +none +none yet /)
      assert.match(stdout, / stopped: DelegationRevoked: it was revoked\n/)
      const command = `schedule ${account.did} --every 90m --include none`
      assert.match(stdout, new RegExp(`with \`bluesky-backups ${command}\``))
      const { schedule } = await alice.json(command.split(' '))
      assert.equal(schedule.state, 'active')
    })
  })

  describe('need to be asked for as they can be', () => {
    const wrong: [string[], RegExp][] = [
      [[], /either --every, as in --every 1h, or --cron/],
      [['--every', '1h', '--cron', '0 4 * * *'], /either --every/],
      [['--every', '1 hour'], /--every: give a number and a unit/],
      [['--every', '0h'], /--every: give a number/],
      [['--every', '1h', '--timezone', 'UTC'], /--timezone goes with --cron/],
      [
        ['--every', '1h', '--include', 'everything'],
        /give blobs, preferences, .*, or none/,
      ],
      [['--every', '1h', '--expires-in', 'soon'], /--expires-in: give/],
      [
        ['--every', '1h', '--expires-in', '1d', '--delegation', 'x'],
        /--expires-in is for a new delegation/,
      ],
      [
        ['--every', '1h', '--delegation', 'nothing'],
        /--delegation: "nothing" is neither a file .* nor a delegation in base64/,
      ],
    ]
    for (const [options, message] of wrong) {
      it(`not with ${options.join(' ') || 'nothing'}`, () =>
        refused(['schedule', 'alice.test', ...options], 2, message))
    }

    it('not with a file that holds no delegation', async () => {
      const file = join(folder, 'nonsense')
      await writeFile(file, 'nonsense')
      await refused(
        ['schedule', 'alice.test', '--every', '1h', '--delegation', file],
        2,
        /nonsense does not hold a delegation/
      )
    })

    it('not for what is no account, nor for nonsense of time', async () => {
      for (const words of [
        ['schedule', 'did:key:z6Mk', '--every', '1h'],
        ['pause', 'did:plc:'],
        ['resume', 'did:x'],
        ['unschedule', 'did:key:z6Mk'],
      ]) {
        await refused(words, 2, /is no account; give its handle/)
      }
      await refused(['pause', 'alice.test', '--for', 'ever'], 2, /--for: give/)
    })

    it('not where the service refuses the times', async () => {
      await refused(
        ['schedule', 'alice.test', '--every', '1m'],
        1,
        /the backup service refused: every is 60 seconds; it may be from 300/
      )
      await refused(
        ['schedule', 'alice.test', '--cron', '0 4 * *'],
        1,
        /not a cron expression/
      )
    })

    it('not without a service', async () => {
      const { code, stderr } = await alice.run(['schedules'], {
        env: { BLUESKY_BACKUPS_SERVICE_URL: '' },
      })
      assert.notEqual(code, 0)
      assert.match(stderr, /service/i)
    })
  })

  it('are for those to ask for who may', async () => {
    const mallory = createAgent('mallory')
    await mallory.json(['login', 'mallory@example.com'])
    const { code, stderr } = await mallory.run([
      'schedule',
      'alice.test',
      '--every',
      '1h',
    ])
    assert.equal(code, 1)
    assert.match(stderr, /no Space is chosen/)
  })
})
