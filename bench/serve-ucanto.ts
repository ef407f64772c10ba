import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

/** A Ucanto server, as far as it is used here. */
interface Server {
  request(request: {
    headers: Record<string, string>
    body: Uint8Array
  }): unknown
}

/**
 * Has a Ucanto server answer HTTP requests, with nothing between them, tells
 * the parent process where, and goes on until that disconnects.
 */
export async function serveUcanto(did: string, server: Server): Promise<void> {
  const http = createServer((request, response) => {
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      Promise.resolve(
        server.request({
          headers: request.headers as Record<string, string>,
          body: Buffer.concat(chunks),
        }) as Promise<{ headers: Record<string, string>; body: Uint8Array }>
      ).then(
        ({ headers, body }) => response.writeHead(200, headers).end(body),
        (error: unknown) => response.writeHead(500).end(String(error))
      )
    })
  })
  http.listen(0, '127.0.0.1')
  await once(http, 'listening')
  const { port } = http.address() as AddressInfo
  process.send?.({ url: `http://127.0.0.1:${port}`, did })
  await new Promise((resolve) => process.once('disconnect', resolve))
  http.closeAllConnections()
  http.close()
}
