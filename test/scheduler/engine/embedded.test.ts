import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { leasesContract } from './contract/leases.ts'
import { queueContract } from './contract/queue.ts'
import { sharingContract } from './contract/sharing.ts'
import { bind } from './harness.ts'
import type { TestPlace } from './harness.ts'

async function createFile(): Promise<TestPlace> {
  const folder = await mkdtemp(join(tmpdir(), 'engine-'))
  const policy = { lease: 900, heartbeat: 151, poll: 20, grace: 2_000 }
  return {
    place: { path: join(folder, 'service.sqlite'), policy },
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true }),
  }
}

describe('embedded job engine', () => {
  describe('queue', () => bind(queueContract, createFile))
  describe('sharing', () => bind(sharingContract, createFile))
  describe('leases', () => bind(leasesContract, createFile))
})
