import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { startTestService, until } from './harness.ts'
import { samplesIn } from './samples.ts'
import { createPostgresStore, databaseServer } from './slow-stores.ts'

/** A way to a server that can be cut and mended. */
async function startCable(target: URL) {
  const sockets = new Set<Socket>()
  let cut = false
  const server = createServer((socket) => {
    if (cut) return void socket.destroy()
    const onward = connect(
      Number(target.port || 5432),
      target.hostname.replace(/^\[|\]$/g, '')
    )
    for (const each of [socket, onward]) {
      sockets.add(each)
      each.on('error', () => {})
      each.on('close', () => {
        sockets.delete(each)
        socket.destroy()
        onward.destroy()
      })
    }
    socket.pipe(onward).pipe(socket)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const url = new URL(target)
  url.hostname = '127.0.0.1'
  url.port = `${(server.address() as AddressInfo).port}`
  const setCut = (value: boolean) => {
    cut = value
    if (cut) for (const socket of sockets) socket.destroy()
  }
  return {
    url,
    setCut,
    [Symbol.asyncDispose]: async () => {
      setCut(true)
      const closed = once(server, 'close')
      server.close()
      await closed
    },
  }
}

describe('what operators see of the roles of a service', () => {
  for (const role of ['api', 'scheduler', 'worker']) {
    it(`says of the ${role} when its database is gone, and when it is back`, async () => {
      assert.ok(databaseServer, 'run: npm run test:postgres')
      await using store = await createPostgresStore(databaseServer)
      await using cable = await startCable(new URL(store.databaseUrl!))
      await using service = await startTestService(
        { role, dataFolder: store.dataFolder, metricsPort: '0' },
        { DATABASE_URL: cable.url.href }
      )
      const ready = async () => {
        const response = await fetch(
          new URL('/health/ready', service.metricsUrl)
        )
        const { reasons } = (await response.json()) as { reasons: string[] }
        return [response.status, ...reasons]
      }
      const samples = async () =>
        samplesIn(await (await fetch(service.metricsUrl!)).text())
      assert.deepEqual(await ready(), [200])
      const before = await samples()
      assert.equal(before.get('bluesky_backups_database_up'), 1)
      assert.equal(before.get('bluesky_backups_schedules_due'), 0)
      assert.equal(
        before.get('bluesky_backups_jobs{state="queued"}'),
        role === 'api' ? undefined : 0
      )

      cable.setCut(true)
      assert.deepEqual(await ready(), [503, 'the database does not answer'])
      const alive = await fetch(new URL('/health/alive', service.metricsUrl))
      assert.equal(alive.status, 200)

      cable.setCut(false)
      await until(async () => (await ready())[0] === 200)
    })
  }
})
