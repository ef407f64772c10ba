/** What is read is asked for, and no more: nothing piles up. */
export function streamOf(
  chunks: AsyncIterable<Uint8Array>
): ReadableStream<Uint8Array> {
  const iterator = chunks[Symbol.asyncIterator]()
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const next = await iterator.next()
          if (next.done) controller.close()
          else controller.enqueue(next.value)
        } catch (error) {
          controller.error(error)
        }
      },
      async cancel() {
        await iterator.return?.()
      },
    },
    { highWaterMark: 0 }
  )
}

/** Not every browser iterates over its streams. */
export async function* chunksOf(
  stream: ReadableStream<Uint8Array>
): AsyncGenerator<Uint8Array> {
  const reader = stream.getReader()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      yield value
    }
  } finally {
    // Left early, the source can let go of it; at its end this does nothing.
    await reader.cancel().catch(() => {})
  }
}
