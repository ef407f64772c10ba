import assert from 'node:assert/strict'
import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { openStores } from '../../src/stores/index.ts'
import { createFolder, startTestService } from './harness.ts'
import type { TestStore } from './slow-stores.ts'

/** Whose a database is, on any of them. */
export function describeKeyOfTheService(
  createStore: () => Promise<TestStore>
): void {
  /** Processes on one database, each with a data folder of its own. */
  const createProcesses = async () => {
    await using resources = new AsyncDisposableStack()
    const store = resources.use(await createStore())
    const elsewhere = resources.use(await createFolder()).path
    const environment: Record<string, string> = store.databaseUrl
      ? { DATABASE_URL: store.databaseUrl }
      : {}
    const owned = resources.move()
    return {
      store,
      /** A key that is not there yet. */
      other: join(elsewhere, 'service.key'),
      start: (flags: Parameters<typeof startTestService>[0] = {}) =>
        startTestService(
          { dataFolder: store.dataFolder, ...flags },
          environment
        ),
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    }
  }

  it('belongs to the key that came first, and to no other', async () => {
    await using processes = await createProcesses()
    const { start, other } = processes
    await using first = await start()
    await assert.rejects(start({ keyFile: other }), (error: Error) => {
      assert.equal(error.name, 'KeyMismatchError')
      assert.ok(error.message.includes(`belongs to the agent ${first.agent}`))
      assert.ok(error.message.includes(other))
      assert.match(error.message, /copy the key file .* --key-file/)
      return true
    })
    await copyFile(first.config.keyFile, other)
    await using second = await start({ keyFile: other })
    assert.equal(second.agent, first.agent)
  })

  it('goes to another key by the name of the one that is lost', async () => {
    await using processes = await createProcesses()
    const { start, other } = processes
    let old: string
    {
      await using service = await start()
      old = service.agent
    }
    await assert.rejects(
      start({ keyFile: other, replaceKey: 'did:key:z6MkSomebody' }),
      { name: 'KeyMismatchError' }
    )
    const flags = { keyFile: other, replaceKey: old }
    {
      await using service = await start(flags)
      assert.notEqual(service.agent, old)
      const loud = service.logs.filter(({ level }) => Number(level) >= 40)
      assert.ok(
        loud.some(({ msg }) => String(msg).startsWith('the key was replaced'))
      )
    }
    {
      // Who leaves the flag in place replaces nothing.
      await using service = await start(flags)
      assert.ok(!service.logged().includes('the key was replaced'))
    }
    await assert.rejects(start({ replaceKey: old }), {
      name: 'KeyMismatchError',
    })
  })

  it('is of nobody as long as no service has started on it', async () => {
    await using processes = await createProcesses()
    const { store, start } = processes
    await (await openStores(store.options))[Symbol.asyncDispose]()
    await using service = await start()
    await using stores = await openStores(store.options)
    assert.equal(await stores.service.claim('did:key:other'), service.agent)
  })
}
