import assert from 'node:assert/strict'
import { ed25519 } from '@ucanto/principal'
import { CID } from 'multiformats/cid'
import {
  connect,
  followRuns,
  watch,
  type WatchOptions,
} from '../../src/client/index.ts'
import { startServer } from '../service/harness.ts'

const RUN = 'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
const HEAD = 'bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku'

/** What one answer of a service is: a status, or the text of a stream. */
type Answer = number | string[]

describe('events of a service', () => {
  let alice: ed25519.EdSigner

  before(async () => {
    alice = await ed25519.generate()
  })

  const runText = (changes: object = {}) =>
    `event: run\ndata: ${JSON.stringify({
      run: RUN,
      account: 'did:plc:account',
      state: 'running',
      created: 1,
      attempts: 1,
      ...changes,
    })}\n\n`
  const headText = (head: unknown) =>
    `event: head\ndata: ${JSON.stringify({ head })}\n\n`

  /** A service that gives one answer after another, the last for ever. */
  const serve = async (answers: Answer[]) => {
    const seen: string[] = []
    const server = await startServer((request, response) => {
      seen.push(request.headers.authorization ?? '')
      const answer = answers.length > 1 ? answers.shift()! : answers[0]!
      if (typeof answer === 'number') {
        response.writeHead(answer).end('{}')
        return
      }
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      for (const text of answer) response.write(text)
      response.end()
    })
    const options: WatchOptions = {
      url: server.url,
      connection: connect({ url: server.url, did: alice.did() }),
      reconnect: { minDelay: 1, maxDelay: 2, failures: 4 },
    }
    return {
      seen,
      options,
      [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
    }
  }

  const config = () => ({
    issuer: alice,
    with: alice.did(),
  })

  it('come again after an answer that broke off, each once', async () => {
    await using service = await serve([
      [runText()],
      503,
      [runText(), runText({ attempts: 2 }).slice(0, 30)],
      500,
      [runText({ attempts: 2 }), runText({ state: 'done' })],
    ])
    const states: string[] = []
    const runs = followRuns(config(), { run: CID.parse(RUN) }, service.options)
    for await (const { state, attempts } of runs) {
      states.push(`${state} ${attempts}`)
    }
    assert.deepEqual(states, ['running 1', 'running 2', 'done 1'])
    assert.equal(service.seen.length, 5)
    // Each time it is another invocation.
    assert.equal(new Set(service.seen).size, 5)
  })

  it('end when the service says that it does not tell any more', async () => {
    await using service = await serve([[headText([HEAD])], 403])
    const heads = watch(config(), service.options)
    assert.deepEqual((await heads.next()).value?.map(String), [HEAD])
    await assert.rejects(heads.next(), {
      name: 'WatchRefusedError',
      message: /status 403/,
    })
  })

  it('end at once where the first answer is none', async () => {
    await using service = await serve([503])
    await assert.rejects(watch(config(), service.options).next(), {
      name: 'ServiceUnreachableError',
      message: /status 503/,
    })
    assert.equal(service.seen.length, 1)
  })

  it('end when the service fails too often in a row', async () => {
    await using service = await serve([[headText([])], 503])
    const heads = watch(config(), service.options)
    await heads.next()
    await assert.rejects(heads.next(), { name: 'ServiceUnreachableError' })
    // An answer that breaks off is the first failure.
    assert.equal(service.seen.length, 4)
  })

  it('end when the answers break off again and again', async () => {
    await using service = await serve([[]])
    await assert.rejects(watch(config(), service.options).next(), {
      name: 'ServiceUnreachableError',
      message: /breaks off/,
    })
    assert.equal(service.seen.length, 4)
  })

  for (const [name, texts] of [
    ['what is no JSON', ['event: run\ndata: {\n\n']],
    ['no object', ['event: run\ndata: 1\n\n']],
    ['a run without a state', [runText({ state: 'lost' })]],
    ['a run that has no CID', [runText({ run: 'x' })]],
    ['an account that is none', [runText({ account: 1 })]],
    ['what never ends', ['event: run\ndata: ', 'x'.repeat(100_000)]],
  ] as const) {
    it(`are refused that are ${name}`, async () => {
      await using service = await serve([[...texts]])
      await assert.rejects(followRuns(config(), {}, service.options).next(), {
        name: 'WatchRefusedError',
        message: /has no meaning here/,
      })
      assert.equal(service.seen.length, 1)
    })
  }

  for (const head of [['x'], 'x', [1], { 0: HEAD }, null]) {
    it(`are refused where the head is ${JSON.stringify(head)}`, async () => {
      await using service = await serve([[headText(head)]])
      await assert.rejects(watch(config(), service.options).next(), {
        name: 'WatchRefusedError',
      })
    })
  }
})
