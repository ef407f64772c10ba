import { fork } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import {
  chainOf,
  createSpace,
  fill,
  send,
  signAdvance,
  signHead,
  type Event,
  type Server,
  type Space,
} from './clock-load.ts'
import {
  median,
  timesAsMuch,
  timesMore,
  type Measurement,
} from './measurement.ts'
import { startServiceProcess } from './setup.ts'

const CONNECTIONS = [1, 32]
const ADVANCES = 640
/** Where the peer walks through the history, it takes its time. */
const SLOW_ADVANCES = 320
/** Events of a clock that its stale writers have missed. */
const HISTORY = 1_000
/** Writers at the same clock at the same time. */
const WRITERS = 32
/** Stale ones: the head has room for what they write and what they missed. */
const STALE_WRITERS = 16
/** Rounds that count, and those before them, for warming up. */
const ROUNDS = { measured: 3, warm: 3 }
const SLOW_ROUNDS = { measured: 2, warm: 1 }
/** Events of the clocks whose advances are timed. */
const SIZES = [10, 1_000, 10_000, 100_000]
const SAMPLES = 300

/**
 * How a writer stands to the head of the clock. `fresh`: it knows the head.
 * `stale`: it goes on from the first event of a clock that has a long history.
 * `concurrent`: it goes on from the head, as 31 others do.
 */
const KINDS = ['fresh', 'stale', 'concurrent'] as const
type Kind = (typeof KINDS)[number]

/** Advances of a clock, those of a writer one after another. */
interface Work {
  space: Space
  history: Event[]
  writers: Event[][]
}

/** A store, our service on it, and the limit of such a store. */
interface Contestant {
  store: string
  ours: Server
  limit: Server
}

/**
 * Advances and heads a second over HTTP, beside a w3clock-style server on
 * synced files, and beside the limit: a server that does nothing but check one
 * signature and commit one row to the same store. And what an advance costs as
 * the clock grows.
 */
export async function run(say: (line: string) => void): Promise<Measurement[]> {
  await using resources = new AsyncDisposableStack()
  const contestants = [resources.use(await startOnSqlite())]
  const { TEST_DATABASE_URL } = process.env
  if (TEST_DATABASE_URL) {
    contestants.push(resources.use(await startOnPostgres(TEST_DATABASE_URL)))
  } else {
    say('PostgreSQL is left out: TEST_DATABASE_URL names none')
  }
  const peer = resources.use(
    await startServer('clock-peer.ts', 'w3clock-style server')
  )
  const measurements: Measurement[] = []
  const servers = contestants.map(({ ours }) => ours)

  for (const connections of CONNECTIONS) {
    for (const kind of KINDS) {
      const competitors = [...servers, peer]
      if (kind === 'fresh') {
        competitors.push(...contestants.map(({ limit }) => limit))
      }
      const rates = await compare(
        competitors,
        (server) => advanceRate(server, kind, connections),
        kind === 'fresh' ? ROUNDS : SLOW_ROUNDS
      )
      for (const { store, ours, limit } of contestants) {
        const measured = {
          what: `advances, ${kind}, ${store}, ${plural(connections)}`,
          ours: rates(ours),
          unit: '/s',
        }
        measurements.push(
          timesMore(
            { ...measured, peer: peer.name, theirs: rates(peer) },
            kind === 'fresh' ? 1 : 3
          )
        )
        if (kind === 'fresh') {
          measurements.push(
            timesMore(
              { ...measured, peer: limit.name, theirs: rates(limit) },
              0.5
            )
          )
        }
      }
      say(
        `advances, ${kind}, ${plural(connections)}: ${competitors.map((server) => `${server.name} ${Math.round(rates(server))}/s`).join(', ')}`
      )
    }
    const rates = await compare(
      [...servers, peer],
      (server) => headRate(server, connections),
      SLOW_ROUNDS
    )
    for (const { store, ours } of contestants) {
      measurements.push(
        timesMore(
          {
            what: `heads, ${store}, ${plural(connections)}`,
            ours: rates(ours),
            peer: peer.name,
            theirs: rates(peer),
            unit: '/s',
          },
          1
        )
      )
    }
  }

  for (const { store, ours } of contestants) {
    say(`filling clocks of ${ours.name} …`)
    const [least, ...others] = await timesBySize(ours)
    if (!least) throw new RangeError('no sizes')
    for (const { size, ms } of others) {
      measurements.push(
        timesAsMuch(
          {
            what: `an advance at ${size.toLocaleString('en')} events, ${store}`,
            ours: ms,
            peer: `the same at ${least.size}`,
            theirs: least.ms,
            unit: 'ms',
          },
          1.3
        )
      )
    }
  }
  return measurements
}

/** Measures servers in turns, so that all have the same weather. */
async function compare(
  servers: Server[],
  measure: (server: Server) => Promise<number>,
  { measured, warm }: { measured: number; warm: number }
): Promise<(server: Server) => number> {
  const rates = new Map(servers.map((server) => [server, [] as number[]]))
  for (let round = 0; round < warm + measured; round++) {
    for (const server of servers) {
      const rate = await measure(server)
      if (round >= warm) rates.get(server)?.push(rate)
    }
  }
  return (server) => median(rates.get(server) ?? [])
}

async function advanceRate(
  server: Server,
  kind: Kind,
  connections: number
): Promise<number> {
  const works = await planWork(kind, connections)
  const lanes = []
  for (const { space, history, writers } of works) {
    await fill(server, space, history)
    for (const events of writers) {
      lanes.push(
        await Promise.all(
          events.map((event) => signAdvance(server, space, [event]))
        )
      )
    }
  }
  const { ms, each } = await send(
    server,
    connections === 1 ? [interleaved(lanes)] : lanes
  )
  return (each.length / ms) * 1000
}

