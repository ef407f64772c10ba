import type { LookupAddress, LookupOptions } from 'node:dns'
import { BlockList, isIPv6, type LookupFunction } from 'node:net'
import { checkUnicastPolicy, unicastLookup } from '@atproto-labs/fetch-node'

/**
 * The addresses of IPv6 that are given to hosts; all others stand for something
 * else, among them addresses of IPv4 that may be private ones.
 *
 * @see https://www.iana.org/assignments/ipv6-unicast-address-assignments
 */
const GIVEN_TO_HOSTS = new BlockList()
GIVEN_TO_HOSTS.addSubnet('2000::', 3, 'ipv6')
// Name servers' answers may be mapped; the IPv4 in it is checked by itself.
const MAPPED = new BlockList()
MAPPED.addSubnet('::ffff:0:0', 96, 'ipv6')

/**
 * How ISATAP tells that an IPv4 address follows, in the second half of an
 * address of any network.
 *
 * @see https://www.rfc-editor.org/rfc/rfc5214#section-6.1
 */
const ISATAP = /^(0|200):5efe:/

/**
 * Whether the guard of `@atproto-labs/fetch-node` has to be overruled: it lets
 * through some addresses of IPv6 that have an address of IPv4 in them.
 *
 * @param address - of IPv6
 */
function isEmbedding(address: string): boolean {
  // An address with a zone is one of this network.
  if (address.includes('%') || !isIPv6(address)) return true
  return (
    !GIVEN_TO_HOSTS.check(address, 'ipv6') ||
    ISATAP.test(groupsOf(address).slice(4).join(':'))
  )
}

/** The eight groups of an address of IPv6, in hex without leading zeros. */
function groupsOf(address: string): string[] {
  const short = new URL(`http://[${address}]`).hostname.slice(1, -1)
  const [head = [], tail = []] = short
    .split('::')
    .map((half) => half.split(':').filter((group) => group !== ''))
  const gap = Array<string>(8 - head.length - tail.length).fill('0')
  return [...head, ...gap, ...tail]
}

/** @returns why a literal address is not asked, if it is one that is not */
export function checkPublicAddress(url: URL): string | undefined {
  const [, literal] = /^\[(.*)\]$/.exec(url.hostname) ?? []
  return (
    checkUnicastPolicy(url) ??
    (literal !== undefined && isEmbedding(literal)
      ? 'Hostname is a non-unicast address'
      : undefined)
  )
}

/** Looks names up for a connection, and gives no address that is not public. */
export const publicLookup: LookupFunction = (
  hostname: string,
  options: LookupOptions,
  callback
) => {
  unicastLookup(hostname, options, (error, address, family) => {
    const found: LookupAddress[] = Array.isArray(address)
      ? address
      : [{ address, family: family ?? 0 }]
    const isRefused =
      !error &&
      found.some(
        ({ address, family }) =>
          family === 6 && !MAPPED.check(address, 'ipv6') && isEmbedding(address)
      )
    callback(
      isRefused ? new Error('Hostname resolved to non-unicast address') : error,
      address,
      family
    )
  })
}

/** Names that are given out for private networks alone. */
const PRIVATE_NAME = /\.(internal|home\.arpa)$/

/**
 * Looks a name up that somebody else is going to connect to.
 *
 * @returns why it is not asked; nothing if it cannot be looked up here
 */
export function checkPublicName(hostname: string): Promise<string | undefined> {
  const name = hostname.replace(/\.$/, '')
  if (PRIVATE_NAME.test(name)) {
    return Promise.resolve('Hostname is not a public domain')
  }
  return new Promise((resolve) => {
    publicLookup(name, { all: true }, (error) => {
      // Name servers fail with a code, the guard without one.
      resolve(error && error.code === undefined ? error.message : undefined)
    })
  })
}
