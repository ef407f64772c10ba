import { Delegation, DID, Message, Receipt } from '@ucanto/core'
import type {
  Delegation as DelegationView,
  Effects,
  Failure,
  Invocation,
  InvocationContext,
  Result,
} from '@ucanto/interface'
import { CAR } from '@ucanto/transport'
import { Schema } from '@ucanto/validator'
import { createAuthorizationService } from './authorizations.ts'
import { createBackupService } from './backup.ts'
import { createClockService } from './clock.ts'
import type { ServiceContext } from './context.ts'
import {
  InvalidBodyError,
  RateLimitedError,
  TooManySignaturesError,
} from './errors.ts'
import { checkReadable, failure, messageOf } from './invocation.ts'
import { createRevocationService } from './revocations.ts'
import { createScheduleService } from './schedules.ts'
import { createValidation } from './validation.ts'

/** Invocations that one request may bring. */
export const MAX_INVOCATIONS = 16

/** Characters of a failure's message that are sent. */
const MAX_MESSAGE_LENGTH = 4096

/** All handlers as a plain tree: `can` is the path. */
export function createService(context: ServiceContext) {
  return {
    authorization: createAuthorizationService(context),
    clock: createClockService(context),
    backup: {
      ...createBackupService(context),
      ...createScheduleService(context),
    },
    ucan: createRevocationService(context),
  }
}

/** Answers invocations with receipts. */
export interface InvocationServer {
  /**
   * @param request.body - CAR of a message whose blocks have the hashes that
   *   their CIDs say
   * @throws {@link InvalidBodyError}
   */
  request(request: {
    body: Uint8Array
  }): Promise<{ headers: Record<string, string>; body: Uint8Array }>
}

type Answer = Result<object, Failure>
type Handler = (
  invocation: Invocation,
  context: InvocationContext
) => Promise<Answer | { do: { out: Answer; fx: Effects } }>

/**
 * The server with the service's handlers. It answers as Ucanto's own does, but
 * finds nothing that is not a handler, puts no stack traces into receipts, and
 * bounds the work that one request makes.
 */
export async function createServer(
  context: ServiceContext
): Promise<InvocationServer> {
  const { id, agent, logger } = context
  const service = createService(context)
  const handlers = new Map<string, Handler>()
  for (const [namespace, methods] of Object.entries<object>(service)) {
    for (const [name, handler] of Object.entries<Handler>({ ...methods })) {
      handlers.set(`${namespace}/${name}`, handler)
    }
  }
  const audience = Schema.literal(id.did()).or(Schema.literal(agent.did()))
  const attestations = await createAttestations(context)

  const perform: Handler = async (invocation, options) => {
    const [{ can }, ...others] = invocation.capabilities
    if (others.length > 0) {
      return failure(
        'InvocationCapabilityError',
        'an invocation has one capability; send one invocation for each'
      )
    }
    const handler = handlers.get(can)
    if (!handler) {
      return failure(
        'HandlerNotFound',
        `the service does not answer to ${can}; its URL lists what it answers to`
      )
    }
    try {
      return await handler(invocation, options)
    } catch (error) {
      if (error instanceof TooManySignaturesError) {
        return failure('TooManySignatures', error.message)
      }
      if (error instanceof RateLimitedError) {
        const { message, retryAfter } = error
        return { error: { name: 'RateLimited', message, retryAfter } }
      }
      logger.error({ err: error, can }, 'a handler failed')
      return failure(
        'ServiceUnavailable',
        'the service could not do it just now; try again later'
      )
    }
  }

  return {
    async request({ body }) {
      const invocations = await decodeInvocations(body)
      const validationOf = createValidation(context, attestations)
      const receipts = await Promise.all(
        invocations.map(async (invocation) => {
          const started = performance.now()
          let untold: Failure | undefined
          const answer = await perform(invocation, {
            id,
            audience,
            ...validationOf({ onUntold: (failure) => (untold = failure) }),
          } as unknown as InvocationContext)
          const { out: given, fx } =
            'do' in answer ? answer.do : { out: answer, fx: undefined }
          // Whoever is told that it may not does not ask again.
          const out =
            untold && given.error?.name === 'Unauthorized'
              ? { error: untold }
              : given
          context.metrics?.invoked({
            capability: invocation.capabilities[0].can,
            result: out.error?.name ?? 'ok',
            seconds: (performance.now() - started) / 1000,
          })
          return Receipt.issue({
            issuer: id,
            ran: invocation,
            result: plain(out),
            ...(fx ? { fx } : {}),
          })
        })
      )
      const message = await Message.build({ receipts: receipts as never })
      const response = CAR.response.encode(message)
      return { headers: { ...response.headers }, body: response.body }
    },
  }
}

/**
 * Logins by email are attested by an upload service: it may do so in our name
 * if it is one of those that are configured.
 */
function createAttestations({
  id,
  authorities,
}: ServiceContext): Promise<DelegationView[]> {
  return Promise.all(
    authorities.map(({ did }) =>
      Delegation.delegate({
        issuer: id,
        audience: DID.parse(did),
        capabilities: [{ can: 'ucan/attest', with: id.did() }],
        expiration: Infinity,
      })
    )
  )
}

async function decodeInvocations(body: Uint8Array): Promise<Invocation[]> {
  try {
    const message = await CAR.request.decode({ headers: {}, body })
    // One block can be named many times.
    if (message.invocationLinks.length > MAX_INVOCATIONS) {
      throw new InvalidBodyError(
        `there are more than ${MAX_INVOCATIONS} invocations in the body; send them one after another`
      )
    }
    const invocations = [...message.invocations] as Invocation[]
    for (const invocation of invocations) checkReadable(invocation)
    return invocations
  } catch (cause) {
    if (cause instanceof InvalidBodyError) throw cause
    throw new InvalidBodyError(
      'the body is not a message with invocations, as Ucanto sends it',
      { cause }
    )
  }
}

/**
 * What goes over the wire of an answer: of a failure its name, its message, and
 * the seconds to wait if it says so.
 */
function plain({ ok, error }: Answer): Answer {
  if (!error) return { ok: ok ?? {} }
  return {
    error: {
      name: error.name,
      message: messageOf(error).slice(0, MAX_MESSAGE_LENGTH),
      ...('retryAfter' in error ? { retryAfter: error.retryAfter } : {}),
    },
  }
}
