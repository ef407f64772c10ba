import assert from 'node:assert/strict'
import type { Delegation, Signer } from '@ucanto/interface'
import { Absentee, ed25519, RSA } from '@ucanto/principal'
import { connect } from '@web3-storage/clock/client'
import * as Clock from '@web3-storage/clock/client'
import { delegate, DID } from '@ucanto/core'
import {
  allow,
  attest,
  eventOf,
  startTestService,
  type Space,
  type TestService,
} from '../service/harness.ts'

describe('client of @web3-storage/clock', () => {
  let service: TestService
  let space: Space
  let uploadService: Signer

  before(async () => {
    const key = await ed25519.generate()
    uploadService = key.withDID('did:web:up.example')
    service = await startTestService({
      trustedAuthorities: `${uploadService.did()}=${key.did()}`,
    })
  })

  after(() => service[Symbol.asyncDispose]())

  beforeEach(async () => {
    space = await ed25519.generate()
  })

  const agents: Record<string, () => Promise<Signer>> = {
    Ed25519: () => ed25519.generate(),
    RSA: () => RSA.generate(),
  }
  /** Ways on which an agent may have got its rights. */
  const ways: Record<string, (agent: Signer) => Promise<Delegation[]>> = {
    'clock/*': async (agent) => [await allow(space, agent, ['clock/*'])],
    'clock/head and clock/advance': async (agent) => [
      await allow(space, agent, ['clock/head']),
      await allow(space, agent, ['clock/advance']),
    ],
    '*': async (agent) => [await allow(space, agent, ['*'])],
    'a chain from another agent': async (agent) => {
      const other = await RSA.generate()
      return [
        await allow(other, agent, ['clock/*'], {
          with: space.did(),
          proofs: [await allow(space, other, ['*'])],
        }),
      ]
    },
    'a login by email': async (agent) => {
      const account = Absentee.from({ id: 'did:mailto:example.com:alice' })
      const login = await delegate({
        issuer: account,
        audience: agent,
        capabilities: [{ can: '*', with: 'ucan:*' }],
        proofs: [await allow(space, account, ['*'])],
        expiration: Infinity,
      })
      return [login, await attest(uploadService, login, agent)]
    },
  }
  for (const [kind, generate] of Object.entries(agents)) {
    for (const [way, proofsFor] of Object.entries(ways)) {
      it(`works unchanged with a key of ${kind} and ${way}`, async () => {
        const agent = await generate()
        const connection = connect({
          serviceURL: service.url,
          servicePrincipal: DID.parse(service.did),
        })
        const config = {
          issuer: agent,
          with: space.did(),
          proofs: await proofsFor(agent),
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

  it('may know the service by its did:key', async () => {
    const { out } = await Clock.head(
      { issuer: space, with: space.did(), proofs: [] },
      {
        connection: connect({
          serviceURL: service.url,
          servicePrincipal: DID.parse(service.agent),
        }),
      }
    )
    assert.deepEqual(out.ok, { head: [] })
  })
})
