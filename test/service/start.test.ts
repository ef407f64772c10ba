import assert from 'node:assert/strict'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { Message } from '@ucanto/core'
import { ed25519 } from '@ucanto/principal'
import { CAR } from '@ucanto/transport'
import {
  BACKUP_ABILITIES,
  Clock as Capabilities,
} from '../../src/capabilities/index.ts'
import { Backup, Clock, connect, discover } from '../../src/client/index.ts'
import {
  allow,
  createActors,
  createFolder,
  eventOf,
  startServer,
  startTestService,
  until,
} from './harness.ts'

describe('startService', () => {
  let folder: string
  const resources = new AsyncDisposableStack()

  beforeEach(async () => {
    folder = resources.use(await createFolder()).path
  })

  after(() => resources.disposeAsync())

  it('makes its folder and its key, which it keeps', async () => {
    const dataFolder = join(folder, 'a', 'b')
    let agent: string
    {
      await using service = await startTestService({ dataFolder })
      agent = service.agent
      assert.ok(service.keyCreated)
      const key = ed25519.parse(
        (await readFile(service.config.keyFile, 'utf8')).trim()
      )
      assert.equal(key.did(), agent)
      const { mode } = await stat(service.config.keyFile)
      assert.equal(mode & 0o777, 0o600)
      assert.equal((await stat(dataFolder)).mode & 0o777, 0o700)
      assert.ok(!service.logged().includes(ed25519.format(key)))
    }
    await using again = await startTestService({ dataFolder })
    assert.equal(again.agent, agent)
    assert.ok(!again.keyCreated)
  })

  it('keeps what it acknowledged', async () => {
    const { space } = await createActors()
    const config = { issuer: space, with: space.did() }
    const event = await eventOf('event')
    {
      await using service = await startTestService({ dataFolder: folder })
      const { ok } = await Clock.advance(config, event.cid, {
        ...service,
        blocks: [event],
      })
      assert.ok(ok)
    }
    await using service = await startTestService({ dataFolder: folder })
    const { ok } = await Clock.head(config, service)
    assert.deepEqual(ok?.head.map(String), [event.cid.toString()])
  })

  it('is where agents reach it', async () => {
    await using local = await startTestService({ dataFolder: folder })
    const { port } = local.url
    assert.equal(local.url.href, `http://localhost:${port}/`)
    assert.equal(local.did, `did:web:localhost%3A${port}`)
    const info = await discover(new URL(`http://127.0.0.1:${port}`))
    assert.equal(info.did, local.did)
    assert.equal(info.agent, local.agent)

    await using other = await startTestService({
      publicUrl: 'https://backups.example',
    })
    assert.equal(other.url.href, 'https://backups.example/')
    assert.equal(other.did, 'did:web:backups.example')
  })

  it('warns when private addresses are allowed', async () => {
    await using service = await startTestService()
    assert.match(service.logged(), /private and loopback addresses/)
    await using careful = await startTestService({
      allowPrivateNetwork: 'false',
    })
    assert.doesNotMatch(careful.logged(), /private and loopback/)
  })

  describe('leaves nothing behind', () => {
    const failsWith = (error: object, flags = {}) =>
      assert.rejects(startTestService({ dataFolder: folder, ...flags }), error)

    it('when the port is taken', async () => {
      await using service = await startTestService()
      await using server = await startServer((_request, response) => {
        response.end()
      })
      await failsWith(
        { name: 'ListenError', message: /choose another port/ },
        { port: server.url.port }
      )
      assert.ok(service)
      await using _again = await startTestService({ dataFolder: folder })
    })

    it('when the folder cannot be', async () => {
      const dataFolder = join(folder, 'file', 'folder')
      await writeFile(join(folder, 'file'), '')
      await failsWith(
        {
          name: 'DataFolderError',
          message: `the data folder ${dataFolder} cannot be made; choose another with --data-folder`,
        },
        { dataFolder }
      )
    })

    it('when the key is none', async () => {
      const key = join(folder, 'service.key')
      await writeFile(key, 'MgCYhush-hush')
      await failsWith({
        name: 'KeyFileError',
        message: new RegExp(`${key} does not hold an Ed25519 key`),
      })
      assert.equal(await readFile(key, 'utf8'), 'MgCYhush-hush')
      await assert.rejects(stat(join(folder, 'service.sqlite')))
    })

    it('when the store is none', async () => {
      await writeFile(join(folder, 'service.sqlite'), 'x'.repeat(10_000))
      await failsWith({ name: 'StoreUnavailableError', message: /sqlite/ })
    })

    it('when the database is not there', async () => {
      await failsWith(
        {
          name: 'StoreUnavailableError',
          message: /Cannot connect to the PostgreSQL database at 127.0.0.1:9/,
        },
        { databaseUrl: 'postgres://alice:hush@127.0.0.1:9/backups' }
      )
    })
  })

  describe('when it is disposed of', () => {
    it('stops to listen, once', async () => {
      const service = await startTestService()
      await fetch(service.url)
      await Promise.all([
        service[Symbol.asyncDispose](),
        service[Symbol.asyncDispose](),
      ])
      await service[Symbol.asyncDispose]()
      await assert.rejects(fetch(service.url))
    })

    it('finishes what was asked before', async () => {
      const { space } = await createActors()
      const event = await eventOf('event')
      const service = await startTestService({ dataFolder: folder })
      const invocation = Capabilities.advance.invoke({
        issuer: space,
        audience: service.connection.id,
        with: space.did(),
        nb: { event: event.cid },
        facts: [{ event: event.cid }],
      })
      invocation.attach(event)
      const { headers, body } = CAR.request.encode(
        await Message.build({ invocations: [invocation] })
      )
      const slow = request(service.url, { method: 'POST', headers })
      slow.write(body.subarray(0, 100))
      await new Promise((resolve) => setTimeout(resolve, 100))
      const disposed = service[Symbol.asyncDispose]()
      await new Promise((resolve) => setTimeout(resolve, 50))
      slow.end(body.subarray(100))
      const answer = await new Promise<string>((resolve, reject) => {
        slow.on('error', reject)
        slow.on('response', (response) => {
          assert.equal(response.statusCode, 200)
          resolve(text(response))
        })
      })
      assert.match(answer, /head/)
      await disposed
      await using again = await startTestService({ dataFolder: folder })
      const { ok } = await Clock.head(
        { issuer: space, with: space.did() },
        again
      )
      assert.equal(ok?.head.length, 1)
    })

    it('says that it goes down while runs end, and parks what does not', async () => {
      await using silence = await startServer(() => {})
      const { space } = await createActors()
      const config = { issuer: space, with: space.did() }
      const flags = {
        dataFolder: folder,
        plcUrl: silence.url.href,
        drainTimeout: '1',
      }
      const service = await startTestService(flags)
      const { ok } = await Backup.run(
        config,
        {
          account: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz',
          delegation: await allow(space, service.agent, BACKUP_ABILITIES),
        },
        service
      )
      const runs = async ({ connection } = service) =>
        (await Backup.status(config, ok!, { connection })).ok!.runs
      await until(async () => (await runs())[0]?.state === 'running')

      const disposed = service[Symbol.asyncDispose]()
      const health = await fetch(new URL('health', service.url))
      assert.equal(health.status, 503)
      assert.deepEqual(await health.json(), { status: 'draining' })
      assert.ok(await discover(service.url))
      await assert.rejects(
        Clock.head(config, {
          connection: connect({ url: service.url, did: service.did }),
        }),
        {
          name: 'ServiceUnreachableError',
          message: /status 503 \(ServiceUnavailable: the service is going down/,
        }
      )
      await disposed
      assert.match(service.logged(), /"msg":"run parked"/)

      await using again = await startTestService(flags)
      const [run] = await until(async () => {
        const all = await runs(again)
        return all[0]?.state === 'running' && all
      })
      assert.equal(run?.attempts, 2)
    })
  })
})
