import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CarReader } from '@ipld/car'
import { equals } from 'multiformats/bytes'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import type { RunningService } from '../../src/service/index.ts'
import {
  createBytes,
  seedAccount,
  startNetwork,
  type Account,
  type Network,
  type Seeded,
} from '../network/index.ts'
import { Agent, createFolder, startTestService } from './harness.ts'

const BLOBS = [1000, 1_500_000]

describe('backups on the command line', () => {
  const resources = new AsyncDisposableStack()
  let network: Network
  let service: RunningService
  let folder: string
  let alice: Account
  let seeded: Seeded
  let agent: Agent

  /** Options that make a command work with the service. */
  const withService = () => ['--service', service.url.href]

  /** An agent with a Space. */
  const createAgent = async (name: string) => {
    const agent = new Agent(join(folder, name), network.environment)
    await agent.json(['login', `${name}@example.com`])
    await agent.json(['space', 'create', name])
    return agent
  }

  before(async () => {
    folder = resources.use(await createFolder()).path
    network = resources.use(await startNetwork())
    service = resources.use(
      await startTestService(network, join(folder, 'service'))
    )
    alice = await network.pds.createAccount({ handle: 'alice.test' })
    seeded = await seedAccount(alice.agent, { posts: 20, blobs: BLOBS })
    agent = await createAgent('alice')
  })

  after(() => resources.disposeAsync())

  describe('run', () => {
    it('has the service make a backup', async () => {
      const { code, stdout, stderr } = await agent.run([
        'backup',
        'run',
        'alice.test',
        ...withService(),
      ])
      assert.equal(code, 0, stderr)
      assert.match(stdout, /\(first\)\naccount +did:plc:/)
      assert.match(stdout, /records +22\n/)
      assert.match(stdout, /2 blobs, in \d+ requests\n/)
      const again = await agent.json([
        'backup',
        'run',
        alice.did,
        ...withService(),
      ])
      assert.equal(again.outcome.kind, 'unchanged')
      assert.match(again.run, /^baf/)
    })
  })
})
