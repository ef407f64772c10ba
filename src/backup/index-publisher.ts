import type { IndexedShard, SpaceWriter, UnknownLink } from './interface.ts'
import type { UploadCounts } from './packer.ts'

export interface IndexPublisherOptions {
  writer: SpaceWriter
  /** What the blocks belong to: the commit, once it is verified. */
  content: () => UnknownLink
  /** Slices that are worth an index before the run's end. */
  size: number
  onUpload: (counts: UploadCounts) => void
  signal?: AbortSignal
}

/**
 * Publishes the indexes of shards while more shards are stored: for an account
 * of many records that takes the upload service as long as storing them.
 */
export class IndexPublisher {
  readonly #options: IndexPublisherOptions
  #pending: IndexedShard[] = []
  #slices = 0
  #published: Promise<unknown> = Promise.resolve()
  #failure: { error: unknown } | undefined

  constructor(options: IndexPublisherOptions) {
    this.#options = options
  }

  /** Takes a shard that the Space has. */
  add(shard: IndexedShard): void {
    this.#pending.push(shard)
    this.#slices += shard.slices.length
    if (this.#slices < this.#options.size) return
    const shards = this.#takePending()
    this.#published = this.#published
      .then(() => this.#publish(shards))
      .catch((error: unknown) => {
        this.#failure ??= { error }
      })
  }

  /**
   * Waits for what is being published.
   *
   * @returns shards that are left, to be published along with the metadata
   */
  async finish(): Promise<IndexedShard[]> {
    await this.settle()
    // What the writer threw goes on as it is.

    if (this.#failure) throw this.#failure.error
    return this.#takePending()
  }

  /** Waits until nothing is under way, whatever came of it. */
  async settle(): Promise<void> {
    await this.#published
  }

  #takePending(): IndexedShard[] {
    const shards = this.#pending
    this.#pending = []
    this.#slices = 0
    return shards
  }

  async #publish(shards: IndexedShard[]): Promise<void> {
    const { writer, content, signal, onUpload } = this.#options
    if (this.#failure) return
    signal?.throwIfAborted()
    const { size } = await writer.publishIndex(
      { content: content(), shards },
      { signal }
    )
    onUpload({ blocksUploaded: 0, bytesUploaded: size })
  }
}
