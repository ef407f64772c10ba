import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CID } from 'multiformats/cid'
import type { Clock, EventLink } from '../backup/index.ts'
import { writeWhole } from './files.ts'

/**
 * The head of a Space's clock as a service told it last: from there the clock
 * moves to another service when this one is gone.
 */
export interface LastHead {
  /** @returns nothing if no service told of one, or what was kept is no head */
  read(): Promise<EventLink[]>
  /** The clock, of which each head that is told is kept. */
  keep(clock: Clock): Clock
}

/**
 * @param home - folder of the agent
 * @param space - DID of the Space
 */
export function createLastHead(home: string, space: string): LastHead {
  const path = join(home, 'heads', `${space.split(':').at(-1)}.json`)
  let kept = ''
  const keepHead = async (head: EventLink[]) => {
    const text = JSON.stringify(head.map(String))
    if (text !== kept) await writeWhole(path, `${text}\n`)
    kept = text
    return head
  }
  return {
    async read() {
      try {
        const head = JSON.parse(await readFile(path, 'utf8')) as string[]
        return head.map((cid) => CID.parse(cid) as EventLink)
      } catch {
        // Without it the user names an event.
        return []
      }
    },
    keep: (clock) => ({
      head: async (...input) => keepHead(await clock.head(...input)),
      advance: async (...input) => keepHead(await clock.advance(...input)),
    }),
  }
}
