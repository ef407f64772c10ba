import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { pino } from 'pino'
import { systemTime } from '../../../src/node/index.ts'
import {
  createEmbeddedEngine,
  openPgBossEngine,
} from '../../../src/scheduler/engine/index.ts'
import type {
  EngineOptions,
  EnginePolicy,
  JobEngine,
  NewJob,
} from '../../../src/scheduler/engine/index.ts'
import { openStores } from '../../../src/stores/index.ts'
import type { Stores, StoresOptions } from '../../../src/stores/index.ts'

/** Where an engine is, as another process can be told. */
export type EnginePlace = StoresOptions & {
  policy: Partial<EnginePolicy>
  /** On PostgreSQL, where pg-boss has its tables. */
  schema?: string
}

export type OpenOptions = Partial<Pick<EngineOptions, 'policy' | 'time'>>

export interface OpenEngine extends AsyncDisposable {
  engine: JobEngine
  stores: Stores
}

export async function openEngine(
  { policy: placePolicy, schema, ...options }: EnginePlace,
  { policy, time = systemTime }: OpenOptions = {}
): Promise<OpenEngine> {
  const stores = await openStores(options)
  const engineOptions = {
    database: stores.database,
    time,
    logger: pino({ level: process.env.LOG_LEVEL ?? 'silent' }),
    policy: { ...placePolicy, ...policy },
  }
  try {
    const engine =
      'databaseUrl' in options
        ? await openPgBossEngine({
            ...engineOptions,
            databaseUrl: options.databaseUrl,
            schema,
            superviseSeconds: 1,
          })
        : createEmbeddedEngine(engineOptions)
    return {
      engine,
      stores,
      async [Symbol.asyncDispose]() {
        await engine[Symbol.asyncDispose]()
        await stores[Symbol.asyncDispose]()
      },
    }
  } catch (error) {
    await stores[Symbol.asyncDispose]()
    throw error
  }
}

/** What the sentences of the contract work with. */
export interface Harness {
  place: EnginePlace
  /** Opens one more engine on the same jobs, with a connection of its own. */
  open: (options?: OpenOptions) => Promise<OpenEngine>
}

/** Sentences that hold for an engine on any database. */
export type Contract = Record<string, (harness: Harness) => Promise<void>>

/** A database of its own for each test. */
export interface TestPlace extends AsyncDisposable {
  place: EnginePlace
}

export function bind(
  contract: Contract,
  createPlace: () => Promise<TestPlace>
): void {
  for (const [sentence, test] of Object.entries(contract)) {
    it(sentence, async () => {
      await using made = await createPlace()
      await using opened = new AsyncDisposableStack()
      const { place } = made
      const open = async (options?: OpenOptions) =>
        opened.use(await openEngine(place, options))
      await test({ place, open })
    })
  }
}

export function jobOf(key: string, overrides: Partial<NewJob> = {}): NewJob {
  return {
    kind: 'test',
    key,
    slot: `host/${key}`,
    priority: 0,
    data: null,
    ...overrides,
  }
}

export function jobsOf(
  count: number,
  overrides: (index: number) => Partial<NewJob> = () => ({})
): NewJob[] {
  return Array.from({ length: count }, (_, index) =>
    jobOf(`job-${index}`, overrides(index))
  )
}

/** Waits until something holds; the test's timeout says when it never does. */
export async function until(
  holds: () => boolean | Promise<boolean>
): Promise<void> {
  while (!(await holds())) await sleep(5)
}

/** @returns what an aborted signal was aborted with */
export async function aborted(signal: AbortSignal): Promise<unknown> {
  if (!signal.aborted) {
    await new Promise((resolve) => {
      signal.addEventListener('abort', resolve, { once: true })
    })
  }
  return signal.reason
}

/** What handlers tell of what they do, and whether they overlap in a slot. */
export class Witness {
  readonly begun: string[] = []
  readonly overlaps: string[] = []
  mostActive = 0
  readonly #active = new Map<string, string>()

  async during(
    { key, slot }: Pick<NewJob, 'key' | 'slot'>,
    work: () => Promise<unknown>
  ): Promise<void> {
    this.begun.push(key)
    const other = this.#active.get(slot)
    if (other !== undefined) this.overlaps.push(`${other} and ${key}`)
    this.#active.set(slot, key)
    this.mostActive = Math.max(this.mostActive, this.#active.size)
    try {
      await work()
    } finally {
      this.#active.delete(slot)
    }
  }

  /** Each of the jobs was begun once, and no two of a slot at once. */
  assertOnceEach(jobs: NewJob[]): void {
    assert.deepEqual(this.overlaps, [])
    assert.deepEqual(
      this.begun.toSorted(),
      jobs.map(({ key }) => key).toSorted()
    )
  }
}

/** A process that begins jobs, says so line by line, and never ends them. */
export function startWorkerProcess(place: EnginePlace): {
  child: ChildProcess
  lines: AsyncIterator<string>
} {
  const script = fileURLToPath(new URL('begin-jobs.ts', import.meta.url))
  const child = spawn(process.execPath, [script, JSON.stringify(place)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const lines = createInterface({ input: child.stdout })
  return { child, lines: lines[Symbol.asyncIterator]() }
}
