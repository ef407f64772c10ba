import assert from 'node:assert/strict'
import { PassThrough } from 'node:stream'
import { createProgress, describeProgress } from '../../src/cli/progress.ts'

const PROGRESS = {
  stage: 'blobs',
  stages: [],
  bytesRead: 5100,
  records: 1234,
  repoBytes: 5000,
  blobs: 60,
  blobsDone: 3,
  blobsMissing: 0,
  blobsFailed: 1,
  blobBytes: 100,
  blocksUploaded: 10,
  bytesUploaded: 2_500_000,
  blobsUploaded: 2,
  requests: 7,
}

describe('progress', () => {
  it('is told in a line', () => {
    assert.equal(
      describeProgress(PROGRESS),
      'fetching blobs, 1,234 records, 4/60 blobs, 2.50 MB uploaded'
    )
    assert.equal(
      describeProgress({
        ...PROGRESS,
        stage: 'something new',
        records: 0,
        blobs: 0,
        bytesUploaded: 0,
      }),
      'something new'
    )
  })

  it('is a line for a change, and not many', () => {
    const { stderr, text } = collect(false)
    const display = createProgress({ stderr })
    for (let i = 0; i < 100; i++) display.update(`step ${i}`, i, 100)
    display.end()
    assert.equal(text(), 'step 0\n')
  })

  it('is a bar on a terminal, and gone at the end', () => {
    const { stderr, text } = collect(true)
    const display = createProgress({ stderr })
    display.end()
    assert.equal(text(), '')
    display.update('working', 0, 0)
    display.update('working', 5, 10)
    display.end()
    display.end()
    assert.match(text(), /\[-{20}\] working/)
    assert.match(text(), /\[={10}-{10}\] working/)
    assert.ok(text().includes('\u001b[?25h'))
  })
})

function collect(isTTY: boolean) {
  const stderr = Object.assign(new PassThrough(), { isTTY, columns: 80 })
  return {
    stderr,
    text: () => {
      const text = (stderr.read() as Buffer | null)?.toString() ?? ''
      stderr.unshift(text)
      return text
    },
  }
}
