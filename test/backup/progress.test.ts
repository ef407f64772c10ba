import assert from 'node:assert/strict'
import type {
  AccountReader,
  Identity,
  Progress,
} from '../../src/backup/index.ts'
import { trackProgress } from '../../src/backup/progress.ts'

const NOBODY = {} as Identity

async function* chunks(...sizes: number[]) {
  for (const size of sizes) yield new Uint8Array(size)
}

const accounts: AccountReader = {
  latestCommit: () => assert.fail('not asked for'),
  blobs: () => assert.fail('not asked for'),
  repo: async () => chunks(10, 20),
  blob: async () => chunks(3, 4),
}

describe('the progress of a run', () => {
  let now: number
  let requests: number
  let told: Progress[]

  beforeEach(() => {
    now = 1000
    requests = 0
    told = []
  })

  const track = () =>
    trackProgress({
      time: { now: () => now },
      requests: () => requests,
      onProgress: (progress) => told.push({ ...progress }),
    })

  it('has the time of each stage, and the last one ends with the run', () => {
    const { progress, report, end } = track()
    now += 5
    report({ stage: 'resolve', records: 1 })
    report({ stage: 'read' })
    now += 7
    report({ stage: 'blobs' })
    report({ blobs: 2 })
    now += 1
    end()
    now += 100
    end()
    assert.equal(progress.stage, 'blobs')
    assert.deepEqual(progress.stages, [
      { stage: 'resolve', began: 1000, ended: 1005 },
      { stage: 'read', began: 1005, ended: 1012 },
      { stage: 'blobs', began: 1012, ended: 1013 },
    ])
    // What was told before stays as it was.
    assert.deepEqual(told[1]?.stages.at(-1), { stage: 'read', began: 1005 })
  })

  it('counts what is read of the host, also when nobody takes all of it', async () => {
    const { progress, counting, end } = track()
    const counted = counting(accounts)
    for await (const _ of await counted.repo(NOBODY)) break
    assert.equal(progress.bytesRead, 10)
    for await (const _ of await counted.repo(NOBODY)) continue
    for await (const _ of await counted.blob(NOBODY, 'bafy')) continue
    requests = 9
    end()
    assert.equal(told.at(-1)?.bytesRead, 47)
    assert.equal(told.at(-1)?.requests, 9)
  })
})
