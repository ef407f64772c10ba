import * as http from 'node:http'

/** An HTTP proxy is named by something that is not its URL. */
export class ProxyError extends Error {
  override readonly name = 'ProxyError'
}

type Environment = Record<string, string | undefined>

/** Which requests go through a proxy. */
interface Rules {
  http: boolean
  https: boolean
  /** Hosts, perhaps with a port, that are asked directly. */
  direct: string[]
}

const NONE: Rules = { http: false, https: false, direct: [] }

/** This machine is asked directly, whatever the environment says. */
const LOOPBACK = ['localhost', '127.0.0.1', '::1', '[::1]']

/**
 * The rules of this process. Node.js sends requests through proxies by itself
 * if it was started with NODE_USE_ENV_PROXY=1.
 */
let rules = initialRules()

/**
 * Sends the requests of this process through the proxies that `HTTP_PROXY`,
 * `HTTPS_PROXY` and `NO_PROXY` name, also in small letters.
 *
 * @param onWarning - told if this Node.js cannot do so
 * @throws {@link ProxyError}
 * @see https://nodejs.org/api/http.html#httpsetglobalproxyfromenvproxyenv
 */
export function useProxies(
  environment: Environment,
  { onWarning }: { onWarning?: (message: string) => void } = {}
): void {
  const wanted = rulesOf(environment)
  if (!wanted.http && !wanted.https) return
  const { setGlobalProxyFromEnv } = http as {
    setGlobalProxyFromEnv?: (environment: Environment) => void
  }
  if (setGlobalProxyFromEnv) {
    setGlobalProxyFromEnv({
      http_proxy: variableIn(environment, 'http_proxy'),
      https_proxy: variableIn(environment, 'https_proxy'),
      no_proxy: wanted.direct.join(','),
    })
    rules = wanted
  } else if (rules === NONE) {
    onWarning?.(
      'this version of Node.js does not use HTTP_PROXY by itself; set NODE_USE_ENV_PROXY=1, or use Node.js 24.14 or newer'
    )
  }
}

/** Whether any request of this process goes through a proxy. */
export function hasProxies(): boolean {
  return rules.http || rules.https
}

/** Whether a request to a URL goes through a proxy. */
export function isProxied({ protocol, hostname, port }: URL): boolean {
  const isTunneled = protocol === 'https:' ? rules.https : rules.http
  const portOf = port || (protocol === 'https:' ? '443' : '80')
  return (
    isTunneled && !rules.direct.some((rule) => fits(rule, hostname, portOf))
  )
}

/** What to look at when a URL cannot be reached; empty if no proxy is between. */
export function proxyHint(url: URL): string {
  const variable = url.protocol === 'https:' ? 'HTTPS_PROXY' : 'HTTP_PROXY'
  return isProxied(url)
    ? `; requests to it go through the proxy that ${variable} names: check that the proxy runs and lets them through, or name ${url.hostname} in NO_PROXY`
    : ''
}

function initialRules(): Rules {
  if (process.env['NODE_USE_ENV_PROXY'] !== '1') return NONE
  try {
    return rulesOf(process.env)
  } catch {
    // Node.js has refused them, too; the command says so.
    return NONE
  }
}

/** @throws {@link ProxyError} */
function rulesOf(environment: Environment): Rules {
  const direct = (variableIn(environment, 'no_proxy') ?? '')
    .toLowerCase()
    .split(/[,\s]+/)
    .filter((rule) => rule !== '')
  if (direct.includes('*')) return NONE
  return {
    http: hasProxy(environment, 'http_proxy'),
    https: hasProxy(environment, 'https_proxy'),
    direct: [...direct, ...LOOPBACK],
  }
}

function hasProxy(environment: Environment, name: string): boolean {
  const proxy = variableIn(environment, name)
  if (!proxy) return false
  if (!/^https?:$/.test(URL.parse(proxy)?.protocol ?? '')) {
    // It may carry a password, and is not repeated.
    throw new ProxyError(
      `${name.toUpperCase()} is not the URL of an HTTP proxy; write it as in http://proxy.example:3128, or unset it`
    )
  }
  return true
}

function variableIn(
  environment: Environment,
  name: string
): string | undefined {
  return environment[name] ?? environment[name.toUpperCase()]
}

/** Whether a rule is about a host: a rule names it, or a domain that it is in. */
function fits(rule: string, hostname: string, port: string): boolean {
  const [, name = rule, rulePort = port] = /^([^:]+):(\d+)$/.exec(rule) ?? []
  const domain = name.replace(/^\*?\./, '')
  return (
    rulePort === port &&
    (hostname === domain || hostname.endsWith(`.${domain}`))
  )
}
