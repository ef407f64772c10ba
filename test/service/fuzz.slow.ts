import assert from 'node:assert/strict'
import { join } from 'node:path'
import { CAR as CARFile, delegate, Message } from '@ucanto/core'
import type { Delegation, Receipt } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import { CAR } from '@ucanto/transport'
import * as dagCBOR from '@ipld/dag-cbor'
import Database from 'better-sqlite3'
import fc from 'fast-check'
import type { Hono } from 'hono'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import pino from 'pino'
import { createOAuth, loopbackMetadata } from '../../src/atproto/oauth/index.ts'
import { createSafeFetch } from '../../src/atproto/safe-fetch.ts'
import { HandleNotFoundError } from '../../src/backup/index.ts'
import { systemTime, withNativeSigning } from '../../src/node/index.ts'
import { RHYTHM_LIMITS } from '../../src/scheduler/index.ts'
import { createApp } from '../../src/service/http/app.ts'
import { createGrantKeeper } from '../../src/service/grants.ts'
import { createProvisioning } from '../../src/service/provisioning.ts'
import { createRates } from '../../src/service/rates.ts'
import { createRevocations } from '../../src/service/revocations.ts'
import { createServer } from '../../src/service/server.ts'
import { createHealth } from '../../src/service/health.ts'
import { createRunFeed } from '../../src/service/run-feed.ts'
import { createWatchers } from '../../src/service/watchers.ts'
import { openStores } from '../../src/stores/index.ts'
import {
  change,
  changed,
  damage,
  damaged,
  FUZZ_CASES,
  fuzz,
  tryEncode,
  value,
} from '../fuzz.ts'
import { allow, createFolder, eventOf, seconds, type Space } from './harness.ts'

const account = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const HOUR = 3600
const CAR_TYPE = 'application/vnd.ipld.car'

/** Problems with a request, by their HTTP status. */
const PROBLEMS: Record<number, string[]> = {
  400: ['InvalidBody'],
  413: ['BodyTooLarge'],
}

const FAILURES = [
  'AccountNotFound',
  'DelegationEndsTooSoon',
  'DelegationSpaceMismatch',
  'HandlerNotFound',
  'InsufficientDelegation',
  'InvalidAudience',
  'InvalidEvent',
  'InvalidPause',
  'InvalidReturn',
  'InvalidRhythm',
  'InvocationCapabilityError',
  'MissingBlock',
  'RunNotFound',
  'ScheduleNotFound',
  'TooManyEvents',
  'TooManyHeads',
  'TooManySignatures',
  'UCANNotFound',
  'Unauthorized',
  'UnauthorizedRevocation',
]

