import assert from 'node:assert/strict'
import { CAR, Delegation } from '@ucanto/core'
import type { Delegation as DelegationView, Signer } from '@ucanto/interface'
import * as dagCBOR from '@ipld/dag-cbor'
import { sha256 } from 'multiformats/hashes/sha2'
import * as Link from 'multiformats/link'
import { Revocation as Capabilities } from '../../src/capabilities/index.ts'
import { Clock, connect, Revocation } from '../../src/client/index.ts'
import { startStoracha, type Storacha } from '../network/index.ts'
import {
  allow,
  createActors,
  createFolder,
  failureOf,
  startServer,
  startTestService,
  type Space,
  type TestService,
} from './harness.ts'

describe('revocations', () => {
  let service: TestService
  let alice: Signer
  let bob: Signer
  let mallory: Signer
  let space: Space

  beforeEach(async () => {
    ;({ alice, bob, mallory, space } = await createActors())
  })

  /** Why an agent may not read the head of the clock, if it may not. */
  const refusal = async (
    issuer: Signer,
    proof: DelegationView,
    { connection }: TestService = service
  ) => {
    const { error } = await Clock.head(
      { issuer, with: space.did(), proofs: [proof] },
      { connection, nonce: crypto.randomUUID() }
    )
    return error && `${error.name}: ${error.message}`
  }

  describe('told to the service', () => {
    before(async () => {
      service = await startTestService()
    })

    after(() => service[Symbol.asyncDispose]())

    const revoke = (
      issuer: Signer,
      delegation: DelegationView,
      options: { with?: `did:key:${string}` } = {}
    ) => Revocation.revoke({ issuer, ...options }, delegation, service)

    it('stop a delegation at once', async () => {
      const proof = await allow(space, alice, ['clock/*'])
      assert.equal(await refusal(alice, proof), undefined)
      const { ok, error } = await revoke(space, proof)
      assert.equal(error, undefined)
      assert.ok(Math.abs(ok.time - Date.now()) < 60_000)
      assert.match(
        (await refusal(alice, proof)) ?? '',
        new RegExp(
          `^Unauthorized: .*${proof.cid.toString()} has been revoked`,
          's'
        )
      )
    })

    it('stop what was delegated further, whoever of those above revokes', async () => {
      for (const [revoker, which] of [
        [space, 'first'],
        [alice, 'first'],
        [space, 'second'],
        [alice, 'second'],
        [bob, 'second'],
      ] as const) {
        const first = await allow(space, alice, ['clock/*'], {
          nb: { [crypto.randomUUID()]: 1 },
        })
        const second = await Delegation.delegate({
          issuer: alice,
          audience: bob,
          capabilities: [{ can: 'clock/head', with: space.did() }],
          proofs: [first],
          nonce: crypto.randomUUID(),
        })
        assert.equal(await refusal(bob, second), undefined)
        const { error } = await revoke(
          revoker,
          which === 'first' ? first : second
        )
        assert.equal(error, undefined)
        assert.match((await refusal(bob, second)) ?? '', /has been revoked/)
        assert.equal(
          (await refusal(alice, first)) === undefined,
          which === 'second'
        )
      }
    })

    it('leave other delegations alone', async () => {
      const proof = await allow(space, alice, ['clock/*'])
      const other = await allow(space, alice, ['clock/head'])
      await revoke(space, proof)
      assert.equal(await refusal(alice, other), undefined)
      assert.equal(
        await refusal(bob, await allow(space, bob, ['clock/*'])),
        undefined
      )
    })

    it('are only for those with a part in the delegation', async () => {
      const proof = await allow(space, alice, ['clock/*'])
      assert.equal(
        failureOf(await revoke(mallory, proof)).name,
        'UnauthorizedRevocation'
      )
      assert.equal(
        failureOf(await revoke(mallory, proof, { with: space.did() })).name,
        'Unauthorized'
      )
      assert.equal(await refusal(alice, proof), undefined)
    })

    it('may be made again, and outsiders do not undo them', async () => {
      const proof = await allow(space, alice, ['clock/*'])
      for (const revoker of [space, space, alice, mallory]) {
        await Revocation.revoke({ issuer: revoker }, proof, {
          ...service,
          nonce: crypto.randomUUID(),
        })
      }
      assert.match((await refusal(alice, proof)) ?? '', /has been revoked/)
    })

    it('need the delegation', async () => {
      const proof = await allow(space, alice, ['clock/*'])
      const { out } = await Capabilities.revoke
        .invoke({
          issuer: space,
          audience: service.connection.id,
          with: space.did(),
          nb: { ucan: proof.cid },
        })
        .execute(service.connection)
      assert.equal(failureOf(out).name, 'UCANNotFound')
      assert.equal(await refusal(alice, proof), undefined)
    })

    it('stay when the service starts again', async () => {
      await using folder = await createFolder()
      const flags = { dataFolder: folder.path }
      const proof = await allow(space, alice, ['clock/*'])
      {
        await using first = await startTestService(flags)
        await Revocation.revoke({ issuer: space }, proof, first)
      }
      await using second = await startTestService(flags)
      assert.match((await refusal(alice, proof, second)) ?? '', /revoked/)
    })
  })

  describe('told to the upload service', () => {
    let storacha: Storacha

    before(async () => {
      storacha = await startStoracha()
    })

    after(() => storacha[Symbol.asyncDispose]())

    const environment = () => ({
      BLUESKY_BACKUPS_UPLOAD_SERVICE_URL: storacha.url,
    })

    it('stop a delegation here, and stay if the upload service forgets', async () => {
      let now = Date.now()
      await using aware = await startTestService(
        { revocationsPolicy: 'closed', revocationsMaxAge: '10' },
        environment(),
        { time: { now: () => now, sleep: neverWaking } }
      )
      const proof = await allow(space, alice, ['clock/*'])
      assert.equal(await refusal(alice, proof, aware), undefined)
      const there = {
        connection: connect({
          url: new URL(storacha.url),
          did: storacha.did,
        }),
      }
      const { error } = await Revocation.revoke({ issuer: space }, proof, there)
      assert.equal(error, undefined)
      // The answer of before holds for a while.
      assert.equal(await refusal(alice, proof, aware), undefined)
      now += 10_000
      assert.match((await refusal(alice, proof, aware)) ?? '', /been revoked/)
      storacha.faults.down = true
      now += 60_000
      assert.match((await refusal(alice, proof, aware)) ?? '', /been revoked/)
      storacha.faults.down = false
    })

    for (const [policy, expected] of [
      ['open', undefined],
      ['closed', /^RevocationsUnavailable: nobody can tell/],
      ['off', undefined],
    ] as const) {
      it(`may be unknown for a while with the policy ${policy}`, async () => {
        await using cut = await startTestService(
          { revocationsPolicy: policy },
          { BLUESKY_BACKUPS_UPLOAD_SERVICE_URL: 'http://127.0.0.1:9' }
        )
        for (let i = 0; i < 2; i++) {
          const answer = await refusal(
            alice,
            await allow(space, alice, ['clock/*']),
            cut
          )
          if (expected) assert.match(answer ?? '', expected)
          else assert.equal(answer, undefined)
        }
        assert.equal(
          cut.logged().includes('revocations cannot be read'),
          policy !== 'off'
        )
        // Who has the key of the Space needs no proof that could be revoked.
        const { error } = await Clock.head(
          { issuer: space, with: space.did() },
          cut
        )
        assert.equal(error, undefined)
      })
    }

    it('do not count when they are forged', async () => {
      const proof = await allow(space, alice, ['clock/*'])
      const forge = async (
        issuer: Signer,
        options: {
          with?: Signer
          ucan?: unknown
          can?: 'ucan/revoke' | 'ucan/x'
        }
      ) =>
        Delegation.delegate({
          issuer,
          audience: bob,
          capabilities: [
            {
              can: options.can ?? 'ucan/revoke',
              with: (options.with ?? space).did(),
              nb: { ucan: options.ucan ?? proof.cid },
            },
          ] as never,
        })
      const causes = [
        await forge(mallory, {}),
        await forge(mallory, { with: mallory }),
        await forge(space, { ucan: (await allow(space, bob, ['*'])).cid }),
        await forge(space, { can: 'ucan/x' }),
      ]
      const blocks = new Map<string, { cid: Link.Link; bytes: Uint8Array }>()
      const revocations: unknown[] = [{ scope: space.did() }, {}, 'nonsense']
      for (const cause of causes) {
        const archive = await cause.archive()
        assert.ok(archive.ok)
        blocks.set(cause.cid.toString(), { cid: cause.cid, bytes: archive.ok })
        revocations.push({ scope: space.did(), cause: cause.cid })
      }
      const bytes = dagCBOR.encode({ 'revocations@0.0.1': { revocations } })
      const cid = Link.create(dagCBOR.code, await sha256.digest(bytes))
      const body = CAR.encode({
        roots: [{ cid, bytes }],
        blocks: blocks as never,
      })
      await using liar = await startServer((_request, response) => {
        response.end(body)
      })
      await using told = await startTestService(
        { revocationsPolicy: 'closed' },
        { BLUESKY_BACKUPS_UPLOAD_SERVICE_URL: liar.url.href }
      )
      assert.equal(await refusal(alice, proof, told), undefined)
    })

    for (const [name, answer] of Object.entries({
      'no CAR': Buffer.from('<html>'),
      'another CAR': Buffer.from(CAR.encode({ roots: [] })),
      'too much': Buffer.alloc(2 * 1024 * 1024),
    })) {
      it(`are unknown when the answer is ${name}`, async () => {
        await using liar = await startServer((_request, response) => {
          response.end(answer)
        })
        await using told = await startTestService(
          { revocationsPolicy: 'closed' },
          { BLUESKY_BACKUPS_UPLOAD_SERVICE_URL: liar.url.href }
        )
        const proof = await allow(space, alice, ['clock/*'])
        assert.match(
          (await refusal(alice, proof, told)) ?? '',
          /nobody can tell/
        )
      })
    }
  })
})

/** A sleep that lasts until the service stops. */
function neverWaking(_ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((_resolve, reject) => {
    signal?.addEventListener('abort', () => reject(signal.reason as Error))
  })
}
