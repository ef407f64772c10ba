/**
 * Measures the project beside a named peer in the same run.
 *
 * `npm run bench -- NAME [--rows N] [--json]`
 */
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import type { Measurement } from './measurement.ts'

const BENCHMARKS: Record<string, () => Promise<{ run: Benchmark }>> = {
  first: () => import('./first.ts'),
  incremental: () => import('./incremental.ts'),
  memory: () => import('./memory.ts'),
  clock: () => import('./clock.ts'),
  merge: () => import('./merge.ts'),
  schedules: () => import('./schedules.ts'),
  scale: () => import('./scale.ts'),
  hostile: () => import('./hostile.ts'),
}

type Benchmark = (
  say: (line: string) => void,
  options: { rows?: number }
) => Promise<Measurement[]>

const USAGE = `Usage: npm run bench -- NAME [--rows N] [--json]

  first         a first backup, beside its download alone and its upload alone
  incremental   a backup after one post, beside uploading the whole CAR
  memory        peak memory of a large backup, beside its limit
  clock         advances and heads a second, beside the published clock's
                and beside the limit; on PostgreSQL, too, if it is run by
                scripts/with-postgres.sh
  merge         a merge by a writer who missed events, beside the pail library's
  schedules     sweeps of a million schedules, or of --rows many, beside the bare
                statements, and jobs beside bare pg-boss; on PostgreSQL, too, if
                it is run by scripts/with-postgres.sh
  hostile       what 20 Spaces see of a service beside 20 hostile ones, and
                without them: how late backups are, silence, memory, growth of
                the database; HOSTILE_MINUTES (10) long each; on PostgreSQL, too,
                if it is run by scripts/with-postgres.sh
  scale         what ten million accounts cost, by simulation: no peer

Each figure is printed as a ratio to the peer's.
`

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: 'boolean', default: false },
    rows: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
})
const [name] = positionals
const load = name === undefined ? undefined : BENCHMARKS[name]
if (values.help || !load || positionals.length !== 1) {
  process[values.help ? 'stdout' : 'stderr'].write(USAGE)
  process.exitCode = values.help ? 0 : 2
} else {
  const { run } = await load()
  const measurements = await run(
    (line) => process.stderr.write(`${line}\n`),
    values.rows === undefined ? {} : { rows: Number(values.rows) }
  )
  if (values.json) {
    process.stdout.write(`${JSON.stringify({ name, measurements })}\n`)
  } else if (measurements.length > 0) {
    process.stdout.write(`${tableOf(measurements)}\n`)
  }
  if (measurements.some(({ met }) => !met)) process.exitCode = 1
}

function tableOf(measurements: Measurement[]): string {
  const table = new Table({
    head: ['what', 'ours', 'peer', 'of the peer', 'ratio', 'goal', 'met'],
    colAligns: ['left', 'right', 'left', 'right', 'right', 'right', 'left'],
    style: { head: [], border: [] },
  })
  for (const {
    what,
    ours,
    peer,
    theirs,
    unit,
    ratio,
    goal,
    met,
  } of measurements) {
    table.push([
      what,
      `${rounded(ours)} ${unit}`,
      peer,
      `${rounded(theirs)} ${unit}`,
      `${rounded(ratio)}×`,
      goal,
      met ? 'yes' : 'no',
    ])
  }
  return table.toString()
}

function rounded(value: number): string {
  return Number(value.toPrecision(4)).toLocaleString('en')
}
