import assert from 'node:assert/strict'
import type { Delegation, Signer } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import * as raw from 'multiformats/codecs/raw'
import { identity } from 'multiformats/hashes/identity'
import * as MultiformatsLink from 'multiformats/link'
import { Clock, connect } from '../../src/client/index.ts'
import { MAX_HEADS, MAX_NEW_EVENTS } from '../../src/service/clock.ts'
import { MAX_EVENT_SIZE, MAX_PARENTS } from '../../src/space/index.ts'
import type { Block } from '../../src/space/interface.ts'
import {
  allow,
  blockOf,
  createActors,
  eventOf,
  seconds,
  startTestService,
  type Space,
  type TestService,
} from './harness.ts'

describe('clock handlers', () => {
  let service: TestService
  let alice: Signer
  let bob: Signer
  let mallory: Signer
  let space: Space

  before(async () => {
    service = await startTestService()
  })

  after(() => service[Symbol.asyncDispose]())

  beforeEach(async () => {
    ;({ alice, bob, mallory, space } = await createActors())
  })

  /** What alice may do, and how. */
  const config = async (proofs?: Delegation[]) => ({
    issuer: alice,
    with: space.did(),
    proofs: proofs ?? [await allow(space, alice, ['clock/*'])],
  })

  const advance = async (event: Block, blocks = [event]) => {
    const { ok, error } = await Clock.advance(await config(), event.cid, {
      connection: service.connection,
      blocks,
    })
    return error
      ? { error: { name: error.name, message: error.message } }
      : { head: ok.head.map(String) }
  }

  const head = async () => {
    const { ok, error } = await Clock.head(await config(), service)
    assert.equal(error, undefined)
    return ok.head.map(String)
  }

  const namesOf = (...events: Block[]) =>
    events.map(({ cid }) => cid.toString()).sort()

  describe('head', () => {
    it('is empty at first', async () => {
      assert.deepEqual(await head(), [])
    })

    it('is told to who has the key of the Space', async () => {
      const { ok } = await Clock.head(
        { issuer: space, with: space.did() },
        service
      )
      assert.deepEqual(ok, { head: [] })
    })
  })

  describe('advance', () => {
    it('takes no more heads than one event can replace', async () => {
      const heads: Block[] = []
      for (let i = 0; i < MAX_HEADS; i++) {
        heads.push(await eventOf(`head ${i}`))
        await advance(heads.at(-1)!)
      }
      const more = await advance(await eventOf('one more'))
      assert.equal(more.error?.name, 'TooManyHeads')
      assert.match(more.error.message, /Merge them first/)
      assert.deepEqual(await head(), namesOf(...heads))
      const merged = await eventOf('merged', heads)
      assert.deepEqual(await advance(merged), { head: namesOf(merged) })
    })

    it('makes an event the head', async () => {
      const first = await eventOf('first')
      assert.deepEqual(await advance(first), { head: namesOf(first) })
      const second = await eventOf('second', [first])
      assert.deepEqual(await advance(second), { head: namesOf(second) })
      assert.deepEqual(await head(), namesOf(second))
    })

    it('changes nothing when it is repeated', async () => {
      const first = await eventOf('first')
      const second = await eventOf('second', [first])
      await advance(first)
      await advance(second)
      for (const event of [second, first]) {
        assert.deepEqual(await advance(event), { head: namesOf(second) })
        // The clock has the block, so that nobody has to send it again.
        assert.deepEqual(await advance(event, []), { head: namesOf(second) })
      }
    })

    it('keeps concurrent events side by side, until one merges them', async () => {
      const root = await eventOf('root')
      await advance(root)
      const [left, right] = [
        await eventOf('left', [root]),
        await eventOf('right', [root]),
      ]
      await Promise.all([advance(left), advance(right)])
      assert.deepEqual(await head(), namesOf(left, right))
      const merge = await eventOf('merge', [left, right])
      assert.deepEqual(await advance(merge), { head: namesOf(merge) })
    })

    it('leaves other clocks alone', async () => {
      const event = await eventOf('event')
      await advance(event)
      const other = await ed25519.generate()
      const { ok } = await Clock.head(
        { issuer: other, with: other.did() },
        service
      )
      assert.deepEqual(ok, { head: [] })
    })

    it('takes unknown ancestors that are attached', async () => {
      const chain = [await eventOf('0')]
      for (let i = 1; i < 10; i++) {
        chain.push(await eventOf(`${i}`, [chain[i - 1]!]))
      }
      const last = chain.at(-1)!
      assert.deepEqual(await advance(last, chain.toReversed()), {
        head: namesOf(last),
      })
      assert.deepEqual(await advance(chain[4]!), { head: namesOf(last) })
    })

    it('takes ancestors that are reached on several ways', async () => {
      const root = await eventOf('root')
      const left = await eventOf('left', [root])
      const right = await eventOf('right', [root, left])
      const top = await eventOf('top', [root, right, left])
      assert.deepEqual(await advance(top, [top, left, root, right]), {
        head: namesOf(top),
      })
    })

    it('keeps what others added while an agent was away', async () => {
      const root = await eventOf('root')
      await advance(root)
      const other = await eventOf('other', [root])
      await advance(other)
      const first = await eventOf('first', [root])
      const second = await eventOf('second', [first])
      assert.deepEqual(await advance(second, [second, first]), {
        head: namesOf(second, other),
      })
    })

    it('refuses an event whose block is not attached', async () => {
      const event = await eventOf('event')
      const { error } = await advance(event, [])
      assert.equal(error?.name, 'MissingBlock')
      assert.match(error.message, new RegExp(event.cid.toString()))
      assert.deepEqual(await head(), [])
    })

    it('refuses an event with an ancestor that is not attached, and never fetches it', async () => {
      const root = await eventOf('root')
      const middle = await eventOf('middle', [root])
      const last = await eventOf('last', [middle])
      const { error } = await advance(last, [last, root])
      assert.equal(error?.name, 'MissingBlock')
      assert.match(error.message, new RegExp(middle.cid.toString()))
      assert.deepEqual(await head(), [])
    })

    it('takes as many new events as it says, and no more', async () => {
      const chain = [await eventOf('0')]
      for (let i = 1; i <= MAX_NEW_EVENTS; i++) {
        chain.push(await eventOf(`${i}`, [chain[i - 1]!]))
      }
      const last = chain.at(-1)!
      const { error } = await advance(last, chain)
      assert.equal(error?.name, 'TooManyEvents')
      assert.deepEqual(await head(), [])
      const before = chain.at(-2)!
      assert.deepEqual(await advance(before, chain), { head: namesOf(before) })
      assert.deepEqual(await advance(last), { head: namesOf(last) })
    })

    describe('refuses what is no event', () => {
      const state = () => blockOf({ name: 'state' }).then(({ cid }) => cid)
      const parents = async (count: number) => {
        const events = await Promise.all(
          Array.from({ length: count }, (_, i) => eventOf(`${i}`))
        )
        return events.map(({ cid }) => cid)
      }
      const sorted = (links: { bytes: Uint8Array }[]) =>
        links.toSorted((a, b) => Buffer.compare(a.bytes, b.bytes))
      const cases: Record<string, () => Promise<Block>> = {
        'a list': () => blockOf([]),
        'an extra key': async () =>
          blockOf({ data: await state(), parents: [], seq: 1 }),
        'no data': () => blockOf({ parents: [] }),
        'no parents': async () => blockOf({ data: await state() }),
        'data that is no link': () => blockOf({ data: 'state', parents: [] }),
        'data of another codec': async () =>
          blockOf({
            data: MultiformatsLink.create(raw.code, (await state()).multihash),
            parents: [],
          }),
        'a parent that is no link': async () =>
          blockOf({ data: await state(), parents: ['bafy'] }),
        'parents out of order': async () =>
          blockOf({
            data: await state(),
            parents: sorted(await parents(2)).toReversed(),
          }),
        'a parent twice': async () => {
          const [parent] = await parents(1)
          return blockOf({ data: await state(), parents: [parent, parent] })
        },
        'too many parents': async () =>
          blockOf({
            data: await state(),
            parents: sorted(await parents(MAX_PARENTS + 1)),
          }),
        'too many bytes': () =>
          blockOf({ data: 'x'.repeat(MAX_EVENT_SIZE), parents: [] }),
        'another codec': async () => {
          const { cid, bytes } = await eventOf('event')
          return {
            cid: MultiformatsLink.create(raw.code, cid.multihash),
            bytes,
          }
        },
        'its bytes in its CID': async () => {
          const { cid, bytes } = await eventOf('event')
          return {
            cid: MultiformatsLink.create(cid.code, identity.digest(bytes)),
            bytes,
          }
        },
      }
      for (const [name, create] of Object.entries(cases)) {
        it(name, async () => {
          const block = await create()
          const { error } = await advance(block)
          assert.equal(error?.name, 'InvalidEvent')
          assert.match(error.message, new RegExp(block.cid.toString()))
          const child = await eventOf('child', [block]).catch(() => undefined)
          if (child) {
            const { error } = await advance(child, [child, block])
            assert.equal(error?.name, 'InvalidEvent')
          }
          assert.deepEqual(await head(), [])
        })
      }
    })
  })

  describe('proofs', () => {
    /** Name of the failure when alice advances with these proofs. */
    const failureWith = async (...proofs: Delegation[]) => {
      const event = await eventOf('event')
      const { error } = await Clock.advance(await config(proofs), event.cid, {
        ...service,
        blocks: [event],
      })
      assert.deepEqual(await head(), [])
      return `${error?.name}: ${error?.message}`
    }

    it('must be there', async () => {
      assert.match(await failureWith(), /^Unauthorized: /)
    })

    it('must be for advancing', async () => {
      const proof = await allow(space, alice, ['clock/head', 'backup/*'])
      assert.match(await failureWith(proof), /^Unauthorized: /)
    })

    it('must be for this Space', async () => {
      const other = await ed25519.generate()
      const proof = await allow(other, alice, ['clock/*'])
      assert.match(await failureWith(proof), /^Unauthorized: /)
    })

    it('must come from the Space', async () => {
      const proof = await allow(mallory, alice, ['clock/*'], {
        with: space.did(),
      })
      assert.match(await failureWith(proof), /^Unauthorized: /)
    })

    it('must be for who invokes', async () => {
      const proof = await allow(space, bob, ['clock/*'])
      assert.match(await failureWith(proof), /^Unauthorized: /)
    })

    it('must not have expired', async () => {
      const proof = await allow(space, alice, ['clock/*'], {
        expiration: seconds(-1),
      })
      assert.match(await failureWith(proof), /^Unauthorized: .*expired/s)
    })

    it('must have begun', async () => {
      const proof = await allow(space, alice, ['clock/*'], {
        notBefore: seconds(60),
      })
      assert.match(
        await failureWith(proof),
        /^Unauthorized: .*not valid before/s
      )
    })

    it('may be for one event', async () => {
      const event = await eventOf('event')
      const proof = await allow(space, alice, ['clock/advance'], {
        nb: { event: event.cid },
      })
      const other = await eventOf('other')
      for (const [attempt, name] of [
        [other, 'Unauthorized'],
        [event, undefined],
      ] as const) {
        const { error } = await Clock.advance(
          await config([proof]),
          attempt.cid,
          { ...service, blocks: [attempt] }
        )
        assert.equal(error?.name, name)
      }
    })

    it('may go through other agents', async () => {
      const toBob = await allow(space, bob, ['clock/*'])
      const proof = await allow(bob, alice, ['clock/head'], {
        with: space.did(),
        proofs: [toBob],
      })
      const { ok } = await Clock.head(await config([proof]), service)
      assert.deepEqual(ok, { head: [] })
      assert.match(await failureWith(proof), /^Unauthorized: /)
    })
  })

  describe('audience', () => {
    it('may be the did:web or the did:key of the service', async () => {
      for (const did of [service.did, service.agent]) {
        const { ok } = await Clock.head(await config(), {
          connection: connect({ url: service.url, did }),
        })
        assert.deepEqual(ok, { head: [] })
      }
    })

    it('may be nobody else', async () => {
      for (const did of ['did:web:elsewhere.example', mallory.did()]) {
        const { error } = await Clock.head(await config(), {
          connection: connect({ url: service.url, did }),
        })
        assert.equal(error?.name, 'InvalidAudience')
      }
    })
  })
})
