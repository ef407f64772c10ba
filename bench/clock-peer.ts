/**
 * A clock as `@web3-storage/clock` and the pail library make it, in a process
 * of its own: every event is a file that is synced, and so is the head.
 */
import { mkdtemp, open, readFile, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as Server from '@ucanto/server'
import { CAR } from '@ucanto/transport'
import { ed25519, Verifier } from '@ucanto/principal'
import { advance } from '@web3-storage/pail/clock'
import { CID } from 'multiformats/cid'
import { Clock } from '../src/capabilities/index.ts'
import { attachedBlocks } from '../src/service/invocation.ts'
import { serveUcanto } from './serve-ucanto.ts'

const id = await ed25519.generate()
const folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-bench-clock-'))
const heads = new Map<string, CID[]>()
const turns = new Map<string, Promise<unknown>>()

let writes = 0
const write = async (name: string, bytes: Uint8Array | string) => {
  const path = join(folder, name)
  const draft = `${path}.${writes++}`
  const file = await open(draft, 'w')
  await file.writeFile(bytes)
  await file.sync()
  await file.close()
  await rename(draft, path)
}

const stored = {
  get: async (cid: { toString(): string }) => ({
    cid,
    bytes: await readFile(join(folder, cid.toString())),
  }),
}

const server = Server.create({
  id,
  codec: CAR.inbound,
  principal: Verifier,
  validateAuthorization: () => ({ ok: {} }),
  service: {
    clock: {
      head: Server.provide(Clock.head, async ({ capability }) => ({
        ok: { head: heads.get(capability.with) ?? [] },
      })),
      advance: Server.provide(
        Clock.advance,
        async ({ capability, invocation }) => {
          const space = capability.with
          const event = CID.parse(capability.nb.event.toString())
          const blocks = attachedBlocks(invocation)
          const events = invocation.facts.flatMap((fact) => Object.keys(fact))
          const turn = (turns.get(space) ?? Promise.resolve()).then(
            async () => {
              for (const cid of events) {
                const block = blocks.get(cid)
                if (block) await write(cid, block.bytes)
              }
              const head = (await advance(
                stored as never,
                (heads.get(space) ?? []) as never,
                event as never
              )) as unknown as CID[]
              heads.set(space, head)
              await write(space.replaceAll(':', '_'), head.join('\n'))
              return head
            }
          )
          turns.set(space, turn)
          return { ok: { head: await turn } }
        }
      ),
    },
  },
})

await serveUcanto(id.did(), server)
await rm(folder, { recursive: true, force: true })
