import type { HttpBindings } from '@hono/node-server'
import { Hono, type Context } from 'hono'
import { cors } from 'hono/cors'
import { matchedRoutes } from 'hono/route'
import { CID } from 'multiformats/cid'
import type { Logger } from 'pino'
import { ABILITIES } from '../../capabilities/index.ts'
import type { ServiceInfo } from '../../client/index.ts'
import { CALLBACK_PATH, METADATA_PATH } from '../../atproto/oauth/index.ts'
import type { Stores } from '../../stores/index.ts'
import type { Conclusion } from '../conclude.ts'
import { InvalidBodyError } from '../errors.ts'
import type { Health } from '../health.ts'
import type { Metrics } from '../metrics.ts'
import type { RunFeed } from '../run-feed.ts'
import type { InvocationServer } from '../server.ts'
import { PAGE_HEADERS, renderPage, type Page } from './page.ts'
import type { Watchers } from '../watchers.ts'
import type { Refusal, StreamContext } from './event-stream.ts'
import { BodyTooLargeError, readBody } from './read-body.ts'
import { createHealthApp } from './operators.ts'
import { verifyBlocks } from './verify-blocks.ts'
import { watchClock } from './watch.ts'
import { watchRuns } from './watch-runs.ts'

const CAR_TYPE = 'application/vnd.ipld.car'
/** Browsers may keep the answer to a preflight for a day, in seconds. */
const CORS_MAX_AGE = 86_400
/** What a user may send along with an answer, in bytes. */
const MAX_FORM_SIZE = 16 * 1024
/** When to come back while the service goes down, in seconds. */
const RETRY_AFTER = 5

export interface AppContext {
  info: Pick<ServiceInfo, 'name' | 'version' | 'did' | 'agent'>
  server: InvocationServer
  stores: Pick<Stores, 'receipts' | 'ping'>
  logger: Logger
  /** Largest request body, in bytes. */
  maxBodySize: number
  /** How users come back from the hosts of their accounts. */
  oauth?: {
    /** What hosts are told of us; not there for a loopback client. */
    metadata?: () => Promise<object>
    conclusion: Conclusion
  }
  watch: Pick<StreamContext, 'time' | 'stopping'> & {
    watchers: Watchers
    feed: RunFeed
  }
  /** Whether the service takes no more work. */
  isDraining: () => boolean
  health: Health
  metrics?: Pick<Metrics, 'requested'>
}

