import { ok } from '@ucanto/core'
import { ok as answer, provide, provideAdvanced } from '@ucanto/server'
import {
  DidNotFoundError,
  ForbiddenAddressError,
  HandleNotFoundError,
  HostError,
  IdentityUnavailableError,
  NoPdsError,
} from '../backup/index.ts'
import { Authorization } from '../capabilities/index.ts'
import { encodeDelegations } from './authority.ts'
import type { ServiceContext } from './context.ts'
import { encodeGiven, findAuthority } from './delegation.ts'
import { GrantRequestError, SpaceUnreadableError } from './grant-errors.ts'
import { failure } from './invocation.ts'

/** Characters of an address to return to, at most. */
const MAX_RETURN_LENGTH = 2048

/** Where a user may go without https: nobody else listens there. */
const LOOPBACK = new Set(['localhost', '127.0.0.1', '[::1]'])

const NO_HTTPS =
  'this service is reached without https, and hosts of accounts let in nobody who is; whoever runs it can set --public-url'

/** Handlers of `authorization/*`. */
export function createAuthorizationService(
  context: Pick<
    ServiceContext,
    'agent' | 'grants' | 'identities' | 'provisioning' | 'publisher' | 'sharer'
  >
) {
  const { agent, grants, identities, provisioning, publisher, sharer } = context
  return {
    /** Begins the way into an account, and answers where the user goes on. */
    request: provideAdvanced({
      capability: Authorization.request,
      handler: async ({ capability, invocation, context: validation }) => {
        const space = capability.with
        const { include, delegation } = capability.nb
        if (!grants) return failure('HostRefused', NO_HTTPS)
        const returnTo = readReturn(capability.nb.returnTo)
        if (returnTo?.error) return returnTo
        const admitted = await provisioning.check(space, invocation)
        if (admitted.error) return admitted
        const authority = await findAuthority(agent, invocation, {
          space,
          delegation,
          validation,
        })
        if (authority.error) return authority
        const given = encodeGiven(authority.ok)
        if (given.error) return given

        try {
          const { did: account, handle } = await identities.resolve(
            capability.nb.account
          )
          const task = await Authorization.complete.delegate({
            issuer: agent,
            audience: agent,
            with: agent.did(),
            nb: {
              space,
              account: account,
              cause: invocation.cid,
            },
            expiration: Infinity,
          })
          const { url, expiration } = await grants.request({
            space,
            account,
            handle,
            ...(include ? { include } : {}),
            delegation: encodeDelegations([task, ...authority.ok]),
            requester: invocation.issuer.did(),
            ...(returnTo ? { returnTo: returnTo.ok.href } : {}),
          })
          return answer({
            url: url.href,
            expiration,
            account,
            task: task.cid,
          }).fork(task)
        } catch (error) {
          return failureOf(error)
        }
      },
    }),

    list: provide(Authorization.list, async ({ capability }) => {
      const authorizations = (await grants?.list(capability.with)) ?? []
      return ok({ authorizations })
    }),

    /** Gives a grant back, if there is one. */
    revoke: provide(Authorization.revoke, async ({ capability }) => {
      const { with: space, nb } = capability
      if (!grants) return ok({ revoked: false, confirmed: true })
      try {
        const result = await grants.revoke(space, nb.account)
        // What is in the Space is the user's word; it is told at once.
        if (result.revoked) await publisher.publish(space, nb.account)
        return ok(result)
      } catch (error) {
        if (!(error instanceof SpaceUnreadableError)) throw error
        return failure('SpaceUnavailable', error.message)
      }
    }),

    /** Shares with another agent what the service can open. */
    share: provide(
      Authorization.share,
      async ({ capability, invocation, context: validation }) => {
        const space = capability.with
        const { delegation, ...request } = capability.nb
        const admitted = await provisioning.check(space, invocation)
        if (admitted.error) return admitted
        const authority = await findAuthority(agent, invocation, {
          space,
          delegation,
          validation,
        })
        if (authority.error) return authority
        return sharer.share({ ...request, space, proofs: authority.ok })
      }
    ),
  }
}

function readReturn(text: string | undefined) {
  if (text === undefined) return undefined
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (
    !url ||
    text.length > MAX_RETURN_LENGTH ||
    url.username !== '' ||
    url.password !== '' ||
    !(
      url.protocol === 'https:' ||
      (url.protocol === 'http:' && LOOPBACK.has(url.hostname))
    )
  ) {
    return failure(
      'InvalidReturn',
      'returnTo must be an https address, or an http one of this machine; leave it out if the user need not go anywhere'
    )
  }
  return ok(url)
}

/** What everything that can go wrong with an account is told as. */
function failureOf(error: unknown) {
  if (
    error instanceof HandleNotFoundError ||
    error instanceof DidNotFoundError ||
    error instanceof NoPdsError
  ) {
    return failure('AccountNotFound', error.message)
  }
  if (error instanceof HostError || error instanceof IdentityUnavailableError) {
    return failure('HostUnavailable', error.message)
  }
  if (error instanceof ForbiddenAddressError) {
    return failure('HostRefused', error.message)
  }
  if (error instanceof GrantRequestError) {
    const { name, message } = error
    if (name === 'HostRefused' || name === 'TooManyRequests') {
      return failure(name, message)
    }
  }
  throw error
}
