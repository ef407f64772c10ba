import type { AccountReader, Progress, Stage, Time } from './interface.ts'

/** Keeps how far a run is. */
export interface ProgressTracker {
  /** Always the same object; its stages are replaced, never changed. */
  readonly progress: Readonly<Progress>
  /** Tells what has changed; another stage ends the one before it. */
  report: (changes: Partial<Omit<Progress, 'stages'>>) => void
  /** Ends the stage there is: the run is over, whatever came of it. */
  end: () => void
  /** The same reader, but what it reads is counted. */
  counting: (accounts: AccountReader) => AccountReader
}

/**
 * Begins to keep how far a run is, with its first stage.
 *
 * @param options.requests - number of requests to the Space so far
 * @param options.onProgress - called at each change, with the same object
 */
export function trackProgress({
  time,
  requests,
  onProgress,
}: {
  time: Pick<Time, 'now'>
  requests: () => number
  onProgress: ((progress: Readonly<Progress>) => void) | undefined
}): ProgressTracker {
  const first: Stage = 'resolve'
  const progress: Progress = {
    stage: first,
    stages: [{ stage: first, began: time.now() }],
    bytesRead: 0,
    records: 0,
    repoBytes: 0,
    blobs: 0,
    blobsDone: 0,
    blobsMissing: 0,
    blobsFailed: 0,
    blobBytes: 0,
    blocksUploaded: 0,
    bytesUploaded: 0,
    blobsUploaded: 0,
    requests: 0,
  }
  const endStage = (now: number) => {
    progress.stages = progress.stages.map((each) => ({ ended: now, ...each }))
  }
  const tell = () => {
    progress.requests = requests()
    onProgress?.(progress)
  }
  return {
    progress,
    report(changes) {
      const { stage } = changes
      if (stage !== undefined && stage !== progress.stage) {
        const now = time.now()
        endStage(now)
        progress.stages = [...progress.stages, { stage, began: now }]
      }
      Object.assign(progress, changes)
      tell()
    },
    end() {
      endStage(time.now())
      tell()
    },
    counting(accounts) {
      async function* counted(chunks: AsyncIterable<Uint8Array>) {
        for await (const chunk of chunks) {
          progress.bytesRead += chunk.length
          yield chunk
        }
      }
      return {
        latestCommit: (...given) => accounts.latestCommit(...given),
        blobs: (...given) => accounts.blobs(...given),
        repo: async (...given) => counted(await accounts.repo(...given)),
        blob: async (...given) => counted(await accounts.blob(...given)),
      }
    },
  }
}
