import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { RunningService } from '../../src/service/index.ts'
import { startNetwork, type Network } from '../network/index.ts'
import { Agent, createFolder, startTestService } from './harness.ts'

describe('delegation', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: RunningService
  let folder: string
  let alice: Agent
  let homes = 0

  before(async () => {
    folder = resources.use(await createFolder()).path
    network = resources.use(await startNetwork())
    service = resources.use(
      await startTestService(network, join(folder, 'service'))
    )
    alice = createAgent()
    await alice.json(['login', 'alice@example.com'])
    await alice.json(['space', 'create', 'backups'])
  })

  after(() => resources.disposeAsync())

  const createAgent = () =>
    new Agent(join(folder, `home ${++homes}`), {
      ...network.environment,
      BLUESKY_BACKUPS_SERVICE_URL: service.url.href,
    })

  it('lists what was given, until when, and what of it was revoked', async () => {
    assert.match(
      (await createAgent().run(['delegation', 'ls'])).stdout,
      /^none yet; /
    )
    const { cid, audience } = await alice.json(['delegate'])
    const { delegations } = await alice.json(['delegation', 'ls'])
    assert.equal(delegations.length, 1)
    assert.equal(delegations[0].cid, cid)
    assert.equal(delegations[0].audience, audience)
    assert.equal(delegations[0].state, 'valid')
    const { stdout } = await alice.run(['delegation', 'ls'])
    assert.match(stdout, new RegExp(`${cid}.*clock|${cid}`))

    const { told } = await alice.json(['delegation', 'revoke', cid])
    assert.deepEqual(
      told.map(({ place, revoked }: { place: string; revoked: boolean }) => [
        place,
        revoked,
      ]),
      [
        ['upload service', true],
        ['backup service', true],
      ]
    )
    const again = await alice.json(['delegation', 'ls'])
    assert.deepEqual(
      again.delegations.map(({ state }: { state: string }) => state),
      ['revoked']
    )
  })

  it('may be given as a file of either form to revoke it', async () => {
    const bob = createAgent()
    const { agent: did } = await bob.json(['whoami'])
    for (const form of [[], ['--base64']]) {
      const file = join(folder, `bob${form.length}.ucan`)
      await alice.json(['delegate', did, '-o', file, ...form])
      const { told } = await alice.json(['delegation', 'revoke', file])
      assert.ok(told.every(({ revoked }: { revoked: boolean }) => revoked))
    }
  })

  it('is for those to revoke who have a part in it', async () => {
    const mallory = createAgent()
    const file = join(folder, 'service.ucan')
    await alice.json(['delegate', '-o', file])
    const { code, json } = await mallory.run([
      'delegation',
      'revoke',
      file,
      '--json',
    ])
    assert.equal(code, 1)
    assert.equal(json.told[1].error.name, 'UnauthorizedRevocation')
  })

  it('is revoked where it can be, when a place does not answer', async () => {
    const { cid } = await alice.json(['delegate'])
    const { code, stdout } = await alice.run(['delegation', 'revoke', cid], {
      env: { BLUESKY_BACKUPS_SERVICE_URL: 'http://127.0.0.1:9' },
    })
    assert.equal(code, 1)
    assert.match(stdout, /^revoked at the upload service/)
    assert.match(
      stdout,
      /not revoked at the backup service .*cannot be reached/
    )
  })

  it('must be there, and be one', async () => {
    const nonsense = join(folder, 'nonsense')
    await writeFile(nonsense, 'nonsense')
    for (const [word, message] of [
      ['bafynothing', /neither a delegation that this agent keeps nor a file/],
      [nonsense, /does not hold a delegation/],
      [folder, /neither a delegation/],
    ] as const) {
      const { code, stderr } = await alice.run(['delegation', 'revoke', word])
      assert.equal(code, 2)
      assert.match(stderr, message)
    }
    await writeFile(
      join(alice.home, 'delegations', 'bafyother.ucan'),
      'nonsense'
    )
    const { code, stderr } = await alice.run(['delegation', 'ls'])
    assert.equal(code, 1)
    assert.match(stderr, /bafyother\.ucan does not hold a delegation; move/)
  })
})
