import { printable } from './format.ts'

/** An event as it is drawn. */
export interface GraphRow {
  id: string
  /** Ids of what it replaces, each once. */
  parents: string[]
  /** Text beside it, the first line beside its mark. */
  lines: string[]
  /** Whether it could not be read. */
  missing?: boolean
}

/** What a column is drawn toward: the id that ends it, or nothing. */
type Columns = (string | undefined)[]

const MARK = '●'
const MISSING_MARK = '○'
const LINE = '│'
const GOES_ON = '┊'

/**
 * Draws a history: a column for each line of it, and where one joins another.
 *
 * @param rows - children before parents
 * @returns lines for a terminal
 */
export function drawGraph(rows: GraphRow[]): string[] {
  const columns: Columns = []
  const drawn: string[] = []
  for (const { id, parents, lines, missing } of rows) {
    const column = openColumn(columns, id)
    const [first, ...others] = lines
    const mark = missing ? MISSING_MARK : MARK
    drawn.push(beside(marked(columns, column, mark), first))
    columns[column] = undefined

    // A parent that a column leads to already is joined there; the first of
    // the others goes on in this column, and each further one in a new one.
    const joined = parents.filter((parent) => columns.includes(parent))
    const [straight, ...branches] = parents.filter(
      (parent) => !joined.includes(parent)
    )
    columns[column] = straight
    const goesDown = parents.length > 0
    for (const line of others) {
      const below = goesDown ? LINE : ' '
      drawn.push(beside(marked(columns, column, below), line))
    }
    const edges = [...joined, ...branches]
    for (const [position, parent] of edges.entries()) {
      const isNew = !columns.includes(parent)
      const before = columns.slice()
      const target = openColumn(columns, parent, column)
      const ends = straight === undefined && position === edges.length - 1
      drawn.push(edge(before, column, target, { isNew, ends }))
    }
    while (columns.length > 0 && columns.at(-1) === undefined) columns.pop()
  }
  if (columns.some((open) => open !== undefined)) {
    drawn.push(
      columns
        .map((open) => (open === undefined ? ' ' : GOES_ON))
        .join(' ')
        .trimEnd()
    )
  }
  return drawn
}

/** The history for Graphviz: each event points to what it replaces. */
export function toDot(rows: GraphRow[]): string {
  const nodes = rows.map(
    ({ id, lines, missing }) =>
      `  ${quoted(id)} [label=${quoted(lines.join('\n'))}${missing ? ', style=dashed' : ''}]`
  )
  const edges = rows.flatMap(({ id, parents }) =>
    parents.map((parent) => `  ${quoted(id)} -> ${quoted(parent)}`)
  )
  return [
    'digraph clock {',
    '  node [shape=box]',
    ...nodes,
    ...edges,
    '}',
  ].join('\n')
}

/** The column that leads to an id; the first that is free, if none does. */
function openColumn(columns: Columns, id: string, taken?: number): number {
  const leading = columns.indexOf(id)
  if (leading !== -1) return leading
  let free = 0
  while (free === taken || columns[free] !== undefined) free++
  columns[free] = id
  return free
}

function marked(columns: Columns, column: number, mark: string): string {
  const width = Math.max(columns.length, column + 1)
  return Array.from({ length: width }, (_, at) =>
    at === column ? mark : columns[at] === undefined ? ' ' : LINE
  ).join(' ')
}

/** A line from a column to another, which crosses those between. */
function edge(
  columns: Columns,
  from: number,
  to: number,
  { isNew, ends }: { isNew: boolean; ends: boolean }
): string {
  const right = to > from
  const [left, end] = right ? [from, to] : [to, from]
  const width = Math.max(columns.length, end + 1)
  let text = ''
  for (let at = 0; at < width; at++) {
    const isInside = at > left && at < end
    text +=
      at === from
        ? startOf(right, ends)
        : at === to
          ? endOf(right, isNew)
          : columns[at] === undefined
            ? isInside
              ? '─'
              : ' '
            : isInside
              ? '┼'
              : LINE
    text += at >= left && at < end ? '─' : ' '
  }
  return text.trimEnd()
}

function startOf(right: boolean, ends: boolean): string {
  if (ends) return right ? '╰' : '╯'
  return right ? '├' : '┤'
}

function endOf(right: boolean, isNew: boolean): string {
  if (isNew) return right ? '╮' : '╭'
  return right ? '┤' : '├'
}

function beside(graph: string, line: string | undefined): string {
  return `${graph}  ${line ?? ''}`.trimEnd()
}

/** Text as Graphviz takes it. */
function quoted(text: string): string {
  const lines = text
    .split('\n')
    .map((line) => printable(line).replace(/["\\]/g, '\\$&'))
  return `"${lines.join('\\n')}"`
}
