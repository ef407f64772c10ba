import assert from 'node:assert/strict'
import { join } from 'node:path'
import type { Signer } from '@ucanto/interface'
import {
  BACKUP_ABILITIES,
  type Authorization as Protocol,
} from '../../src/capabilities/index.ts'
import {
  Authorization,
  Clock,
  connect,
  readReceipt,
  type InvocationConfig,
} from '../../src/client/index.ts'
import { createSha256 } from '../../src/backup/index.ts'
import { HOST_POLICY } from '../../src/service/hosts.ts'
import { RUNNER_POLICY } from '../../src/service/runner.ts'
import { listAuthorizations, mergeHeads } from '../../src/space/index.ts'
import { createSpaceReader } from '../../src/storacha/index.ts'
import { openStores } from '../../src/stores/index.ts'
import { consent } from '../network/consent.ts'
import { findFreePort } from '../network/loopback-server.ts'
import { startNetwork, type Account, type Network } from '../network/index.ts'
import { comeBack } from './come-back.ts'
import {
  allow,
  createActors,
  createFolder,
  failureOf,
  paddedTo,
  startTestService,
  type Space,
  type TestService,
} from './harness.ts'

describe('authorizations of the service', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: TestService
  let account: Account & { did: `did:plc:${string}` }
  let bob: Account
  let alice: Signer
  let space: Space
  let config: InvocationConfig

  before(async () => {
    network = resources.use(await startNetwork())
    service = resources.use(
      await startTestService({}, network.environment, {
        policy: { ...RUNNER_POLICY, progress: 20, poll: 50 },
      })
    )
    account = (await network.pds.createAccount({
      handle: 'alice.test',
    })) as typeof account
    bob = await network.pds.createAccount({ handle: 'bob.test' })
  })

  after(() => resources.disposeAsync())

  beforeEach(async () => {
    ;({ alice, space } = await createActors())
    await network.storacha.provision(space.did())
    config = {
      issuer: alice,
      with: space.did(),
      proofs: [await allow(space, alice, ['authorization/*', 'clock/*'])],
    }
  })

  const request = async (
    options: Partial<Authorization.RequestInput> = {},
    from = config
  ) =>
    Authorization.request(
      from,
      {
        account: account.handle,
        delegation: await allow(space, service.agent, BACKUP_ABILITIES),
        ...options,
      },
      { connection: service.connection, nonce: crypto.randomUUID() }
    )

  const requested = async (...options: Parameters<typeof request>) => {
    const { ok, error } = await request(...options)
    assert.equal(error, undefined, error?.message)
    return ok
  }

  const signIn = (url: string, options = {}) =>
    consent(new URL(url), {
      username: account.handle,
      password: account.password,
      ...options,
    })

  const receiptOf = (task: Parameters<typeof readReceipt>[1]) =>
    readReceipt({ url: service.url, info: service }, task)

  const authorizations = async () => {
    const { ok } = await Clock.head(config, {
      connection: service.connection,
      nonce: crypto.randomUUID(),
    })
    const reader = createSpaceReader({
      gateways: [new URL(network.storacha.url)],
      fetch: globalThis.fetch,
      createSha256,
    })
    const { state } = await mergeHeads(reader, ok!.head as never)
    return listAuthorizations(reader, state, account.did)
  }

  const list = async () => {
    const { ok } = await Authorization.list(config, {
      connection: service.connection,
      nonce: crypto.randomUUID(),
    })
    return ok!.authorizations
  }

  it('get into the Space when the user consents', async () => {
    const { url, task, account: did, expiration } = await requested()
    assert.equal(did, account.did)
    assert.ok(expiration > Date.now() / 1000)
    assert.equal(await receiptOf(task), undefined)

    const { response, page } = await comeBack(await signIn(url))
    assert.equal(response.status, 200, page)
    assert.match(page, /You have let Bluesky Backups in/)
    for (const named of [account.did, space.did()]) {
      assert.match(page, new RegExp(named))
    }

    const receipt = await receiptOf(task)
    const granted = receipt?.ok as Protocol.Granted
    assert.equal(granted.account, account.did)
    assert.equal(granted.agent, service.agent)
    assert.ok(granted.parts.includes('preferences'))
    assert.ok(!granted.parts.includes('conversations'))

    const [own, ...others] = await authorizations()
    assert.deepEqual(others, [])
    assert.equal(own?.agent, service.agent)
    assert.equal(own?.authorization.seq, 1)
    assert.equal(own?.authorization.expiration, granted.expiration)
    assert.match(own?.authorization.recipient ?? '', /^age1/)

    const [listed] = await list()
    assert.equal(listed?.account, account.did)
    assert.equal(listed?.state, 'active')
    assert.deepEqual(listed?.parts, granted.parts)
  })

  it('are not kept before the user says whose the Space is', async () => {
    const { url, task } = await requested({
      returnTo: new URL('https://mallory.example/back'),
    })
    const back = await signIn(url)
    for (let times = 0; times < 2; times++) {
      const { response, page } = await comeBack(back, 'none')
      assert.equal(response.status, 200)
      for (const named of [
        account.handle,
        account.did,
        space.did(),
        alice.did(),
        'mallory.example',
        'preferences',
      ]) {
        assert.ok(page.includes(named), named)
      }
      assert.match(
        response.headers.get('content-security-policy') ?? '',
        /form-action 'self'.*frame-ancestors 'none'/
      )
    }
    assert.equal(await receiptOf(task), undefined)
    assert.deepEqual(await list(), [])

    const { response, page } = await comeBack(back, 'no')
    assert.equal(response.status, 400)
    assert.match(page, /You have said no/)
    assert.equal(
      failureOf((await receiptOf(task))!).name,
      'AuthorizationRefused'
    )
    // Nobody can say yes afterwards.
    const late = await comeBack(back)
    assert.match(late.page, /not valid any more/)
    assert.deepEqual(await list(), [])
    assert.deepEqual(await authorizations(), [])
  })

  it('are not concluded by an answer that is none', async () => {
    const { url } = await requested()
    const back = await signIn(url)
    const answer = (body: string | URLSearchParams) =>
      fetch(new URL('/oauth/callback', service.url), { method: 'POST', body })
    for (const body of ['', 'answer=yes', 'x'.repeat(100)]) {
      assert.equal((await answer(body)).status, 400)
    }
    assert.equal((await answer('x'.repeat(20_000))).status, 413)
    // Who does not say yes has said no.
    const response = await answer(back.searchParams)
    assert.match(await response.text(), /You have said no/)
    assert.deepEqual(await list(), [])
  })

  it('are refused by the user, who is told so', async () => {
    const { url, task } = await requested({
      returnTo: new URL('https://alice.example/back'),
    })
    const back = await signIn(url, { deny: true })
    const { response, page } = await comeBack(back)
    assert.equal(response.status, 400)
    assert.match(page, /You have said no/)
    assert.match(page, /href="https:\/\/alice\.example\/back"/)
    const failure = failureOf((await receiptOf(task))!)
    assert.equal(failure.name, 'AuthorizationRefused')
    assert.deepEqual(await list(), [])

    const again = await comeBack(back)
    assert.match(again.page, /not valid any more/)
  })

  it('are not for another account than was asked for', async () => {
    const { url, task } = await requested({ account: bob.handle })
    const { response, page } = await comeBack(await signIn(url))
    assert.equal(response.status, 400)
    assert.match(page, /This is another account/)
    const failure = failureOf((await receiptOf(task))!)
    assert.equal(failure.name, 'WrongAccount')
    assert.match(failure.message, new RegExp(account.did))
    assert.deepEqual(await list(), [])
    assert.deepEqual(await authorizations(), [])
  })

  it('are concluded once, whoever comes back', async () => {
    const { url } = await requested()
    const back = await signIn(url)
    assert.equal((await comeBack(back)).response.status, 200)
    const before = await authorizations()
    const { response, page } = await comeBack(back)
    assert.equal(response.status, 400)
    assert.match(page, /not valid any more/)
    assert.deepEqual(await authorizations(), before)
  })

  it('are not concluded by nonsense', async () => {
    for (const query of ['', '?state=x', '?state=x&code=y', '?error=z']) {
      const { response, page } = await comeBack(
        new URL(`/oauth/callback${query}`, service.url)
      )
      assert.equal(response.status, 400)
      assert.match(page, /not valid any more/)
      assert.match(
        response.headers.get('content-security-policy') ?? '',
        /default-src 'none'/
      )
    }
  })

  it('are given back, and nothing is left in the Space', async () => {
    const { url } = await requested()
    await comeBack(await signIn(url))
    const revoke = () =>
      Authorization.revoke(
        config,
        { account: account.did },
        { connection: service.connection, nonce: crypto.randomUUID() }
      )
    assert.deepEqual((await revoke()).ok, { revoked: true, confirmed: true })
    assert.deepEqual(await list(), [])
    assert.deepEqual((await revoke()).ok, { revoked: false, confirmed: true })
    const [own] = await authorizations()
    assert.equal(own?.authorization.seq, 2)
    assert.equal(own.authorization.expiration, 0)
    assert.equal(own.authorization.recipient, undefined)
  })

  it('are refused by name where they cannot be', async () => {
    const refused = async (options: Parameters<typeof request>[0]) => {
      const { name } = failureOf(await request(options))
      return name
    }
    assert.equal(await refused({ account: 'nobody.test' }), 'AccountNotFound')
    assert.equal(
      await refused({ delegation: undefined }),
      'InsufficientDelegation'
    )
    for (const address of [
      'http://alice.example/',
      'javascript:alert(1)',
      'https://alice:secret@alice.example/',
    ]) {
      assert.equal(
        await refused({ returnTo: new URL(address) }),
        'InvalidReturn'
      )
    }
    assert.deepEqual(await list(), [])
  })

  it('are not asked for with more than the service keeps', async () => {
    const padding = { delegation: 0, proof: 0 }
    const ask = async () => {
      const padded = await allow(
        space,
        alice,
        BACKUP_ABILITIES,
        paddedTo(padding.proof)
      )
      const delegation = await allow(alice, service.agent, BACKUP_ABILITIES, {
        with: space.did(),
        proofs: [padded],
        ...paddedTo(padding.delegation),
      })
      return request({ delegation })
    }
    for (const where of ['delegation', 'proof'] as const) {
      padding[where] = 256 * 1024
      const { name, message } = failureOf(await ask())
      assert.equal(name, 'InsufficientDelegation')
      assert.match(message, /at most 262144 are kept; leave out proofs/)
      padding[where] = 125 * 1024
    }
    assert.equal((await ask()).error, undefined)
  })

  it('are asked for by so many at the same time for one Space', async () => {
    await using stores = await openStores({
      path: join(service.config.dataFolder, 'service.sqlite'),
    })
    const expires = Date.now() + 60_000
    const ask = (count: number) =>
      stores.grants.addRequest(
        {
          state: crypto.randomUUID(),
          space: space.did(),
          account: `did:plc:${count}`,
          sealed: Uint8Array.of(1),
          delegation: Uint8Array.of(1),
          expires,
        },
        Date.now()
      )
    for (let count = 0; count < 99; count++) await ask(count)
    await requested()
    const { name, message } = failureOf(await request())
    assert.equal(name, 'TooManyRequests')
    assert.match(message, /the Space has 100 requests/)
    // Others are not concerned.
    ;({ alice, space } = await createActors())
    const proofs = [await allow(space, alice, ['authorization/*'])]
    await requested({}, { issuer: alice, with: space.did(), proofs })
  })

  it('are not begun at a host that was asked as often as it may be', async () => {
    await using service = await startTestService(
      { hostRate: '1' },
      network.environment,
      { hostPolicy: { ...HOST_POLICY, patience: 0 } }
    )
    const answer = await Authorization.request(
      config,
      {
        account: account.did,
        delegation: await allow(space, service.agent, BACKUP_ABILITIES),
      },
      { connection: service.connection }
    )
    const { name, message } = failureOf(answer)
    assert.equal(name, 'HostUnavailable')
    assert.match(message, /was asked as often as it may be for now/)
  })

  it('leave no secret in the log', async () => {
    const { url } = await requested()
    const back = await signIn(url)
    await comeBack(back)
    const logged = service.logged()
    for (const name of ['code', 'state']) {
      const secret = back.searchParams.get(name)
      assert.ok(secret && !logged.includes(secret))
    }
    assert.ok(!/eyJ|"d":|refresh_token|access_token/.test(logged))
  })

  it('are asked for under the address of a service that has one', async () => {
    const port = await findFreePort()
    await using folder = await createFolder()
    const publicUrl = 'https://backups.example.dev'
    const read = async () => {
      await using _service = await startTestService(
        { publicUrl, port: `${port}`, dataFolder: folder.path },
        network.environment
      )
      const response = await fetch(
        `http://127.0.0.1:${port}/oauth/client-metadata.json`
      )
      assert.equal(response.status, 200)
      assert.match(
        response.headers.get('content-type') ?? '',
        /^application\/json/
      )
      return (await response.json()) as {
        client_id: string
        redirect_uris: string[]
        token_endpoint_auth_method: string
        jwks: { keys: Record<string, unknown>[] }
      }
    }
    const metadata = await read()
    assert.equal(metadata.client_id, `${publicUrl}/oauth/client-metadata.json`)
    assert.deepEqual(metadata.redirect_uris, [`${publicUrl}/oauth/callback`])
    assert.equal(metadata.token_endpoint_auth_method, 'private_key_jwt')
    const [key] = metadata.jwks.keys
    assert.equal(key?.['crv'], 'P-256')
    assert.ok(!('d' in key))
    // The same after a restart: grants are bound to it.
    assert.deepEqual(await read(), metadata)
  })

  it('are refused by a service that hosts cannot know', async () => {
    const port = await findFreePort()
    await using service = await startTestService(
      { publicUrl: 'http://backups.example.dev', port: `${port}` },
      network.environment
    )
    const url = new URL(`http://127.0.0.1:${port}`)
    const { name, message } = failureOf(
      await Authorization.request(
        config,
        { account: account.handle },
        { connection: connect({ url, did: service.did }) }
      )
    )
    assert.equal(name, 'HostRefused')
    assert.match(message, /--public-url/)
  })
})