/** The HTTP edge of the service. */
export function createApp(context: AppContext): Hono {
  const { info, server, stores, logger } = context
  const app = new Hono()

  app.use(async (c, next) => {
    const started = performance.now()
    await next()
    const { method, path } = c.req
    const { status } = c.res
    const ms = performance.now() - started
    logger.debug({ method, path, status, ms: Math.round(ms) }, 'request')
    context.metrics?.requested({
      method,
      route: routeOf(c),
      status,
      seconds: ms / 1000,
    })
  })
  app.use(
    cors({
      origin: '*',
      allowMethods: ['GET', 'HEAD', 'POST'],
      exposeHeaders: ['retry-after'],
      maxAge: CORS_MAX_AGE,
    })
  )
  app.use(async (c, next) => {
    await next()
    // A connection that stays open would keep the service from closing.
    if (context.isDraining()) c.header('connection', 'close')
  })

  app.post('/', async (c) => {
    if (context.isDraining()) {
      c.header('retry-after', `${RETRY_AFTER}`)
      return c.json(
        problem('ServiceUnavailable', 'the service is going down; try again'),
        503
      )
    }
    const type = c.req.header('content-type')?.split(';')[0]?.trim()
    if (type?.toLowerCase() !== CAR_TYPE) {
      return c.json(
        problem('UnsupportedMediaType', `invocations are sent as ${CAR_TYPE}`),
        415
      )
    }
    const body = await readBody(
      c.req.raw,
      // Not there where a request comes from elsewhere than the network.
      (c.env as Partial<HttpBindings> | undefined)?.incoming,
      context.maxBodySize
    )
    await verifyBlocks(body)
    const answer = await server.request({ body })
    return c.body(answer.body as Uint8Array<ArrayBuffer>, 200, answer.headers)
  })

  app.get('/', (c) => c.json({ ...info, capabilities: ABILITIES }))

  app.get('/.well-known/did.json', (c) =>
    c.json({
      '@context': [
        'https://www.w3.org/ns/did/v1',
        'https://w3id.org/security/multikey/v1',
      ],
      id: info.did,
      verificationMethod: [
        {
          id: `${info.did}#agent`,
          type: 'Multikey',
          controller: info.did,
          publicKeyMultibase: info.agent.slice('did:key:'.length),
        },
      ],
    })
  )

  app.get('/clock/:space/events', async (c) => {
    const answer = await watchClock(
      { server, ...context.watch, cut: cutOf(c) },
      c.req.param('space'),
      c.req.header('authorization')
    )
    return streamOrRefusal(c, answer)
  })

  app.get('/backup/:space/events', async (c) => {
    const answer = await watchRuns(
      { server, ...context.watch, cut: cutOf(c) },
      c.req.param('space'),
      c.req.header('authorization')
    )
    return streamOrRefusal(c, answer)
  })

  app.get('/receipt/:task', async (c) => {
    const task = parseCID(c.req.param('task'))
    const receipt = task && (await stores.receipts.get(task.toString()))
    if (!receipt) {
      return c.json(
        problem(
          'ReceiptNotFound',
          'there is no receipt of this task, or not yet'
        ),
        404
      )
    }
    return c.body(receipt as Uint8Array<ArrayBuffer>, 200, {
      'content-type': CAR_TYPE,
    })
  })

  const { oauth } = context
  if (oauth?.metadata) {
    const { metadata } = oauth
    app.get(METADATA_PATH, async (c) => c.json(await metadata()))
  }
  if (oauth) {
    const { conclusion } = oauth
    app.get(CALLBACK_PATH, async (c) => {
      const { searchParams } = new URL(c.req.url)
      const { status, page } = await conclusion.review(searchParams)
      return c.html(await renderPage(page), status, PAGE_HEADERS)
    })
    app.post(CALLBACK_PATH, async (c) => {
      const body = await readBody(
        c.req.raw,
        (c.env as Partial<HttpBindings> | undefined)?.incoming,
        MAX_FORM_SIZE
      )
      const params = new URLSearchParams(new TextDecoder().decode(body))
      const { status, page } = await conclusion.conclude(params)
      return c.html(await renderPage(page), status, PAGE_HEADERS)
    })
  }

  app.get('/health', async (c) => {
    if (context.isDraining()) return c.json({ status: 'draining' }, 503)
    try {
      await stores.ping()
    } catch (error) {
      logger.error({ err: error }, 'the store does not answer')
      return c.json({ status: 'store unavailable' }, 503)
    }
    return c.json({ status: 'ok' })
  })

  app.route('/', createHealthApp(context.health))

  app.notFound((c) =>
    c.json(problem('NotFound', `there is nothing at ${c.req.path}`), 404)
  )

  app.onError((error, c) => {
    if (error instanceof InvalidBodyError) {
      return c.json(problem('InvalidBody', error.message), 400)
    }
    if (error instanceof BodyTooLargeError) {
      // The rest of the body is not read.
      c.header('connection', 'close')
      return c.json(problem('BodyTooLarge', error.message), 413)
    }
    logger.error({ err: error }, 'a request failed')
    if (c.req.path === CALLBACK_PATH) {
      return renderPage(FAILED).then((page) => c.html(page, 500, PAGE_HEADERS))
    }
    return c.json(
      problem('InternalError', 'the service failed; its log has the reason'),
      500
    )
  })
  return app
}

const FAILED: Page = {
  title: 'Something went wrong here',
  text: [
    ['The service failed, and its log has the reason. Start again later.'],
  ],
}

async function streamOrRefusal(
  c: Context,
  answer: ReadableStream<Uint8Array> | Refusal
): Promise<Response> {
  if (answer instanceof ReadableStream) {
    const headers = {
      'content-type': 'text/event-stream',
      'cache-control': 'no-store',
      // Proxies would keep events until they have enough of them.
      'x-accel-buffering': 'no',
    }
    if (c.req.method !== 'HEAD') return c.body(answer, 200, headers)
    // Nobody would read it, nor tell that it is not wanted.
    await answer.cancel()
    return c.body(null, 200, headers)
  }
  const { status, name, message } = answer
  if (status === 401) c.header('www-authenticate', 'UCAN')
  if (status === 503) c.header('retry-after', `${RETRY_AFTER}`)
  return c.json(problem(name, message), status)
}

/** The pattern of the path: of paths there are as many as clients want. */
function routeOf(c: Context): string {
  const route = matchedRoutes(c).findLast(({ method }) => method !== 'ALL')
  return route?.path ?? 'none'
}

/** How to cut the connection that a request came by. */
function cutOf(c: Context): () => void {
  const { outgoing } = (c.env as Partial<HttpBindings> | undefined) ?? {}
  // Without a reset, the system would keep what was not taken yet.
  return () => outgoing?.socket?.resetAndDestroy()
}

function problem(name: string, message: string) {
  return { name, message }
}

function parseCID(text: string): CID | undefined {
  try {
    return CID.parse(text)
  } catch {
    return undefined
  }
}
