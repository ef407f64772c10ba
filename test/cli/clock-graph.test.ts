import assert from 'node:assert/strict'
import { drawGraph, toDot } from '../../src/cli/clock-graph.ts'

/** Histories, children before parents, and how they are drawn. */
const HISTORIES: [
  name: string,
  events: [id: string, ...parents: string[]][],
  drawn: string,
][] = [
  ['nothing', [], ''],
  [
    'one line',
    [['c', 'b'], ['b', 'a'], ['a']],
    `
●  c
●  b
●  a`,
  ],
  [
    'a merge of two',
    [['m', 'l', 'r'], ['l', 'a'], ['r', 'a'], ['a']],
    `
●  m
├─╮
● │  l
│ ●  r
├─╯
●  a`,
  ],
  [
    'a merge of three',
    [['m', 'l', 'r', 's'], ['l', 'a'], ['r', 'a'], ['s', 'a'], ['a']],
    `
●  m
├─╮
├─┼─╮
● │ │  l
│ ● │  r
├─╯ │
│   ●  s
├───╯
●  a`,
  ],
  [
    'two heads',
    [['x', 'a'], ['y', 'a'], ['a']],
    `
●  x
│ ●  y
├─╯
●  a`,
  ],
  [
    'a line that joins to the right',
    [['x', 'a', 'b'], ['a', 'b'], ['b']],
    `
●  x
├─╮
● │  a
╰─┤
  ●  b`,
  ],
  [
    'a line that goes on and joins another',
    [['m', 'l', 'r'], ['r', 'l', 'q'], ['l', 'q'], ['q']],
    `
●  m
├─╮
│ ●  r
├─┤
● │  l
╰─┤
  ●  q`,
  ],
  [
    'columns that are free again',
    [['m', 'l', 'r'], ['r'], ['l', 'j', 'k'], ['k'], ['j']],
    `
●  m
├─╮
│ ●  r
●  l
├─╮
│ ●  k
●  j`,
  ],
  ['histories that never meet', [['x'], ['y']], '\n●  x\n●  y'],
  [
    'earlier events that are not drawn',
    [
      ['m', 'l', 'r'],
      ['l', 'a'],
    ],
    `
●  m
├─╮
● │  l
┊ ┊`,
  ],
]

describe('graph of a clock', () => {
  for (const [name, events, drawn] of HISTORIES) {
    it(`draws ${name}`, () => {
      const rows = events.map(([id, ...parents]) => ({
        id,
        parents,
        lines: [id],
      }))
      assert.equal(drawGraph(rows).join('\n'), drawn.slice(1))
    })
  }

  it('goes on beside several lines of text', () => {
    const drawn = drawGraph([
      { id: 'm', parents: ['l', 'r'], lines: ['m', 'more'] },
      { id: 'l', parents: [], lines: ['l', 'of', 'it'] },
      { id: 'r', parents: [], lines: ['r'], missing: true },
    ])
    assert.deepEqual(drawn, [
      '●  m',
      '│  more',
      '├─╮',
      '● │  l',
      '  │  of',
      '  │  it',
      '  ○  r',
    ])
  })

  it('is written for Graphviz', () => {
    const dot = toDot([
      { id: 'b', parents: ['a'], lines: ['b', 'says "\\" \u001b[31m'] },
      { id: 'a', parents: [], lines: ['a'], missing: true },
    ])
    assert.equal(
      dot,
      String.raw`digraph clock {
  node [shape=box]
  "b" [label="b\nsays \"\\\" ?[31m"]
  "a" [label="a", style=dashed]
  "b" -> "a"
}`
    )
  })
})
