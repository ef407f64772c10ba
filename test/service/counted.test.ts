import assert from 'node:assert/strict'
import type { Fetch } from '../../src/atproto/index.ts'
import { systemTime } from '../../src/node/index.ts'
import { counted } from '../../src/service/counted.ts'
import { createHostBudget } from '../../src/service/host-budget.ts'

const HOST = 'https://pds.example'
const METADATA = `${HOST}/.well-known/oauth-authorization-server`

/** Sixty a minute are one in each second. */
const create = ({ patience = 10_000 } = {}) => {
  const asked: string[] = []
  const answer: Fetch = async (input) => {
    asked.push(input instanceof Request ? input.url : String(input))
    return new Response('{}')
  }
  const budget = createHostBudget({ rate: 60, period: 1 })
  const fetch = counted(
    { small: answer, stream: answer, repo: answer },
    {
      budget,
      time: systemTime,
      patience,
      directory: new URL('https://plc.example'),
    }
  )
  return { asked, budget, fetch }
}

const post = (body: string): RequestInit => ({ method: 'POST', body })

describe('requests on the way into accounts', () => {
  it('count, and wait until there is one left', async () => {
    const { asked, fetch } = create()
    const began = Date.now()
    await fetch.small(METADATA)
    await fetch.small(new Request(`${HOST}/oauth/par`, post('scope=atproto')))
    assert.ok(Date.now() - began > 500)
    assert.equal(asked.length, 2)
  })

  it('are refused when none is left in time, and made at others', async () => {
    const { asked, fetch } = create({ patience: 100 })
    await fetch.small(METADATA)
    await assert.rejects(fetch.small(METADATA), {
      name: 'HostError',
      message: /was asked as often as it may be for now/,
    })
    await fetch.small('https://other.example/oauth/par')
    assert.equal(asked.length, 2)
  })

  it('give up when whoever wants them does', async () => {
    const { asked, fetch } = create()
    await fetch.small(METADATA)
    const reason = new Error('enough')
    const controller = new AbortController()
    const { signal } = controller
    const waiting = fetch.small(METADATA, { signal })
    setTimeout(() => controller.abort(reason), 20)
    await assert.rejects(waiting)
    assert.equal(asked.length, 1)
  })

  it('count and do not wait when they trade a code', async () => {
    const { budget, fetch } = create({ patience: 0 })
    const trade = post('grant_type=authorization_code&code=x')
    await fetch.small(`${HOST}/oauth/token`, trade)
    assert.equal(budget.remaining('pds.example'), 0)
    await fetch.small(new Request(`${HOST}/oauth/token`, trade))
  })

  it('do not count when they read, or are for the directory', async () => {
    const { asked, budget, fetch } = create({ patience: 0 })
    for (let count = 0; count < 3; count++) {
      await fetch.small(`${HOST}/xrpc/com.atproto.identity.resolveHandle`)
      await fetch.small('https://plc.example/did:plc:alice')
      await fetch.stream(
        `${HOST}/oauth/token`,
        post('grant_type=refresh_token')
      )
    }
    assert.equal(asked.length, 9)
    assert.equal(budget.remaining('pds.example'), 1)
    assert.equal(budget.remaining('plc.example'), 1)
  })
})