describe('fuzzed requests', () => {
  let resources: AsyncDisposableStack
  let app: Hono
  let database: Database.Database
  let service: Space
  let space: Space
  let agent: Space
  let proof: Delegation
  let logged = ''
  const unhandled: unknown[] = []
  const onUnhandled = (reason: unknown) => unhandled.push(reason)

  before(async () => {
    resources = new AsyncDisposableStack()
    process.on('unhandledRejection', onUnhandled)
    resources.defer(() => {
      process.off('unhandledRejection', onUnhandled)
    })
    const { path: folder } = resources.use(await createFolder())
    const path = join(folder, 'fuzz.sqlite')
    const stores = resources.use(await openStores({ path }))
    database = new Database(path, { readonly: true })
    resources.defer(() => {
      database.close()
    })
    service = withNativeSigning(await ed25519.generate())
    space = withNativeSigning(await ed25519.generate())
    agent = withNativeSigning(await ed25519.generate())
    proof = await allow(space, agent, ['*'])
    const logger = pino(
      { level: 'warn' },
      { write: (line) => (logged += line) }
    )
    const time = systemTime
    const watchers = createWatchers()
    const server = await createServer({
      id: service.withDID('did:web:service.example'),
      agent: service,
      stores,
      runner: { kick: () => {} },
      identities: {
        async resolve() {
          throw new HandleNotFoundError('nobody has a handle here')
        },
      },
      grants: createGrantKeeper({
        agent: service,
        grants: stores.grants,
        oauth: createOAuth({
          metadata: loopbackMetadata(new URL('http://127.0.0.1/callback')),
          fetch: createSafeFetch({ allowPrivateNetwork: false }),
          plcUrl: new URL('https://plc.example'),
          allowHttp: false,
        }),
        readAuthorization: async () => undefined,
        time,
        logger,
      }),
      publisher: { publish: async () => false },
      sharer: {
        share: async () => ({ ok: { backups: 0, closed: 0, unreadable: 0 } }),
      },
      time,
      logger,
      authorities: [],
      rhythmLimits: RHYTHM_LIMITS,
      schedulesPerSpace: 10,
      rates: createRates({ spaceRate: 0, issuerRate: 0, agent: service.did() }),
      watchers,
      provisioning: createProvisioning({
        store: stores.spaces,
        agent: service,
        connect: () => {
          throw new Error('nobody is asked')
        },
        policy: 'off',
        maxAge: 0,
        time,
        logger,
      }),
      revocations: createRevocations({
        store: stores.revocations,
        policy: 'open',
        maxAge: 0,
        time,
        logger,
      }),
    })
    app = createApp({
      info: {
        name: 'fuzz',
        version: '0',
        did: 'did:web:service.example',
        agent: service.did(),
      },
      server,
      stores,
      logger,
      maxBodySize: 64 * 1024,
      watch: {
        watchers,
        feed: createRunFeed({ runs: stores.runs, time, logger }),
        time,
        stopping: new AbortController().signal,
      },
      isDraining: () => false,
      health: createHealth({ time, logger }),
    })
  })

  after(() => resources.disposeAsync())

  afterEach(() => {
    assert.equal(logged, '', 'nothing fails that is no fault of the request')
    assert.deepEqual(unhandled, [])
  })

  /** Changes with every commit of another connection. */
  const version = () =>
    database.pragma('data_version', { simple: true }) as number

  /** Sends a body, and checks that the answer is one there is. */
  const send = async (body: Uint8Array): Promise<string[]> => {
    const before = version()
    const response = await app.request('/', {
      method: 'POST',
      headers: { 'content-type': CAR_TYPE },
      body: body as Uint8Array<ArrayBuffer>,
    })
    if (response.status !== 200) {
      const text = await response.text()
      const { name, ...problem } = JSON.parse(text) as Record<string, string>
      assert.deepEqual(Object.keys(problem), ['message'])
      assert.ok(PROBLEMS[response.status]?.includes(name!), text)
      assert.equal(version(), before, 'nothing changes')
      return [name!]
    }
    const { receipts } = await CAR.response.decode({
      headers: {},
      body: new Uint8Array(await response.arrayBuffer()),
    })
    const names = []
    for (const { out } of receipts.values() as Iterable<Receipt>) {
      const { error } = out as { error?: Record<string, unknown> }
      const name = error ? String(error['name']) : 'ok'
      names.push(name)
      if (!error) continue
      assert.ok(FAILURES.includes(name), JSON.stringify(error))
      assert.deepEqual(Object.keys(error).sort(), ['message', 'name'])
      assert.doesNotMatch(String(error['message']), /\n\s+at |node_modules/)
    }
    if (!names.includes('ok')) {
      assert.equal(version(), before, 'nothing changes')
    }
    return names
  }

  const requestOf = async (
    ...invocations: Delegation[]
  ): Promise<Uint8Array> => {
    const message = await Message.build({ invocations: invocations as never })
    return CAR.request.encode(message).body
  }

  const invoke = async (
    capability: Record<string, unknown>,
    {
      attach = [],
      facts = {},
      ...options
    }: {
      attach?: { cid: unknown; bytes: Uint8Array }[]
      facts?: Record<string, unknown>
      proofs?: Delegation[]
    } = {}
  ) => {
    const invocation = await delegate({
      issuer: agent,
      audience: service,
      capabilities: [{ with: space.did(), ...capability }] as never,
      expiration: seconds(HOUR),
      proofs: [proof],
      facts: [
        {
          ...Object.fromEntries(attach.map(({ cid }) => [String(cid), cid])),
          ...facts,
        },
      ] as never,
      ...options,
    })
    for (const block of attach) invocation.attach(block as never)
    return invocation
  }

  /** One of each kind. */
  const samples = async () => {
    const first = await eventOf('first')
    const second = await eventOf('second', [first])
    const delegation = await allow(space, service, ['*'])
    const blocks = [...delegation.iterateIPLDBlocks()] as never[]
    return {
      advance: await invoke(
        { can: 'clock/advance', nb: { event: second.cid } },
        { attach: [first, second] }
      ),
      head: await invoke({ can: 'clock/head' }),
      run: await invoke(
        {
          can: 'backup/run',
          nb: { account, include: ['blobs'], delegation: delegation.cid },
        },
        { attach: blocks }
      ),
      status: await invoke({ can: 'backup/status', nb: {} }),
      revoke: await invoke(
        { can: 'ucan/revoke', nb: { ucan: delegation.cid } },
        { attach: blocks }
      ),
    }
  }

  it('whose bytes are damaged are refused by name', async () => {
    const bodies = [
      ...(await Promise.all(
        Object.values(await samples()).map((sample) => requestOf(sample))
      )),
      await requestOf(...Object.values(await samples())),
    ]
    const seen = new Set<string>()
    await fuzz(
      fc.tuple(
        fc.nat(),
        fc.nat(),
        fc.array(damage, { minLength: 1, maxLength: 3 })
      ),
      FUZZ_CASES * 0.2,
      async ([which, other, harms]) => {
        let body = bodies[which % bodies.length]!
        for (const harm of harms) {
          body = damaged(body, bodies[other % bodies.length]!, harm)
        }
        for (const name of await send(body)) seen.add(name)
      }
    )
    assert.ok(seen.has('InvalidBody') && seen.size > 1, [...seen].join())
  })

  it('whose blocks are others are refused by name', async () => {
    const sample = Object.values(await samples())
    const cars = await Promise.all(
      sample.map(async (one) => CARFile.decode((await requestOf(one)) as never))
    )
    const seen = new Set<string>()
    await fuzz(
      fc.tuple(fc.nat(), fc.nat(), change, fc.boolean()),
      FUZZ_CASES * 0.1,
      async ([which, at, how, isLinked]) => {
        const { roots, blocks } = cars[which % cars.length]!
        const list = [...blocks.values()] as { cid: CID; bytes: Uint8Array }[]
        const victim = list[at % list.length]!
        const bytes =
          tryEncode(changed(dagCBOR.decode(victim.bytes), how)) ?? victim.bytes
        const cid = CID.createV1(dagCBOR.code, await sha256.digest(bytes))
        // Where all that link to it link to the new one, it is read as before.
        const relinked = isLinked
          ? await relink(list, victim.cid, { cid, bytes })
          : list.map((block) => (block === victim ? { cid, bytes } : block))
        const root =
          relinked[list.findIndex((b) => b.cid.equals(roots[0]!.cid))]
        const body = CARFile.encode({
          roots: [root],
          blocks: new Map(relinked.map((block) => [`${block.cid}`, block])),
        } as never)
        for (const name of await send(body)) seen.add(name)
      }
    )
    assert.ok(seen.has('Unauthorized') && seen.has('InvalidBody'))
  })

  it('that are signed, and ask for anything, are answered by name', async () => {
    const delegation = await allow(space, service, ['*'])
    const attach = [...delegation.iterateIPLDBlocks()] as never[]
    const field = fc.oneof(
      fc.constantFrom('*', '0', '*/5', '1-5', '61', 'L', 'mon#2', '?'),
      fc.string({ maxLength: 4 })
    )
    const cron = fc
      .array(field, { minLength: 4, maxLength: 7 })
      .map((fields) => fields.join(' '))
    const capabilities = fc.oneof(
      fc.record({
        can: fc.constantFrom(
          'authorization/complete',
          'authorization/list',
          'authorization/request',
          'authorization/revoke',
          'authorization/share',
          'backup/pause',
          'backup/perform',
          'backup/resume',
          'backup/run',
          'backup/schedule',
          'backup/schedules',
          'backup/status',
          'backup/unschedule',
          'clock/*',
          'clock/advance',
          'clock/head',
          'ucan/revoke'
        ),
        nb: fc.oneof(
          value,
          fc.record(
            {
              event: value,
              account: fc.oneof(fc.constant(account), value),
              include: fc.oneof(fc.constant(['blobs']), value),
              delegation: fc.oneof(fc.constant(delegation.cid), value),
              every: fc.oneof(fc.integer(), value),
              cron: fc.oneof(cron, value),
              timezone: fc.oneof(fc.constant('Europe/Berlin'), value),
              until: fc.oneof(
                fc.integer(),
                fc.integer({ min: -10, max: 1000 }).map(seconds),
                value
              ),
              returnTo: fc.oneof(fc.webUrl(), value),
              agent: fc.oneof(fc.constant(space.did()), value),
              before: fc.oneof(fc.constant('2025-03-12T15:13:59.958Z'), value),
              run: value,
              ucan: fc.oneof(fc.constant(delegation.cid), value),
              proof: value,
            },
            { requiredKeys: [] }
          )
        ),
      })
    )
    const seen = new Set<string>()
    await fuzz(
      fc.tuple(capabilities, fc.dictionary(fc.string(), value, { maxKeys: 2 })),
      FUZZ_CASES * 0.1,
      async ([capability, facts]) => {
        let body: Uint8Array
        try {
          body = await requestOf(await invoke(capability, { attach, facts }))
        } catch {
          // UCANs have no encoding for it: nobody can send it.
          return
        }
        for (const name of await send(body)) seen.add(name)
      }
    )
    assert.deepEqual(
      ['InvalidPause', 'InvalidRhythm', 'Unauthorized', 'ok'].filter(
        (name) => !seen.has(name)
      ),
      []
    )
  })

  it('that are signed, with events of any kind, are answered by name', async () => {
    const first = await eventOf('first')
    const valid = { data: first.cid, parents: [first.cid] }
    const seen = new Set<string>()
    await fuzz(
      fc.tuple(fc.array(change, { maxLength: 2 }), damage, fc.boolean()),
      FUZZ_CASES * 0.1,
      async ([changes, harm, isDamaged]) => {
        const clean = tryEncode(changes.reduce(changed, valid as unknown))
        let bytes = clean ?? first.bytes
        if (isDamaged) bytes = damaged(bytes, first.bytes, harm)
        const cid = CID.createV1(dagCBOR.code, await sha256.digest(bytes))
        const invocation = await invoke(
          { can: 'clock/advance', nb: { event: cid } },
          { attach: [{ cid, bytes }, first] }
        )
        for (const name of await send(await requestOf(invocation))) {
          seen.add(name)
        }
      }
    )
    assert.deepEqual(
      ['InvalidEvent', 'MissingBlock', 'ok'].filter((name) => !seen.has(name)),
      []
    )
  })
})

