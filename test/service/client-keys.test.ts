import assert from 'node:assert/strict'
import { rename } from 'node:fs/promises'
import { join } from 'node:path'
import { METADATA_PATH } from '../../src/atproto/oauth/index.ts'
import type { Time } from '../../src/backup/index.ts'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { Authorization, connect, readReceipt } from '../../src/client/index.ts'
import { loadClientKeys, systemTime } from '../../src/node/index.ts'
import { consent } from '../network/consent.ts'
import { findFreePort } from '../network/loopback-server.ts'
import { startNetwork, type Network } from '../network/index.ts'
import { comeBack } from './come-back.ts'
import {
  allow,
  createActors,
  createFolder,
  startTestService,
} from './harness.ts'

const MINUTE = 60_000
const DAY = 24 * 60 * MINUTE
const YEAR = 365 * DAY

const PUBLIC_URL = 'https://keys.example.dev'

describe('the client keys of a service', () => {
  let resources: AsyncDisposableStack
  let network: Network
  let folder: string

  before(async () => {
    network = await startNetwork()
  })

  after(() => network[Symbol.asyncDispose]())

  beforeEach(async () => {
    resources = new AsyncDisposableStack()
    folder = resources.use(await createFolder()).path
  })

  afterEach(() => resources.disposeAsync())

  /**
   * Starts a process of the deployment.
   *
   * @param ahead - how far its time is, in milliseconds
   */
  const start = async (ahead = 0) => {
    const time: Time = {
      now: () => Date.now() + ahead,
      sleep: (ms, signal) => systemTime.sleep(ms, signal),
    }
    const port = await findFreePort()
    const service = resources.use(
      await startTestService(
        { publicUrl: PUBLIC_URL, port: `${port}`, dataFolder: folder },
        network.environment,
        { time }
      )
    )
    const url = new URL(`http://127.0.0.1:${port}`)
    return {
      service,
      url,
      connection: connect({ url, did: service.did }),
      pass: (ms: number) => {
        ahead += ms
      },
    }
  }

  type Process = Awaited<ReturnType<typeof start>>

  /** Names of the keys that hosts are told of. */
  const told = async ({ url }: Process) => {
    const response = await fetch(new URL(METADATA_PATH, url))
    assert.equal(response.status, 200)
    const { jwks } = (await response.json()) as {
      jwks: { keys: { kid: string }[] }
    }
    return jwks.keys.map(({ kid }) => kid)
  }

  it('are told as they are, when another process has made a new one', async () => {
    const path = join(folder, 'client-keys.json')
    const process = await start()
    const [first, ...others] = await told(process)
    assert.deepEqual(others, [])
    process.pass(YEAR - MINUTE / 2)
    assert.deepEqual(await told(process), [first])
    const made = await loadClientKeys(path, { now: Date.now() + YEAR })
    assert.deepEqual(await told(process), [first])
    process.pass(MINUTE)
    assert.deepEqual(
      await told(process),
      [...made].map(({ kid }) => kid)
    )
  })

  it('are followed by a new one in a process that runs for a year', async () => {
    const process = await start()
    const [first] = await told(process)
    process.pass(YEAR + MINUTE)
    const [still, second] = await told(process)
    assert.equal(still, first)
    assert.ok(second !== undefined)
    process.pass(2 * DAY)
    assert.deepEqual(await told(process), [second, first])
  })

  it('stay while their file is away, which the log says', async () => {
    const path = join(folder, 'client-keys.json')
    const process = await start()
    const before = await told(process)
    await rename(path, `${path}.away`)
    process.pass(2 * YEAR)
    assert.deepEqual(await told(process), before)
    const warned = process.service.logs.filter(
      ({ level, msg }) => level === 40 && /client keys/.test(String(msg))
    )
    assert.equal(warned.length, 1)
    await rename(`${path}.away`, path)
    process.pass(MINUTE)
    assert.equal((await told(process)).length, 2)
  })

  it('are there for who comes back to one process from another', async () => {
    const { alice, space } = await createActors()
    await network.storacha.provision(space.did())
    const account = await network.pds.createAccount({ handle: 'alice.test' })
    const old = await start()
    const [first] = await told(old)
    const young = await start(YEAR + MINUTE)
    old.pass(YEAR + 2 * DAY)
    young.pass(2 * DAY)
    const [signing] = await told(young)
    assert.notEqual(signing, first)
    // Hosts ask one of them, and users come back to another.
    const hosts = globalThis.fetch
    resources.defer(() => {
      globalThis.fetch = hosts
    })
    globalThis.fetch = async (input, init) => {
      const url = new URL(input instanceof Request ? input.url : String(input))
      return url.origin === PUBLIC_URL
        ? hosts(new URL(url.pathname, young.url))
        : hosts(input, init)
    }

    const { ok, error } = await Authorization.request(
      {
        issuer: alice,
        with: space.did(),
        proofs: [await allow(space, alice, ['authorization/*', 'clock/*'])],
      },
      {
        account: account.did,
        delegation: await allow(space, young.service.agent, BACKUP_ABILITIES),
      },
      { connection: young.connection }
    )
    assert.equal(error, undefined, error?.message)
    const { searchParams } = await consent(new URL(ok.url), {
      username: account.handle,
      password: account.password,
    })
    const { response, page } = await comeBack(
      new URL(`/oauth/callback?${searchParams}`, old.url)
    )
    assert.equal(response.status, 200, page)
    const receipt = await readReceipt(
      { url: old.url, info: old.service },
      ok.task
    )
    assert.ok(receipt?.ok, JSON.stringify(receipt?.error))
  })
})
