import assert from 'node:assert/strict'
import { join } from 'node:path'
import { ed25519 } from '@ucanto/principal'
import * as dagCBOR from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import pino from 'pino'
import { createLocalClock, pushLocalClock } from '../../src/cli/local-clock.ts'
import {
  Clock,
  connect,
  type InvocationConfig,
} from '../../src/client/index.ts'
import {
  readConfig,
  startService,
  type RunningService,
} from '../../src/service/index.ts'
import { encodeEvent, type Block, type Event } from '../../src/space/index.ts'
import { openStores, type Stores } from '../../src/stores/index.ts'
import { createFolder } from './harness.ts'

describe('local clock', () => {
  const resources = new AsyncDisposableStack()
  let stores: Stores
  let service: RunningService

  before(async () => {
    const { path } = resources.use(await createFolder())
    stores = resources.use(await openStores({ path: ':memory:' }))
    service = resources.use(
      await startService(
        readConfig(
          {
            port: '0',
            dataFolder: join(path, 'service'),
            provisioningPolicy: 'off',
            revocationsPolicy: 'off',
          },
          {}
        ),
        { logger: pino({ level: 'silent' }) }
      )
    )
  })

  after(() => resources.disposeAsync())

  const createSpace = async () => {
    const space = await ed25519.generate()
    return { authority: { issuer: space, with: space.did() }, did: space.did() }
  }

  const connection = () => connect({ url: service.url, did: service.did })

  const remoteHead = async (authority: InvocationConfig) => {
    const { ok, error } = await Clock.head(authority, {
      connection: connection(),
    })
    if (error) throw new Error(error.message)
    return ok.head.map(String)
  }

  it('keeps events and their head', async () => {
    const { did } = await createSpace()
    const clock = createLocalClock(stores.clock, did)
    assert.deepEqual(await clock.head(), [])
    const first = await createTestEvent('first', [])
    const second = await createTestEvent('second', [first])
    const third = await createTestEvent('third', [first])
    const merge = await createTestEvent('merge', [second, third])
    assert.deepEqual(await clock.advance(first.cid, [first]), [first.cid])
    // Ancestors that it does not know come along, in any order.
    assert.deepEqual(await clock.advance(merge.cid, [merge, third, second]), [
      merge.cid,
    ])
    assert.deepEqual(await clock.advance(merge.cid, []), [merge.cid])
    assert.deepEqual(await clock.head(), [merge.cid])
  })

  it('refuses an event whose ancestors nobody has', async () => {
    const { did } = await createSpace()
    const clock = createLocalClock(stores.clock, did)
    const first = await createTestEvent('lost', [])
    const second = await createTestEvent('orphan', [first])
    await assert.rejects(clock.advance(second.cid, [second]), {
      name: 'ClockError',
      message: new RegExp(`does not know the event ${first.cid.toString()}`),
    })
    assert.deepEqual(await clock.head(), [])
  })

  it('has nothing to tell a service when it is empty', async () => {
    const { authority } = await createSpace()
    const nowhere = connect({
      url: new URL('http://127.0.0.1:9'),
      did: service.did,
    })
    await pushLocalClock(stores.clock, authority, nowhere)
  })

  it('tells a service of all its events, however many', async () => {
    const { authority, did } = await createSpace()
    const clock = createLocalClock(stores.clock, did)
    const root = await createTestEvent('root', [])
    await clock.advance(root.cid, [root])
    const tips: Block<Event>[] = []
    for (const branch of ['left', 'right']) {
      let last = root
      for (let i = 0; i < 230; i++) {
        last = await createTestEvent(`${branch} ${i}`, [last])
        await clock.advance(last.cid, [last])
      }
      tips.push(last)
    }
    const heads = tips.map(({ cid }) => cid.toString()).sort()
    await pushLocalClock(stores.clock, authority, connection())
    assert.deepEqual((await remoteHead(authority)).sort(), heads)

    // Again changes nothing, and what comes after is told too.
    await pushLocalClock(stores.clock, authority, connection())
    const merge = await createTestEvent('merge', tips)
    await clock.advance(merge.cid, [merge])
    await pushLocalClock(stores.clock, authority, connection())
    assert.deepEqual(await remoteHead(authority), [merge.cid.toString()])
  })

  it('tells why a service does not take its events', async () => {
    const { did } = await createSpace()
    const clock = createLocalClock(stores.clock, did)
    const event = await createTestEvent('event', [])
    await clock.advance(event.cid, [event])
    const mallory = await ed25519.generate()
    const authority = { issuer: mallory, with: did }
    await assert.rejects(
      pushLocalClock(stores.clock, authority, connection()),
      { name: 'Unauthorized', message: /does not accept what this agent/ }
    )
    const nowhere = connect({
      url: new URL('http://127.0.0.1:9'),
      did: service.did,
    })
    await assert.rejects(pushLocalClock(stores.clock, authority, nowhere), {
      name: 'ServiceUnreachableError',
    })
  })

  it('says if its own file lacks an event', async () => {
    const { authority } = await createSpace()
    const event = await createTestEvent('gone', [])
    const broken = {
      ...stores.clock,
      head: async () => [event.cid.toString()],
    }
    await assert.rejects(pushLocalClock(broken, authority, connection()), {
      name: 'ClockError',
      message: /is missing from this agent's own clock/,
    })
  })
})

/** An event of a state that is only a name. */
async function createTestEvent(
  name: string,
  parents: Block<Event>[]
): Promise<Block<Event>> {
  const state = CID.createV1(
    dagCBOR.code,
    await sha256.digest(dagCBOR.encode(name))
  )
  return encodeEvent({
    data: state as never,
    parents: parents.map(({ cid }) => cid),
  })
}