async function planWork(kind: Kind, connections: number): Promise<Work[]> {
  if (kind === 'fresh') {
    return Promise.all(
      Array.from({ length: connections }, async () => ({
        space: await createSpace(),
        history: [],
        writers: [await chainOf(randomUUID(), ADVANCES / connections)],
      }))
    )
  }
  const history = await chainOf('history', kind === 'stale' ? HISTORY : 1)
  const writers = kind === 'stale' ? STALE_WRITERS : WRITERS
  return Promise.all(
    Array.from({ length: WRITERS / writers }, async () => ({
      space: await createSpace(),
      history,
      writers: await Promise.all(
        Array.from({ length: writers }, (_, writer) =>
          chainOf(`writer ${writer}`, SLOW_ADVANCES / WRITERS, history[0])
        )
      ),
    }))
  )
}

async function headRate(server: Server, connections: number): Promise<number> {
  const space = await createSpace()
  await fill(server, space, await chainOf('head', 1))
  const signed = await Promise.all(
    Array.from({ length: ADVANCES }, () => signHead(server, space))
  )
  const lanes = Array.from({ length: connections }, (_, lane) =>
    signed.filter((_, at) => at % connections === lane)
  )
  const { ms } = await send(server, lanes)
  return (signed.length / ms) * 1000
}

/** Times single advances of clocks of several sizes, in turns. */
async function timesBySize(
  server: Server
): Promise<{ size: number; ms: number }[]> {
  const clocks = []
  for (const size of SIZES) {
    const space = await createSpace()
    const chain = await chainOf('event', size + SAMPLES)
    await fill(server, space, chain.slice(0, size))
    const signed = await Promise.all(
      chain.slice(size).map((event) => signAdvance(server, space, [event]))
    )
    clocks.push({ size, signed })
  }
  const lane = interleaved(clocks.map(({ signed }) => signed))
  const { each } = await send(server, [lane])
  return clocks.map(({ size }, clock) => ({
    size,
    ms: median(each.filter((_, at) => at % clocks.length === clock)),
  }))
}

async function startOnSqlite(): Promise<Contestant & AsyncDisposable> {
  await using resources = new AsyncDisposableStack()
  const folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-bench-'))
  resources.defer(() => rm(folder, { recursive: true }))
  return await startContestant(resources, 'SQLite', {
    ours: '',
    limit: join(folder, 'limit.sqlite'),
  })
}

async function startOnPostgres(
  databaseUrl: string
): Promise<Contestant & AsyncDisposable> {
  await using resources = new AsyncDisposableStack()
  return await startContestant(resources, 'PostgreSQL', {
    ours: resources.use(await createSchema(databaseUrl)).url,
    limit: resources.use(await createSchema(databaseUrl)).url,
  })
}

async function startContestant(
  resources: AsyncDisposableStack,
  store: string,
  databases: { ours: string; limit: string }
): Promise<Contestant & AsyncDisposable> {
  const { url, did } = resources.use(
    await startServiceProcess({
      environment: {
        DATABASE_URL: databases.ours,
        // Nothing but the clock is measured, and there is nobody to ask.
        BLUESKY_BACKUPS_PROVISIONING_POLICY: 'off',
        BLUESKY_BACKUPS_REVOCATIONS_POLICY: 'off',
        BLUESKY_BACKUPS_SPACE_RATE: '0',
        BLUESKY_BACKUPS_ISSUER_RATE: '0',
      },
    })
  )
  const limit = resources.use(
    await startServer(
      'clock-limit.ts',
      `signature + commit on ${store}`,
      databases.limit
    )
  )
  const owned = resources.move()
  return {
    store,
    ours: { name: `ours on ${store}`, url, did },
    limit: { ...limit, isClock: false },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

async function startServer(
  script: string,
  name: string,
  ...parameters: string[]
): Promise<Server & AsyncDisposable> {
  const child = fork(new URL(script, import.meta.url), parameters, {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  })
  const [{ url, did }] = (await once(child, 'message')) as [
    { url: string; did: string },
  ]
  return {
    name,
    url: new URL(url),
    did,
    async [Symbol.asyncDispose]() {
      const exit = once(child, 'exit')
      child.disconnect()
      await exit
    },
  }
}

/** A schema of its own, so that nothing stays in the database. */
async function createSchema(
  databaseUrl: string
): Promise<{ url: string } & AsyncDisposable> {
  const schema = `bench_${randomUUID().replaceAll('-', '')}`
  const client = new pg.Client(databaseUrl)
  await client.connect()
  await client.query(`create schema ${schema}`)
  const url = new URL(databaseUrl)
  url.searchParams.set('options', `-c search_path=${schema}`)
  return {
    url: url.href.replaceAll('+', '%20'),
    async [Symbol.asyncDispose]() {
      await client.query(`drop schema ${schema} cascade`)
      await client.end()
    },
  }
}

/** The first of each lane, then the second of each, and so on. */
function interleaved<T>(lanes: T[][]): T[] {
  const length = Math.max(...lanes.map((lane) => lane.length))
  return Array.from({ length }, (_, at) =>
    lanes.flatMap((lane) => lane.slice(at, at + 1))
  ).flat()
}

function plural(connections: number): string {
  return connections === 1 ? '1 connection' : `${connections} connections`
}
