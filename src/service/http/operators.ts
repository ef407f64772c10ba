import { Hono } from 'hono'
import type { Logger } from 'pino'
import type { Health } from '../health.ts'
import type { Metrics } from '../metrics.ts'

/**
 * Tells who runs the service how it is. `/health/alive` answers as long as the
 * process does; `/health/ready` says 503 and why when work should go elsewhere.
 */
export function createHealthApp(health: Health): Hono {
  const app = new Hono()
  app.get('/health/alive', (c) => c.json({ status: 'alive' }))
  app.get('/health/ready', async (c) => {
    const readiness = await health.ready()
    return c.json(readiness, readiness.status === 'ready' ? 200 : 503)
  })
  return app
}

/** What is for operators alone, on a listener of its own. */
export function createOperatorsApp({
  health,
  metrics,
  logger,
}: {
  health: Health
  metrics: Metrics
  logger: Logger
}): Hono {
  const app = createHealthApp(health)
  app.get('/metrics', async (c) =>
    c.body(await metrics.text(), 200, { 'content-type': metrics.contentType })
  )
  app.notFound((c) =>
    c.json(
      {
        name: 'NotFound',
        message: `there is nothing at ${c.req.path}, but at /metrics, /health/alive and /health/ready`,
      },
      404
    )
  )
  app.onError((error, c) => {
    logger.error({ err: error }, 'a request of an operator failed')
    return c.json(
      {
        name: 'InternalError',
        message: 'the service failed; its log has the reason',
      },
      500
    )
  })
  return app
}
