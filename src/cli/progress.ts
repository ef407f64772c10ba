import cliProgress from 'cli-progress'
import type { Backup } from '../capabilities/index.ts'
import { formatBytes, formatCount } from './format.ts'
import { printLine, type Io } from './io.ts'

/** Milliseconds between two lines. */
const LINE_INTERVAL = 2000

const STAGES: Record<string, string> = {
  resolve: 'finding the account',
  read: 'reading the repository',
  verify: 'verifying the repository',
  blobs: 'fetching blobs',
  upload: 'uploading',
  record: 'recording the backup',
  advance: 'telling the clock',
}

/** Shows how far something is. */
export interface ProgressDisplay {
  /** @param done - of `total`, where `total` may grow */
  update(text: string, done: number, total: number): void
  /** Leaves the terminal as it was. */
  end(): void
}

/** A bar on a terminal; elsewhere a line for a change, not more than needed. */
export function createProgress({
  stderr,
}: Pick<Io, 'stderr'>): ProgressDisplay {
  return stderr.isTTY ? createBar(stderr) : createLines(stderr)
}

/** A run's progress in a line. */
export function describeProgress(
  progress: Omit<Backup.RunProgress, 'stage'> & { stage: string }
): string {
  const { blobs } = progress
  return [
    STAGES[progress.stage] ?? progress.stage,
    ...(progress.records > 0 ? [formatCount(progress.records, 'record')] : []),
    ...(blobs > 0 ? [`${countSeen(progress)}/${blobs} blobs`] : []),
    ...(progress.bytesUploaded > 0
      ? [`${formatBytes(progress.bytesUploaded)} uploaded`]
      : []),
  ].join(', ')
}

/** Blobs that nothing more is done about, whatever came of them. */
export function countSeen({
  blobsDone,
  blobsMissing,
  blobsFailed,
}: Pick<
  Backup.RunProgress,
  'blobsDone' | 'blobsMissing' | 'blobsFailed'
>): number {
  return blobsDone + blobsMissing + blobsFailed
}

function createBar(stderr: Io['stderr']): ProgressDisplay {
  const bar = new cliProgress.SingleBar(
    {
      format: '[{bar}] {text}',
      stream: stderr as NodeJS.WritableStream,
      barsize: 20,
      hideCursor: true,
      clearOnComplete: true,
      emptyOnZero: true,
      // Interrupts are seen by the command itself.
      gracefulExit: false,
    },
    cliProgress.Presets.legacy
  )
  let started = false
  return {
    update(text, done, total) {
      if (!started) bar.start(total, done, { text })
      started = true
      bar.setTotal(total)
      bar.update(done, { text })
    },
    end() {
      if (started) bar.stop()
      started = false
    },
  }
}

function createLines(stderr: Io['stderr']): ProgressDisplay {
  let shown = ''
  let time = -Infinity
  return {
    update(text) {
      const now = performance.now()
      if (text === shown || now - time < LINE_INTERVAL) return
      shown = text
      time = now
      printLine(stderr, text)
    },
    end() {},
  }
}