type Block = { cid: CID; bytes: Uint8Array }

/** The blocks with another in the place of one, and links to it where there were to that. */
async function relink(
  blocks: Block[],
  victim: CID,
  mutant: Block
): Promise<Block[]> {
  const replaced = new Map([[victim.toString(), mutant]])
  for (let isDone = false; !isDone;) {
    isDone = true
    for (const block of blocks) {
      const old = replaced.get(block.cid.toString()) ?? block
      if (block.cid.equals(victim)) continue
      const value = withLinks(dagCBOR.decode(block.bytes), replaced)
      const bytes = tryEncode(value) ?? old.bytes
      const cid = CID.createV1(dagCBOR.code, await sha256.digest(bytes))
      if (cid.equals(old.cid)) continue
      replaced.set(block.cid.toString(), { cid, bytes })
      isDone = false
    }
  }
  return blocks.map((block) => replaced.get(block.cid.toString()) ?? block)
}

function withLinks(value: unknown, replaced: Map<string, Block>): unknown {
  const link = CID.asCID(value)
  if (link) return replaced.get(link.toString())?.cid ?? link
  if (typeof value !== 'object' || value === null) return value
  if (value instanceof Uint8Array) return value
  if (Array.isArray(value)) {
    return value.map((part) => withLinks(part, replaced))
  }
  return Object.fromEntries(
    Object.entries(value).map(([key, part]) => [key, withLinks(part, replaced)])
  )
}
