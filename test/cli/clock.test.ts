import assert from 'node:assert/strict'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { CID } from 'multiformats/cid'
import { openStores } from '../../src/stores/index.ts'
import { createSha256 } from '../../src/backup/index.ts'
import { shardDigestOf } from '../../src/backup/packer.ts'
import { ShardBuilder } from '../../src/backup/shard.ts'
import { openWriter } from '../../src/cli/writer.ts'
import { openSession } from '../../src/cli/session.ts'
import type { RunningService } from '../../src/service/index.ts'
import {
  createEvent,
  encodeState,
  readEvent,
  setAuthorization,
  type Block,
  type DID,
  type Event,
  type EventLink,
  type Link,
  type State,
} from '../../src/space/index.ts'
import {
  seedAccount,
  startNetwork,
  type Account,
  type Network,
} from '../network/index.ts'
import { Agent, createFolder, startTestService } from './harness.ts'

/** Where no service is. */
const NOWHERE = 'http://127.0.0.1:9/'

describe('the clock on the command line', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let folder: string
  let alice: Account
  let services = 0

  const startOne = async (): Promise<RunningService> =>
    resources.use(
      await startTestService(network, join(folder, `service-${services++}`))
    )

  /** An agent with a Space. */
  const createAgent = async (
    name: string,
    env: Record<string, string> = {}
  ): Promise<Agent> => {
    const agent = new Agent(join(folder, name), {
      ...network.environment,
      ...env,
    })
    await agent.json(['login', `${name}@example.com`])
    await agent.json(['space', 'create', name])
    return agent
  }

  /** Backs the account up with something new in it. */
  const backUp = async (agent: Agent, flags: string[] = []) => {
    await alice.agent.post({
      text: 'news',
      createdAt: new Date().toISOString(),
    })
    const { outcome } = await agent.json([
      'backup',
      'run',
      alice.did,
      '--here',
      ...flags,
    ])
    return outcome as { event: string; timestamp: string }
  }

  const headOf = async (agent: Agent, flags: string[] = []) =>
    (await agent.json(['clock', 'head', ...flags])).head as string[]

  before(async () => {
    folder = resources.use(await createFolder()).path
    network = resources.use(await startNetwork())
    alice = await network.pds.createAccount({ handle: 'alice.test' })
    await seedAccount(alice.agent, { posts: 3, blobs: [] })
  })

  after(() => resources.disposeAsync())

  describe('without a service', () => {
    let agent: Agent
    let events: string[]
    let timestamps: string[]

    before(async () => {
      agent = await createAgent('hermit')
    })

    it('has no events before the first backup', async () => {
      for (const words of [['head'], ['log'], ['log', '--graph'], ['merge']]) {
        const { code, stdout } = await agent.run(['clock', ...words])
        assert.equal(code, 0)
        assert.match(stdout, /^no events yet/)
      }
      const { head, service } = await agent.json(['clock', 'head'])
      assert.deepEqual([head, service], [[], null])
      assert.deepEqual((await agent.json(['clock', 'log'])).events, [])
      const { merges } = await agent.json(['clock', 'merge'])
      assert.deepEqual(merges, [])
    })

    it('shows its head', async () => {
      const outcomes = [await backUp(agent), await backUp(agent)]
      events = outcomes.map(({ event }) => event)
      timestamps = outcomes.map(({ timestamp }) => timestamp)
      assert.deepEqual(await headOf(agent), [events[1]])
      const { stdout } = await agent.run(['clock', 'head'])
      assert.equal(stdout, `${events[1]}\n`)
    })

    it('logs events, the newest first', async () => {
      const { events: logged, more } = await agent.json(['clock', 'log'])
      assert.deepEqual(
        logged.map((each: { event: string }) => each.event),
        events.toReversed()
      )
      assert.equal(more, false)
      assert.deepEqual(logged[0].parents, [events[0]])
      assert.deepEqual(
        logged.map((each: { isHead: boolean }) => each.isHead),
        [true, false]
      )
      for (const [i, timestamp] of timestamps.toReversed().entries()) {
        assert.deepEqual(logged[i].accounts, [
          { account: alice.did, lastBackup: timestamp },
        ])
        assert.match(logged[i].state, /^bafyrei/)
      }
      const { stdout } = await agent.run(['clock', 'log'])
      assert.ok(
        stdout.startsWith(
          `${events[1]} (head)\n  parents  ${events[0]}\n  state    ${logged[0].state}\n`
        ),
        stdout
      )
      assert.ok(stdout.includes(`${alice.did}  last backup ${timestamps[0]}`))
    })

    it('draws its history', async () => {
      const { stdout } = await agent.run(['clock', 'log', '--graph'])
      assert.equal(
        stdout,
        [
          `●  ${events[1]} (head)`,
          `│    ${alice.did}  last backup ${timestamps[1]}`,
          `●  ${events[0]}`,
          `     ${alice.did}  last backup ${timestamps[0]}`,
          '',
        ].join('\n')
      )
    })

    it('writes its history for Graphviz', async () => {
      const { stdout } = await agent.run(['clock', 'log', '--dot'])
      assert.match(stdout, /^digraph clock \{\n[\s\S]*\n\}\n$/)
      assert.ok(stdout.includes(`  "${events[1]}" -> "${events[0]}"\n`))
    })

    it('logs as many events as asked for', async () => {
      const limited = await agent.json(['clock', 'log', '--limit', '1'])
      assert.equal(limited.events.length, 1)
      assert.equal(limited.more, true)
      const { stdout } = await agent.run(['clock', 'log', '--limit', '1'])
      assert.match(stdout, /there are earlier events; --limit shows more\n$/)
      const graph = await agent.run([
        ...['clock', 'log', '--graph', '--limit', '1'],
      ])
      assert.match(graph.stdout, /\n┊\n$/)
    })

    it('inspects an event and its state', async () => {
      const json = await agent.json(['clock', 'inspect', events[1]!])
      assert.equal(json.event, events[1])
      assert.deepEqual(json.parents, [events[0]])
      assert.deepEqual(json.accounts, [
        {
          account: alice.did,
          authorizations: [],
          backups: 2,
          lastBackup: timestamps[1],
          error: null,
        },
      ])
      const { stdout } = await agent.run(['clock', 'inspect', events[0]!])
      assert.match(stdout, /^event +bafyrei\w+\nparents +none\nstate +bafyrei/)
      assert.match(stdout, /\nbackups +1\nlast backup +\d{4}-/)
    })

    it('inspects who is authorized', async () => {
      const tools = await openTools(agent)
      await using _ = tools
      const { data } = await readEvent(tools.reader, parse(events[1]!))
      const { root, additions } = await setAuthorization(tools.reader, data, {
        account: alice.did as DID,
        agent: 'did:key:z6MkAlice',
        authorization: {
          sealed: new Uint8Array([1, 2, 3]),
          expiration: 1_900_000_000,
          seq: 7,
        },
      })
      const event = await createEvent(root, [parse(events[1]!)])
      await tools.put([...additions, event])
      const cid = event.cid.toString()
      const { accounts } = await agent.json(['clock', 'inspect', cid])
      assert.deepEqual(accounts[0].authorizations, [
        {
          agent: 'did:key:z6MkAlice',
          seq: 7,
          expiration: '2030-03-17T17:46:40.000Z',
        },
      ])
      const { stdout } = await agent.run(['clock', 'inspect', cid])
      assert.match(stdout, /\ndid:key:z6MkAlice +7 +2030-03-17T17:46:40.000Z/)
    })

    it('is told of an event, and merges heads', async () => {
      const tools = await openTools(agent)
      await using _ = tools
      const { data } = await readEvent(tools.reader, parse(events[0]!))
      const { root, additions } = await setAuthorization(tools.reader, data, {
        account: alice.did as DID,
        agent: 'did:key:z6MkBob',
        authorization: { sealed: new Uint8Array([1]), expiration: 1, seq: 1 },
      })
      const event = await createEvent(root, [parse(events[0]!)])
      const sibling = event.cid.toString()
      const missing = await agent.run(['clock', 'advance', sibling, '--json'])
      assert.equal(missing.code, 1)
      assert.equal(missing.json.error.name, 'MissingEventError')
      await tools.put([...additions, event])

      const told = await agent.json(['clock', 'advance', sibling])
      assert.equal(told.advanced, true)
      const both = [events[1]!, sibling].sort()
      assert.deepEqual(told.head, both)
      assert.deepEqual(await headOf(agent), both)
      const again = await agent.run(['clock', 'advance', sibling])
      assert.equal(again.code, 0)
      assert.match(again.stdout, /^the clock knew the event already/)
      assert.match(again.stdout, /2 heads; `bluesky-backups clock merge`/)

      const { merges, head } = await agent.json(['clock', 'merge'])
      assert.equal(merges.length, 1)
      assert.deepEqual(merges[0].merged, both)
      assert.deepEqual(head, [merges[0].event])
      assert.deepEqual(await headOf(agent), head)
      // What was merged is in the Space, for everybody to read.
      const merged = await agent.json(['clock', 'inspect', head[0]])
      assert.deepEqual(merged.parents.toSorted(), both)
      assert.equal(merged.accounts[0].backups, 2)
      assert.equal(merged.accounts[0].authorizations[0].seq, 1)
      const graph = await agent.run(['clock', 'log', '--graph'])
      assert.match(graph.stdout, /^● {2}\w+ \(head\)\n.*\n├─╮\n/)

      const { code, stdout } = await agent.run(['clock', 'merge'])
      assert.equal(code, 0)
      assert.equal(
        stdout,
        `nothing to merge: the clock has one head\n${head[0]}\n`
      )
      const nothing = await agent.json(['clock', 'merge'])
      assert.deepEqual(nothing.merges, [])
    })

    it('shows what it cannot read, beside what it can', async () => {
      const head = (await headOf(agent))[0]!
      const tools = await openTools(agent)
      const { data } = await readEvent(tools.reader, parse(head))
      const stateless = await createEvent(await absentState(), [parse(head)])
      const absent = await createEvent(data, [parse(head)])
      await tools.put([stateless])
      const { did } = await agent.json(['space', 'ls']).then(
        ({ spaces }) =>
          spaces.find((space: { current: boolean }) => space.current) as {
            did: string
          }
      )
      await tools[Symbol.asyncDispose]()
      {
        await using stores = await openStores({
          path: join(agent.home, 'agent.sqlite'),
        })
        for (const { cid, bytes } of [stateless, absent]) {
          await stores.clock.advance(did, [
            { event: cid.toString(), parents: [head], bytes },
          ])
        }
      }
      const { events: logged } = await agent.json(['clock', 'log'])
      const byCid = new Map(
        logged.map((each: { event: string }) => [each.event, each])
      )
      const gone = byCid.get(absent.cid.toString()) as never as {
        state: null
        error: { name: string }
      }
      assert.equal(gone.state, null)
      assert.equal(gone.error.name, 'MissingBlockError')
      const half = byCid.get(stateless.cid.toString()) as never as {
        parents: string[]
        accounts: null
        error: { name: string }
      }
      assert.deepEqual(half.parents, [head])
      assert.equal(half.accounts, null)
      assert.equal(half.error.name, 'MissingBlockError')
      assert.ok(byCid.has(events[0]!))
      const graph = await agent.run(['clock', 'log', '--graph'])
      assert.equal(graph.code, 0)
      assert.ok(graph.stdout.includes(`○  ${absent.cid} (head) (missing)`))
      const dot = await agent.run(['clock', 'log', '--dot'])
      assert.match(dot.stdout, /\(missing\).*style=dashed/)

      const inspected = await agent.run([
        ...['clock', 'inspect', stateless.cid.toString(), '--json'],
      ])
      assert.equal(inspected.code, 1)
      assert.equal(inspected.json.accounts, null)
      assert.equal(inspected.json.error.name, 'MissingBlockError')
      const merged = await agent.run(['clock', 'merge', '--json'])
      assert.equal(merged.code, 1)
      assert.deepEqual(merged.json.merges, [])
      assert.match(merged.stderr, /cannot be read are left in place.*clock log/)
      const told = await agent.run(['clock', 'merge'])
      assert.match(told.stdout, /^nothing was merged\n/)
      assert.equal((await headOf(agent)).length, 2)
    })
  })

  describe('with services', () => {
    let first: RunningService
    let second: RunningService
    let agent: Agent
    let events: string[]

    before(async () => {
      first = await startOne()
      second = await startOne()
      agent = await createAgent('alice', {
        BLUESKY_BACKUPS_SERVICE_URL: first.url.href,
      })
      events = []
      for (let i = 0; i < 3; i++) events.push((await backUp(agent)).event)
    })

    it('shows head, log and event', async () => {
      const { head, service } = await agent.json(['clock', 'head'])
      assert.deepEqual(head, [events[2]])
      assert.equal(service, first.url.href)
      const { events: logged } = await agent.json(['clock', 'log'])
      assert.deepEqual(
        logged.map((each: { event: string }) => each.event),
        events.toReversed()
      )
      const { accounts } = await agent.json(['clock', 'inspect', events[2]!])
      assert.equal(accounts[0].backups, 3)
    })

    it('tells a service of an event and those before it', async () => {
      const third = await startOne()
      const flags = ['--service', third.url.href]
      const told = await agent.json([
        ...['clock', 'advance', events[1]!, ...flags],
      ])
      assert.equal(told.advanced, true)
      assert.deepEqual(told.head, [events[1]])
      const { stdout } = await agent.run([
        ...['clock', 'advance', events[2]!, ...flags],
      ])
      assert.match(stdout, /^the clock knows the event now; its head:\nbafyrei/)
      assert.deepEqual(await headOf(agent, flags), [events[2]])
    })

    it('tells no service of an event without a state', async () => {
      const tools = await openTools(agent)
      await using _ = tools
      const stateless = await createEvent(await absentState(), [
        parse(events[2]!),
      ])
      await tools.put([stateless])
      const { code, json } = await agent.run([
        ...['clock', 'advance', stateless.cid.toString(), '--json'],
      ])
      assert.equal(code, 1)
      assert.match(json.error.message, /state .* cannot be read.*left as it is/)
      assert.deepEqual(await headOf(agent), [events[2]])
    })

    it('moves to another service, and moving again changes nothing', async () => {
      const argv = ['clock', 'fork', '--to', second.url.href]
      const moved = await agent.json(argv)
      assert.equal(moved.events, 3)
      assert.deepEqual(moved.head, [events[2]])
      const flags = ['--service', second.url.href]
      assert.deepEqual(await headOf(agent, flags), [events[2]])
      const again = await agent.json(argv)
      assert.equal(again.events, 0)
      assert.deepEqual(again.head, moved.head)
      const { code, stdout } = await agent.run(argv)
      assert.equal(code, 0)
      assert.match(stdout, /has all events already; its head:\nbafyrei\w+\n/)
      const { backups } = await agent.json(['backup', 'ls', ...flags])
      assert.equal(backups.length, 3)
    })

    it('moves although the old service is gone', async () => {
      const third = await startOne()
      const argv = ['clock', 'fork', '--to', third.url.href]
      const dead = { env: { BLUESKY_BACKUPS_SERVICE_URL: NOWHERE } }
      await rm(join(agent.home, 'heads'), { recursive: true })
      const lost = await agent.run([...argv, '--json'], dead)
      assert.equal(lost.code, 1)
      assert.equal(lost.json.error.name, 'MissingEventError')
      assert.match(lost.json.error.message, /--event CID/)
      assert.match(lost.stderr, /warning: the head at .* is not known/)
      const { stdout, stderr, code } = await agent.run(
        [...argv, '--event', events[1]!, '--event', events[2]!],
        dead
      )
      assert.equal(code, 0, stderr)
      assert.match(stdout, /was told of 3 events; its head:/)
      const flags = ['--service', third.url.href]
      assert.deepEqual(await headOf(agent, flags), [events[2]])
    })

    it('moves from the head that the old service told last', async () => {
      const head = await headOf(agent)
      const third = await startOne()
      const { code, stderr } = await agent.run(
        ['clock', 'fork', '--to', third.url.href],
        { env: { BLUESKY_BACKUPS_SERVICE_URL: NOWHERE } }
      )
      assert.equal(code, 0, stderr)
      assert.deepEqual(await headOf(agent, ['--service', third.url.href]), head)
    })

    it('moves from the clock of the agent itself', async () => {
      const loner = await createAgent('loner')
      const { event } = await backUp(loner)
      const third = await startOne()
      const moved = await loner.json(
        ['clock', 'fork', '--to', third.url.href],
        { env: { BLUESKY_BACKUPS_SERVICE_URL: NOWHERE } }
      )
      assert.equal(moved.events, 1)
      assert.deepEqual(moved.head, [event])

      const argv = ['clock', 'diverge', '--with', third.url.href]
      const same = await loner.json(argv)
      assert.equal(same.service, null)
      assert.equal(same.relation, 'same')
      const there = await backUp(loner, ['--service', third.url.href])
      const behind = await loner.run(argv)
      assert.equal(behind.code, 1)
      assert.match(behind.stdout, /^this agent's own clock is behind http/)
      const here = await backUp(loner)
      const merged = await loner.json([...argv, '--merge'])
      assert.equal(merged.before.relation, 'diverged')
      assert.equal(merged.relation, 'same')
      assert.deepEqual(
        merged.merges[0].merged,
        [here.event, there.event].sort()
      )
      assert.deepEqual(await headOf(loner), merged.head)
    })

    it('moves however many events there are, unless one is missing', async () => {
      const tools = await openTools(agent)
      await using _ = tools
      const { data } = await readEvent(tools.reader, parse(events[2]!))
      const root = parse(events[2]!)
      const chains: Block<Event>[][] = []
      for (const length of [300, 270]) {
        const chain: Block<Event>[] = []
        let parents = [root]
        for (let i = 0; i < length; i++) {
          // Each other than those beside it.
          const other = i === 0 && length === 300 ? [parse(events[1]!)] : []
          const event = await createEvent(data, [...parents, ...other])
          chain.push(event)
          parents = [event.cid]
        }
        chains.push(chain)
      }
      const tips = chains.map((chain) => chain.at(-1)!.cid)
      const top = await createEvent(data, tips)
      // One of them comes later.
      const late = chains[0]![10]!
      await tools.put([...chains.flat().filter((event) => event !== late), top])
      const third = await startOne()
      const argv = [
        ...['clock', 'fork', '--to', third.url.href],
        ...['--event', top.cid.toString()],
      ]
      const failed = await agent.run([...argv, '--json'])
      assert.equal(failed.code, 1)
      assert.equal(failed.json.error.name, 'MissingEventError')
      assert.ok(failed.json.error.message.includes(late.cid.toString()))
      const flags = ['--service', third.url.href]
      assert.deepEqual(await headOf(agent, flags), [])
      const tooMany = await agent.run([
        ...['clock', 'advance', tips[1]!.toString(), ...flags, '--json'],
      ])
      assert.equal(tooMany.code, 1)
      assert.equal(tooMany.json.error.name, 'TooManyEvents')
      assert.match(tooMany.json.error.message, /clock fork --to/)
      const orphan = await agent.run([
        ...['clock', 'advance', chains[0]![12]!.cid.toString()],
        ...[...flags, '--json'],
      ])
      assert.equal(orphan.json.error.name, 'MissingEventError')
      assert.ok(orphan.json.error.message.includes(late.cid.toString()))
      // A clock that the agent keeps itself is told in other ways.
      const bystander = await createAgent('bystander')
      const alone = await bystander.run([
        ...['clock', 'advance', tips[1]!.toString(), '--json'],
      ])
      assert.equal(alone.json.error.name, 'TooManyEvents')
      assert.match(alone.json.error.message, /clock diverge --with URL --merge/)
      assert.deepEqual(await headOf(bystander), [])

      await tools.put([late])
      const moved = await agent.json(argv)
      assert.equal(moved.events, 574)
      assert.deepEqual(moved.head, [top.cid.toString()])
      assert.equal((await agent.json(argv)).events, 0)
    }).timeout(120_000)

    it('compares clocks, and brings them together', async () => {
      const argv = ['clock', 'diverge', '--with', second.url.href]
      const same = await agent.json(argv)
      assert.equal(same.relation, 'same')
      const agreed = await agent.run(argv)
      assert.equal(agreed.stdout, `the clocks agree:\n${events[2]}\n`)

      const here = await backUp(agent)
      const ahead = await agent.run([...argv, '--json'])
      assert.equal(ahead.code, 1)
      assert.equal(ahead.json.relation, 'ahead')
      const backwards = await agent.run([
        ...['clock', 'diverge', '--with', first.url.href],
        ...['--service', second.url.href],
      ])
      assert.equal(backwards.code, 1)
      assert.match(backwards.stdout, /is behind .*; --merge brings them/)

      const there = await backUp(agent, ['--service', second.url.href])
      const apart = await agent.run([...argv, '--json'])
      assert.equal(apart.json.relation, 'diverged')
      assert.deepEqual(apart.json.head, [here.event])
      assert.deepEqual(apart.json.otherHead, [there.event])
      const told = await agent.run(argv)
      assert.match(told.stdout, /^the clocks differ: each has events/)

      const merged = await agent.json([...argv, '--merge'])
      assert.equal(merged.relation, 'same')
      assert.deepEqual(merged.events, { here: 1, there: 1 })
      assert.equal(merged.merges.length, 1)
      assert.deepEqual(
        merged.merges[0].merged,
        [here.event, there.event].sort()
      )
      for (const { url } of [first, second]) {
        const flags = ['--service', url.href]
        assert.deepEqual(await headOf(agent, flags), [merged.merges[0].event])
        const { backups } = await agent.json(['backup', 'ls', ...flags])
        assert.equal(backups.length, 5)
      }
      const again = await agent.run([...argv, '--merge'])
      assert.equal(again.code, 0)
      assert.match(again.stdout, /^the clocks agree:\n/)
    })

    it('catches up without a merge', async () => {
      const { event } = await backUp(agent)
      const { stdout, code } = await agent.run([
        ...['clock', 'diverge', '--with', second.url.href, '--merge'],
      ])
      assert.equal(code, 0)
      assert.match(stdout, /was told of 0 events, .* of 1 event\n/)
      assert.ok(stdout.endsWith(`the clocks agree:\n${event}\n`))
    })

    it('merges the heads at a service', async () => {
      const flags = ['--service', second.url.href]
      const here = await backUp(agent)
      const there = await backUp(agent, flags)
      const told = await agent.json(['clock', 'advance', there.event])
      assert.deepEqual(told.head, [here.event, there.event].sort())
      const { stdout, code } = await agent.run(['clock', 'merge'])
      assert.equal(code, 0)
      assert.match(stdout, /^merged 2 heads\n( {2}merged +bafyrei\w+\n){2} /)
      const head = await headOf(agent)
      assert.equal(head.length, 1)
      assert.ok(stdout.includes(`  into    ${head[0]}\n`), stdout)
    })

    it('does not move to a service that does not accept the agent', async () => {
      const stranger = resources.use(
        await startTestService(network, join(folder, 'stranger'), {
          trustedAuthorities: '',
        })
      )
      // This device has the Space by its login alone.
      const device = new Agent(join(folder, 'device'), agent.env)
      await device.json(['login', 'alice@example.com'])
      await device.json(['space', 'use', 'alice'])
      const argv = ['clock', 'fork', '--to', stranger.url.href]
      const { code, json } = await device.run([...argv, '--json'])
      assert.equal(code, 1)
      assert.equal(json.error.name, 'Unauthorized')
      assert.match(json.error.message, /log in again.*trusts/)
      const flags = ['--service', stranger.url.href]
      assert.deepEqual(await headOf(agent, flags), [])
    })

    it('of mallory has no say in the Space of alice', async () => {
      const mallory = await createAgent('mallory', {
        BLUESKY_BACKUPS_SERVICE_URL: first.url.href,
      })
      const before = await headOf(agent)
      // Events are public; it is the clock of her own Space that takes them.
      const taken = await mallory.json(['clock', 'advance', before[0]!])
      assert.notEqual(taken.space, (await agent.json(['clock', 'head'])).space)
      const { event } = await backUp(mallory)
      assert.deepEqual(await headOf(mallory), [event])
      assert.deepEqual(await headOf(agent), before)
    })
  })

  describe('bad input', () => {
    let agent: Agent
    const unknown =
      'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
    const raw = 'bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'

    before(async () => {
      agent = await createAgent('careless')
    })

    for (const [argv, message] of [
      [['inspect'], /missing required argument 'event'/],
      [['inspect', 'nothing'], /"nothing" is not the CID of an event/],
      [['inspect', raw], /is not the CID of an event/],
      [['advance', 'nothing'], /"nothing" is not the CID of an event/],
      [['log', '--limit', '0'], /--limit: must be a whole number from 1/],
      [['log', '--graph', '--dot'], /give one of --graph and --dot/],
      [['fork'], /required option '--to <URL>'/],
      [['fork', '--to', 'ftp://x'], /--to: must be an http or https URL/],
      [
        ['fork', '--to', NOWHERE, '--event', 'nothing'],
        /"nothing" is not the CID of an event/,
      ],
      [['diverge'], /required option '--with <URL>'/],
      [['diverge', '--with', 'x'], /--with: must be an http or https URL/],
    ] as const) {
      it(argv.join(' '), async () => {
        const { code, stderr } = await agent.run(['clock', ...argv])
        assert.equal(code, 2)
        assert.match(stderr, message)
      })
    }

    for (const argv of [
      ['inspect', unknown],
      ['advance', unknown],
    ]) {
      it(`${argv[0]} of an unknown event`, async () => {
        const { code, json } = await agent.run(['clock', ...argv, '--json'])
        assert.equal(code, 1)
        assert.equal(json.error.name, 'MissingEventError')
        assert.match(json.error.message, /the Space does not have the event/)
        assert.deepEqual(await headOf(agent), [])
      })
    }

    for (const argv of [
      ['head', '--service', NOWHERE],
      ['fork', '--to', NOWHERE, '--event', unknown],
      ['diverge', '--with', NOWHERE],
    ]) {
      it(`${argv[0]} without a service there`, async () => {
        const { code, stderr } = await agent.run(['clock', ...argv])
        assert.equal(code, 1)
        assert.match(stderr, /^error: http:\/\/127.0.0.1:9\/ cannot be reached/)
      })
    }
  })
})

