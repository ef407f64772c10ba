import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { delegate, DID, invoke } from '@ucanto/core'
import type { Delegation, Link, Receipt, Signer } from '@ucanto/interface'
import { ed25519, Verifier } from '@ucanto/principal'
import { CAR } from '@ucanto/transport'
import { CID } from 'multiformats/cid'
import {
  Backup as Capabilities,
  BACKUP_ABILITIES,
} from '../../src/capabilities/index.ts'
import { Backup } from '../../src/client/index.ts'
import type { RunInput } from '../../src/client/backup.ts'
import { decodeDelegations } from '../../src/service/authority.ts'
import { openStores } from '../../src/stores/index.ts'
import {
  allow,
  blockOf,
  createActors,
  eventOf,
  failureOf,
  paddedTo,
  seconds,
  startServer,
  startTestService,
  until,
  type Space,
  type TestService,
} from './harness.ts'

const ACCOUNT = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const OTHER_ACCOUNT = 'did:plc:vwzwgnygau7ed7b7wt5ux7y2'

describe('backup handlers', () => {
  const resources = new AsyncDisposableStack()
  /** Runs at this one never end: nobody answers it. */
  let service: TestService
  let alice: Signer
  let bob: Signer
  let mallory: Signer
  let space: Space
  let proofs: Delegation[]
  let delegation: Delegation

  before(async () => {
    const silence = resources.use(await startServer(() => {}))
    service = resources.use(
      await startTestService({ plcUrl: silence.url.href })
    )
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    ;({ alice, bob, mallory, space } = await createActors())
    proofs = [await allow(space, alice, ['backup/*'])]
    delegation = await allow(space, service.agent, BACKUP_ABILITIES)
  })

  const run = async (
    input: Partial<RunInput> = {},
    options: { nonce?: string; expiration?: number; proofs?: Delegation[] } = {}
  ) => {
    const { connection } = service
    const { ok, error } = await Backup.run(
      {
        issuer: alice,
        with: space.did(),
        proofs: options.proofs ?? proofs,
      },
      { account: ACCOUNT, delegation, ...input },
      { connection, nonce: crypto.randomUUID(), ...options }
    )
    return error
      ? { name: error.name, message: error.message }
      : { run: ok.run }
  }

  const status = async (run?: Link) => {
    const { ok, error } = await Backup.status(
      { issuer: alice, with: space.did(), proofs },
      run ? { run } : {},
      service
    )
    assert.equal(error, undefined)
    return ok.runs
  }

  describe('run', () => {
    it('queues a run of what was delegated', async () => {
      const started = Date.now()
      const answer = await run()
      assert.ok(answer.run, answer.message)
      const [listed, ...others] = await status(answer.run)
      assert.deepEqual(others, [])
      assert.ok(listed)
      const { run: link, account, created, state } = listed
      assert.equal(link.toString(), answer.run.toString())
      assert.equal(account, ACCOUNT)
      assert.match(state, /^queued|running$/)
      assert.ok(created >= started && created <= Date.now())
    })

    it('forks the task that the run is named by', async () => {
      const receipt = await invokeRun()
      assert.deepEqual(
        receipt.fx.fork.map((task) => task.link().toString()),
        [(receipt.out.ok as { run: Link }).run.toString()]
      )
      const [task] = receipt.fx.fork as readonly unknown[] as Delegation[]
      assert.equal(task?.issuer.did(), service.agent)
      assert.deepEqual(task.capabilities, [
        {
          can: 'backup/perform',
          with: service.agent,
          nb: {
            space: space.did(),
            account: ACCOUNT,
            cause: receipt.ran.link(),
          },
        },
      ])
    })

    it('is the same for the same invocation', async () => {
      const options = { nonce: 'same', expiration: seconds(60) }
      const one = await run({}, options)
      const two = await run({}, options)
      assert.ok(one.run)
      assert.equal(two.run?.toString(), one.run.toString())
      assert.equal((await status()).length, 1)
    })

    it('is the one there is while it goes on', async () => {
      const one = await run()
      const two = await invokeRun()
      assert.equal(
        (two.out.ok as { run: Link }).run.toString(),
        one.run?.toString()
      )
      assert.deepEqual(two.fx.fork, [])
      const other = await run({ account: OTHER_ACCOUNT })
      assert.ok(other.run)
      assert.notEqual(other.run.toString(), one.run?.toString())
      assert.equal((await status()).length, 2)
    })

    it('takes the power from the proofs when the service invokes itself', async () => {
      const { key } = await serviceSigner()
      const stored = await allow(space, service.agent, [
        ...BACKUP_ABILITIES,
        'backup/run',
      ])
      const { ok, error } = await Backup.run(
        { issuer: key, with: space.did(), proofs: [stored] },
        { account: ACCOUNT },
        service
      )
      assert.equal(error, undefined)
      assert.equal((await status())[0]?.run.toString(), ok.run.toString())
    })

    it('refuses more than it keeps of what is delegated, with its proofs', async () => {
      const give = async (size: number) => {
        const padded = await allow(
          space,
          alice,
          BACKUP_ABILITIES,
          paddedTo(size)
        )
        const delegation = await allow(alice, service.agent, BACKUP_ABILITIES, {
          with: space.did(),
          proofs: [padded],
        })
        return run({ delegation })
      }
      const { name, message } = await give(256 * 1024)
      assert.equal(name, 'InsufficientDelegation')
      assert.match(message, /at most 262144 are kept; leave out proofs/)
      assert.deepEqual(await status(), [])
      assert.ok((await give(250 * 1024)).run)
    })

    it('refuses an account outside the delegation', async () => {
      const narrow = await allow(space, alice, ['backup/run'], {
        nb: { account: ACCOUNT },
      })
      const answer = await run({ account: OTHER_ACCOUNT }, { proofs: [narrow] })
      assert.equal(answer.name, 'Unauthorized')
      assert.match(answer.message, new RegExp(`for account ${ACCOUNT}`))
      assert.ok((await run({}, { proofs: [narrow] })).run)
    })

    it('refuses parts outside the delegation', async () => {
      const narrow = await allow(space, alice, ['backup/run'], {
        nb: { include: [] },
      })
      for (const include of [undefined, ['blobs' as const]]) {
        const answer = await run(include ? { include } : {}, {
          proofs: [narrow],
        })
        assert.equal(answer.name, 'Unauthorized')
        assert.match(answer.message, /limits include/)
      }
      assert.ok((await run({ include: [] }, { proofs: [narrow] })).run)
    })

    it('refuses what is no account', async () => {
      for (const account of ['did:key:z6Mk', 'did:plc:', 'alice.test', 1]) {
        const receipt = await invoke({
          issuer: space,
          audience: service.connection.id,
          capability: {
            can: 'backup/run',
            with: space.did(),
            nb: { account },
          },
        }).execute(service.connection as never)
        const { name, message } = failureOf(receipt.out)
        assert.equal(name, 'Unauthorized')
        assert.match(message, /malformed .*"account"/s)
      }
    })

    it('refuses who may not ask', async () => {
      const foreign = await allow(mallory, alice, ['backup/*'], {
        with: space.did(),
      })
      for (const proofs of [[], [foreign]]) {
        const answer = await run({}, { proofs })
        assert.equal(answer.name, 'Unauthorized')
      }
      assert.deepEqual(await status(), [])
    })

    describe('refuses a delegation', () => {
      const refused = async (delegation: Delegation, message: RegExp) => {
        const answer = await run({ delegation })
        assert.equal(answer.name, 'InsufficientDelegation', answer.message)
        assert.match(answer.message, message)
        assert.deepEqual(await status(), [])
      }

      for (const lacking of BACKUP_ABILITIES) {
        it(`without ${lacking}`, async () => {
          await refused(
            await allow(
              space,
              service.agent,
              BACKUP_ABILITIES.filter((can) => can !== lacking)
            ),
            new RegExp(`does not allow ${lacking} in ${space.did()}`)
          )
        })

        it(`with ${lacking} for one thing only`, async () => {
          const { cid } = await eventOf('event')
          const delegation = await delegate({
            issuer: space,
            audience: DID.parse(service.agent),
            capabilities: BACKUP_ABILITIES.map((can) => ({
              can,
              with: space.did(),
              ...(can === lacking ? { nb: { event: cid } } : {}),
            })) as never,
            expiration: Infinity,
          })
          await refused(delegation, new RegExp(`not allow ${lacking} in`))
        })
      }

      it('that is not there', async () => {
        const answer = await Backup.run(
          { issuer: alice, with: space.did(), proofs },
          { account: ACCOUNT },
          service
        )
        assert.equal(answer.error?.name, 'InsufficientDelegation')
        assert.match(answer.error.message, /nothing is delegated to .*did:key/)
      })

      it('that is named and not attached', async () => {
        const receipt = await Capabilities.run
          .invoke({
            issuer: alice,
            audience: service.connection.id,
            with: space.did(),
            nb: { account: ACCOUNT, delegation: delegation.cid },
            proofs,
          })
          .execute(service.connection)
        assert.equal(receipt.out.error?.name, 'InsufficientDelegation')
        assert.match(receipt.out.error.message, /is not attached/)
      })

      it('that is none', async () => {
        const block = await blockOf({ not: 'a delegation' })
        const invocation = Capabilities.run.invoke({
          issuer: alice,
          audience: service.connection.id,
          with: space.did(),
          nb: { account: ACCOUNT, delegation: block.cid },
          proofs,
        })
        invocation.attach(block)
        const { out } = await invocation.execute(service.connection)
        assert.equal(out.error?.name, 'InsufficientDelegation')
        assert.match(out.error.message, /cannot be read/)
      })

      it('to somebody else', async () => {
        await refused(
          await allow(space, bob, BACKUP_ABILITIES),
          /nothing is delegated to the service/
        )
      })

      it('of the did:web, which upload services do not know', async () => {
        await refused(
          await allow(space, service.did, BACKUP_ABILITIES),
          /nothing is delegated to the service's agent did:key/
        )
      })

      it('of another Space', async () => {
        const other = await ed25519.generate()
        await refused(
          await allow(other, service.agent, BACKUP_ABILITIES),
          /does not allow space\/blob\/add, .*clock\/advance in/
        )
      })

      it('that the Space did not give', async () => {
        await refused(
          await allow(mallory, service.agent, BACKUP_ABILITIES, {
            with: space.did(),
          }),
          /does not allow space\/blob\/add/
        )
      })

      it('that has expired', async () => {
        await refused(
          await allow(space, service.agent, BACKUP_ABILITIES, {
            expiration: seconds(-1),
          }),
          /does not allow .*expired/s
        )
      })

      it('that begins later', async () => {
        await refused(
          await allow(space, service.agent, BACKUP_ABILITIES, {
            notBefore: seconds(60),
          }),
          /does not allow .*not valid before/s
        )
      })

      it('whose proof is not attached', async () => {
        const toBob = await allow(space, bob, BACKUP_ABILITIES)
        const delegation = await delegate({
          issuer: bob,
          audience: DID.parse(service.agent),
          capabilities: BACKUP_ABILITIES.map((can) => ({
            can,
            with: space.did(),
          })) as never,
          proofs: [toBob.cid],
          expiration: Infinity,
        })
        await refused(delegation, /does not allow .*is not included/s)
      })
    })

    it('takes a delegation that went through others', async () => {
      const toBob = await allow(space, bob, ['*'])
      const delegation = await allow(bob, service.agent, BACKUP_ABILITIES, {
        with: space.did(),
        proofs: [toBob],
      })
      assert.ok((await run({ delegation })).run)
    })

    it('keeps of what was delegated only what is for the service', async () => {
      const { key } = await serviceSigner()
      const stored = await allow(space, service.agent, [
        ...BACKUP_ABILITIES,
        'backup/run',
      ])
      const foreign = await allow(mallory, bob, ['*'])
      const { ok } = await Backup.run(
        { issuer: key, with: space.did(), proofs: [foreign, stored] },
        { account: ACCOUNT },
        service
      )
      await using stores = await openStores({
        path: join(service.config.dataFolder, 'service.sqlite'),
      })
      const kept = await stores.runs.get(ok!.run.toString())
      assert.equal(kept?.scheduled, true)
      const [task, ...proofs_] = decodeDelegations(kept.authority)
      assert.equal(task?.cid.toString(), ok?.run.toString())
      assert.deepEqual(
        proofs_.map(({ cid }) => cid.toString()),
        [stored.cid.toString()]
      )
    })
  })

  describe('status', () => {
    it('lists the runs of the Space, newest first', async () => {
      assert.deepEqual(await status(), [])
      const runs = []
      for (const account of [ACCOUNT, OTHER_ACCOUNT, 'did:web:c.example']) {
        const { run: link } = await run({
          account: account as typeof ACCOUNT,
        })
        runs.unshift(link!.toString())
        await new Promise((resolve) => setTimeout(resolve, 2))
      }
      const listed = await status()
      assert.deepEqual(
        listed.map(({ run }) => run.toString()),
        runs
      )
    })

    it('lists those of an account, and as many as are asked for', async () => {
      const { run: one } = await run()
      const { run: two } = await run({ account: OTHER_ACCOUNT })
      const config = { issuer: alice, with: space.did(), proofs }
      const listed = async (input: Backup.StatusInput) => {
        const { ok, error } = await Backup.status(config, input, {
          ...service,
          nonce: crypto.randomUUID(),
        })
        return error?.name ?? ok!.runs.map(({ run }) => run.toString())
      }
      assert.deepEqual(await listed({ account: ACCOUNT }), [one!.toString()])
      assert.deepEqual(await listed({ limit: 1_000_000 }), [
        two!.toString(),
        one!.toString(),
      ])
      assert.deepEqual(await listed({ limit: 1 }), [two!.toString()])
      assert.deepEqual(await listed({ run: one!, account: ACCOUNT }), [
        one!.toString(),
      ])
      const wrong = { run: one!, account: OTHER_ACCOUNT } as const
      assert.equal(await listed(wrong), 'RunNotFound')
    })

    it('tells nothing of the runs of others', async () => {
      const { run: link } = await run()
      const theirs = await ed25519.generate()
      const config = { issuer: theirs, with: theirs.did() }
      const { ok } = await Backup.status(config, {}, service)
      assert.deepEqual(ok, { runs: [] })
      const { error } = await Backup.status(config, { run: link! }, service)
      assert.equal(error?.name, 'RunNotFound')
    })

    it('does not know what never was', async () => {
      const { error } = await Backup.status(
        { issuer: alice, with: space.did(), proofs },
        { run: (await eventOf('nothing')).cid },
        service
      )
      assert.equal(error?.name, 'RunNotFound')
      assert.match(error.message, /there is no run bafy/)
    })

    it('may be allowed for one run', async () => {
      const [one, two] = [await run(), await run({ account: OTHER_ACCOUNT })]
      const narrow = await allow(space, bob, ['backup/status'], {
        nb: { run: one.run },
      })
      const config = { issuer: bob, with: space.did(), proofs: [narrow] }
      const { ok } = await Backup.status(config, { run: one.run! }, service)
      assert.equal(ok?.runs.length, 1)
      for (const input of [{}, { run: two.run! }]) {
        const { error } = await Backup.status(config, input, service)
        assert.equal(error?.name, 'Unauthorized')
      }
    })
  })

  describe('perform', () => {
    it('can be invoked by nobody', async () => {
      const { key } = await serviceSigner()
      for (const issuer of [alice, key]) {
        const receipt = await invoke({
          issuer,
          audience: service.connection.id,
          capability: {
            can: 'backup/perform',
            with: issuer.did() as `did:key:${string}`,
            nb: {
              space: space.did(),
              account: ACCOUNT,
              cause: delegation.cid,
            },
          },
        }).execute(service.connection as never)
        assert.equal(failureOf(receipt.out).name, 'HandlerNotFound')
      }
    })
  })

  it('concludes the task with a receipt that anybody can verify', async () => {
    // Here nobody listens where the account would be looked up.
    await using service = await startTestService()
    const delegation = await allow(space, service.agent, BACKUP_ABILITIES)
    const { ok } = await Backup.run(
      { issuer: alice, with: space.did(), proofs },
      { account: 'did:web:127.0.0.1%3A9', delegation },
      service
    )
    const task = ok!.run
    const receipt = await until(() => fetchReceipt(service, task), 20_000)
    assert.equal(receipt.ran.link().toString(), task.toString())
    const error = failureOf(receipt.out)
    assert.match(error.name, /^[A-Z]\w+Error$/)
    assert.deepEqual(Object.keys(error).sort(), ['message', 'name'])
    assert.equal(receipt.issuer?.did(), service.did)
    assert.ok(
      (
        await receipt.verifySignature(
          Verifier.parse(await keyOf(service)).withDID(
            service.did as `did:web:${string}`
          )
        )
      ).ok
    )
    const { ok: after } = await Backup.status(
      { issuer: alice, with: space.did(), proofs },
      { run: task },
      service
    )
    const [status] = after!.runs
    assert.equal(status?.state, 'failed')
    assert.deepEqual(status.error, error)
    assert.ok(status.finished! >= status.started!)
    assert.equal(status.attempts, 1)
  })

  /** The invocation with all that its receipt says. */
  async function invokeRun() {
    const blocks = [...delegation.export()]
    const invocation = Capabilities.run.invoke({
      issuer: alice,
      audience: service.connection.id,
      with: space.did(),
      nb: { account: ACCOUNT, delegation: delegation.cid },
      proofs,
      facts: [
        Object.fromEntries(blocks.map(({ cid }) => [cid.toString(), cid])),
      ],
      nonce: crypto.randomUUID(),
    })
    for (const block of blocks) invocation.attach(block)
    return invocation.execute(service.connection)
  }

  async function serviceSigner() {
    const text = await readFile(service.config.keyFile, 'utf8')
    return { key: ed25519.parse(text.trim()) }
  }
})

async function fetchReceipt(
  service: TestService,
  task: Link
): Promise<Receipt | undefined> {
  const response = await fetch(
    new URL(`receipt/${task.toString()}`, service.url)
  )
  if (response.status === 404) return undefined
  assert.equal(response.status, 200)
  const message = await CAR.request.decode({
    headers: Object.fromEntries(response.headers),
    body: await response.bytes(),
  })
  return message.get(CID.parse(task.toString()) as never)
}

/** The key of a service, as its DID document has it. */
async function keyOf(service: TestService): Promise<`did:key:${string}`> {
  const response = await fetch(new URL('.well-known/did.json', service.url))
  const { id, verificationMethod } = (await response.json()) as {
    id: string
    verificationMethod: [{ publicKeyMultibase: string }]
  }
  assert.equal(id, service.did)
  return `did:key:${verificationMethod[0].publicKeyMultibase}`
}
