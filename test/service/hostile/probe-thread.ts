/**
 * Asks a service again and again whether it is alive, and tells how long it
 * was silent at most. A thread of its own: what keeps the test busy is not
 * the service's silence.
 */
import { once } from 'node:events'
import { Agent, get } from 'node:http'
import type { IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { parentPort, workerData } from 'node:worker_threads'

/** Milliseconds between two questions. */
const EVERY = 100

const { url } = workerData as { url: string }
let agent = new Agent({ keepAlive: true, maxSockets: 1 })
let isOver = false
let longest = 0
let failures = 0
let answers = 0
let last = performance.now()
parentPort?.once('message', () => (isOver = true))

while (!isOver) {
  try {
    const request = get(new URL('/health/alive', url), {
      agent,
      timeout: 30_000,
    })
    request.on('timeout', () => request.destroy(new Error('silent')))
    const [response] = (await once(request, 'response')) as [IncomingMessage]
    response.resume()
    await once(response, 'end')
    if (response.statusCode !== 200) throw new Error('not alive')
    answers++
    longest = Math.max(longest, performance.now() - last)
    last = performance.now()
  } catch {
    failures++
    agent.destroy()
    agent = new Agent({ keepAlive: true, maxSockets: 1 })
  }
  await sleep(EVERY)
}
longest = Math.max(longest, performance.now() - last)
agent.destroy()
parentPort?.postMessage({ longest: longest - EVERY, failures, answers })
