import { request, type IncomingMessage } from 'node:http'
import { text } from 'node:stream/consumers'

const API = '/@atproto/oauth-provider/~api'
const CSRF_COOKIE = 'csrf-token'

export interface ConsentOptions {
  /** Handle of the account that somebody signs in to. */
  username: string
  password: string
  /** Says no instead. */
  deny?: boolean
}

/**
 * Signs in and consents at a PDS as its pages do it, without a browser: what
 * they look like is for another test.
 *
 * @param url - where the client sends the user
 * @returns where the PDS sends the user back to
 */
export async function consent(
  url: URL,
  { username, password, deny = false }: ConsentOptions
): Promise<URL> {
  const cookies = new Map<string, string>()
  const origin = url.origin
  const send = async (
    path: string,
    headers: Record<string, string>,
    body?: object
  ): Promise<{ response: IncomingMessage; body: string }> => {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const sent = request(new URL(path, origin), {
        method: body ? 'POST' : 'GET',
        headers: {
          cookie: [...cookies].map(([name, value]) => `${name}=${value}`),
          ...headers,
        },
      })
      sent.on('response', resolve).on('error', reject)
      sent.end(body && JSON.stringify(body))
    })
    for (const line of response.headers['set-cookie'] ?? []) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line) ?? []
      if (name !== undefined) cookies.set(name, value ?? '')
    }
    return { response, body: await text(response) }
  }
  const call = async (
    endpoint: string,
    body: object,
    headers: Record<string, string> = {}
  ): Promise<Record<string, unknown>> => {
    const answer = await send(
      `${API}${endpoint}`,
      {
        'content-type': 'application/json',
        'sec-fetch-mode': 'same-origin',
        'sec-fetch-site': 'same-origin',
        'sec-fetch-dest': 'empty',
        origin,
        referer: url.href,
        'x-csrf-token': cookies.get(CSRF_COOKIE) ?? '',
        ...headers,
      },
      body
    )
    if (answer.response.statusCode !== 200) {
      throw new Error(`the PDS refused ${endpoint}: ${answer.body}`)
    }
    return JSON.parse(answer.body) as Record<string, unknown>
  }

  const navigation = {
    'sec-fetch-mode': 'navigate',
    'sec-fetch-site': 'cross-site',
    'sec-fetch-dest': 'document',
  }
  const page = await send(`${url.pathname}${url.search}`, navigation)
  if (page.response.statusCode !== 200) {
    throw new Error(`the PDS shows no page: ${page.body.slice(0, 500)}`)
  }
  let answer: Record<string, unknown>
  if (deny) {
    answer = await call('/reject', {})
  } else {
    const { account, ephemeralToken } = await call('/sign-in', {
      locale: 'en',
      username,
      password,
      remember: false,
    })
    answer = await call(
      '/consent',
      {
        did:
          (account as { sub: string; did?: string }).did ??
          (account as { sub: string }).sub,
      },
      { authorization: `Bearer ${String(ephemeralToken)}` }
    )
  }
  const redirect = new URL(String(answer['url']))
  const { response } = await send(`${redirect.pathname}${redirect.search}`, {
    ...navigation,
    'sec-fetch-site': 'same-origin',
    referer: url.href,
  })
  const { location } = response.headers
  if (location === undefined) throw new Error('the PDS sends nobody back')
  return new URL(location)
}
