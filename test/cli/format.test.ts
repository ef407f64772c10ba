import assert from 'node:assert/strict'
import {
  formatBytes,
  formatCount,
  formatExpiration,
  formatFields,
  formatTable,
  parseDuration,
  printable,
} from '../../src/cli/format.ts'

describe('format', () => {
  it('gives bytes three digits', () => {
    for (const [bytes, text] of [
      [0, '0 B'],
      [999, '999 B'],
      [1000, '1.00 kB'],
      [12_340, '12.3 kB'],
      [99_940, '99.9 kB'],
      [99_960, '100 kB'],
      [999_600, '1.00 MB'],
      [5_500_000_000, '5.50 GB'],
      [7e15, '7000 TB'],
    ] as const) {
      assert.equal(formatBytes(bytes), text)
    }
  })

  it('counts', () => {
    assert.equal(formatCount(1, 'blob'), '1 blob')
    assert.equal(formatCount(20_000, 'record'), '20,000 records')
  })

  it('reads durations', () => {
    assert.equal(parseDuration('90s'), 90)
    assert.equal(parseDuration('15m'), 900)
    assert.equal(parseDuration('24h'), 86_400)
    assert.equal(parseDuration('2w'), 1_209_600)
    assert.equal(parseDuration('1y'), 31_536_000)
    for (const text of ['', '5', 'd', '1.5d', '-1d', '1 d', '9999999999s']) {
      assert.equal(parseDuration(text), undefined, text)
    }
  })

  it('tells when something ends', () => {
    assert.equal(formatExpiration(Infinity), 'never')
    assert.equal(formatExpiration(Number.MAX_SAFE_INTEGER), 'never')
    assert.equal(formatExpiration(0), '1970-01-01T00:00:00.000Z')
  })

  it('aligns fields and leaves out those without a value', () => {
    assert.equal(
      formatFields([
        ['a', '1'],
        ['longer', '2'],
        ['none', undefined],
      ]),
      'a       1\nlonger  2'
    )
  })

  it('aligns columns', () => {
    assert.equal(
      formatTable(['A', 'LONG'], [['value', '']]),
      'A      LONG\nvalue'
    )
  })

  it('takes the power over a terminal from what others wrote', () => {
    assert.equal(printable('a\u001b[2Jb\r\u0007\u202ec'), 'a?[2Jb???c')
  })
})
