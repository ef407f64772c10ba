import assert from 'node:assert/strict'
import type { Signer } from '@ucanto/interface'
import { ed25519, RSA } from '@ucanto/principal'
import { connect } from '@web3-storage/clock/client'
import * as Clock from '@web3-storage/clock/client'
import { DID } from '@ucanto/core'
import {
  allow,
  eventOf,
  startTestService,
  type Space,
  type TestService,
} from '../service/harness.ts'

describe('client of @web3-storage/clock', () => {
  let service: TestService
  let space: Space

  before(async () => {
    service = await startTestService()
  })

  after(() => service[Symbol.asyncDispose]())

  beforeEach(async () => {
    space = await ed25519.generate()
  })

  const agents: Record<string, () => Promise<Signer>> = {
    Ed25519: () => ed25519.generate(),
    RSA: () => RSA.generate(),
  }
  for (const [kind, generate] of Object.entries(agents)) {
    for (const name of ['did', 'agent'] as const) {
      it(`works unchanged with a key of ${kind}, by the ${name} of the service`, async () => {
        const agent = await generate()
        const connection = connect({
          serviceURL: service.url,
          servicePrincipal: DID.parse(service[name]),
        })
        const config = {
          issuer: agent,
          with: space.did(),
          proofs: [await allow(space, agent, ['clock/*'])],
        } as never
        const headOf = ({ out }: Awaited<ReturnType<typeof Clock.head>>) => {
          assert.equal(out.error, undefined)
          return out.ok.head.map(String)
        }
        assert.deepEqual(headOf(await Clock.head(config, { connection })), [])

        const first = await eventOf('first')
        const second = await eventOf('second', [first])
        const advanced = await Clock.advance(config, second.cid, {
          connection,
          blocks: [second, first] as never,
        })
        assert.deepEqual(headOf(advanced), [second.cid.toString()])
        assert.deepEqual(headOf(await Clock.head(config, { connection })), [
          second.cid.toString(),
        ])

        const refused = await Clock.advance(
          config,
          (await eventOf('third')).cid,
          { connection, blocks: [] }
        )
        const { error } = refused.out as { error?: { name: string } }
        assert.equal(error?.name, 'MissingBlock')
      })
    }
  }
})
