/**
 * A clock as `@web3-storage/clock` and the pail library make it, in a process
 * of its own: every event is a file that is synced, and so is the head.
 */
import { once } from 'node:events'
import { mkdtemp, open, readFile, rename, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as Server from '@ucanto/server'
import { CAR } from '@ucanto/transport'
import { ed25519, Verifier } from '@ucanto/principal'
import { advance } from '@web3-storage/pail/clock'
import { CID } from 'multiformats/cid'
import { Clock } from '../src/capabilities/index.ts'
import { attachedBlocks } from '../src/service/invocation.ts'

const id = await ed25519.generate()
const folder = await mkdtemp(join(tmpdir(), 'bluesky-backups-bench-clock-'))
const heads = new Map<string, CID[]>()
const turns = new Map<string, Promise<unknown>>()

const write = async (name: string, bytes: Uint8Array | string) => {
  const path = join(folder, name)
  const file = await open(`${path}.new`, 'w')
  await file.writeFile(bytes)
  await file.sync()
  await file.close()
  await rename(`${path}.new`, path)
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
          const block = attachedBlocks(invocation).get(event.toString())
          const turn = (turns.get(space) ?? Promise.resolve()).then(
            async () => {
              if (block) await write(event.toString(), block.bytes)
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

const http = createServer((request, response) => {
  const chunks: Buffer[] = []
  request.on('data', (chunk: Buffer) => chunks.push(chunk))
  request.on('end', () => {
    void Promise.resolve(
      server.request({
        headers: request.headers as Record<string, string>,
        body: Buffer.concat(chunks),
      })
    ).then(({ headers, body }) => {
      response.writeHead(200, headers).end(body)
    })
  })
})
http.listen(0, '127.0.0.1')
await once(http, 'listening')
process.send?.({
  url: `http://127.0.0.1:${(http.address() as AddressInfo).port}`,
  did: id.did(),
})
await new Promise((resolve) => process.once('disconnect', resolve))
http.closeAllConnections()
http.close()
await rm(folder, { recursive: true, force: true })
