/**
 * A process whose requests go through proxies, for the tests of them: proxies
 * are those of a whole process. It is told what to ask for as JSON, and prints
 * what came of it.
 */
import dns from 'node:dns'
import { syncBuiltinESMExports } from 'node:module'

/** What a process is to ask for. */
export interface ProxyOrder {
  allowPrivateNetwork: boolean
  urls: string[]
  /** What name servers answer; they do not know other names. */
  names: Record<string, string>
}

/** What came of one request. */
export interface ProxyResult {
  url: string
  proxied: boolean
  /** Name of the error, or what was answered. */
  outcome: string
}

const order = JSON.parse(process.argv[2] ?? '') as ProxyOrder
dns.lookup = ((
  name: string,
  options: dns.LookupOptions,
  callback: (...given: unknown[]) => void
) => {
  const address = order.names[name]
  if (address === undefined) {
    callback(Object.assign(new Error('not found'), { code: 'ENOTFOUND' }))
    return
  }
  const family = address.includes(':') ? 6 : 4
  if (options.all) callback(null, [{ address, family }])
  else callback(null, address, family)
}) as typeof dns.lookup
syncBuiltinESMExports()

const { createSafeFetch } = await import('../../src/atproto/safe-fetch.ts')
const { isProxied, useProxies } = await import('../../src/atproto/proxies.ts')
useProxies(process.env)
const { small } = createSafeFetch({
  allowPrivateNetwork: order.allowPrivateNetwork,
})
const results: ProxyResult[] = []
for (const url of order.urls) {
  const outcome = await small(url, {
    redirect: 'follow',
    headers: { authorization: 'secret' },
  }).then(
    async (response) => `${response.url} ${await response.text()}`,
    (error: unknown) => `${(error as Error).name}: ${(error as Error).message}`
  )
  results.push({ url, proxied: isProxied(new URL(url)), outcome })
}
process.stdout.write(JSON.stringify(results))
