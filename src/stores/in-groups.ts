/** Items that one call of `perform` works on, at most. */
const MAX_GROUP = 64

/**
 * Makes one piece of work of what is asked for at the same time: while a group
 * is worked on, the next one gathers. Groups never overlap.
 *
 * @param perform - answers each item of a group, in their order; when it
 *   throws, all of the group fail with that
 */
export function inGroups<Item, Answer>(
  perform: (group: Item[]) => Promise<PromiseSettledResult<Answer>[]>
): (item: Item) => Promise<Answer> {
  interface Waiting extends PromiseWithResolvers<Answer> {
    item: Item
  }
  let waiting: Waiting[] = []
  let isWorking = false

  const work = async () => {
    isWorking = true
    while (waiting.length > 0) {
      const group = waiting.slice(0, MAX_GROUP)
      waiting = waiting.slice(MAX_GROUP)
      try {
        const answers = await perform(group.map(({ item }) => item))
        for (const [at, { resolve, reject }] of group.entries()) {
          const answer = answers[at]
          if (answer?.status === 'fulfilled') resolve(answer.value)
          else reject(answer?.reason)
        }
      } catch (error) {
        for (const { reject } of group) reject(error)
      }
    }
    isWorking = false
  }

  return (item) => {
    const { promise, resolve, reject } = Promise.withResolvers<Answer>()
    waiting.push({ item, promise, resolve, reject })
    if (!isWorking) void work()
    return promise
  }
}