function parse(event: string): EventLink {
  return CID.parse(event) as EventLink
}

/** A state that is in no Space. */
async function absentState(): Promise<Link<State>> {
  const block = await encodeState({
    ['did:plc:absent' as DID]: parse(
      'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
    ) as never,
  })
  return block.cid
}

/** The Space of an agent, to read and to write any blocks. */
async function openTools(agent: Agent) {
  const signal = new AbortController().signal
  const session = await openSession(
    {
      argv: [],
      env: agent.env,
      stdout: new PassThrough(),
      stderr: new PassThrough(),
      signal,
    },
    {}
  )
  const writer = openWriter(session, signal)
  return {
    reader: session.reader,
    async put(blocks: Block[]) {
      const builder = new ShardBuilder(8 * 1024 * 1024)
      for (const { cid, bytes } of blocks) {
        builder.add(cid.bytes, cid.multihash.digest, bytes)
      }
      const { bytes, slices } = builder.seal()
      const digest = shardDigestOf(createSha256, bytes)
      await writer.putShard({ digest, bytes })
      await writer.publishIndex({
        content: blocks.at(-1)!.cid,
        shards: [{ digest, size: bytes.length, slices }],
      })
      session.reader.keep(blocks)
    },
    [Symbol.asyncDispose]: () => session[Symbol.asyncDispose](),
  }
}
