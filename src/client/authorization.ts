/**
 * Authorizations of a service: its way into the accounts that it backs up.
 *
 * @packageDocumentation
 */
import type { Delegation } from '@ucanto/interface'
import { Authorization } from '../capabilities/index.ts'
import type { Backup } from '../capabilities/index.ts'
import { attachmentsOf } from './attach.ts'
import {
  commonOf,
  type InvocationConfig,
  type InvocationOptions,
} from './connection.ts'

/** What the service asks the user for. */
export interface RequestInput {
  /** DID or handle of the account. */
  account: string
  /** Parts of backups that it is for; all but `conversations`, if left out. */
  include?: Backup.Part[] | undefined
  /** Where the user may go when it is done. */
  returnTo?: URL | undefined
  /** What the service may do in the Space; its audience is the service. */
  delegation?: Delegation | undefined
}

/** What the service shares, and with whom. */
export interface ShareInput {
  /** DID of the account. */
  account: `did:${string}:${string}`
  /** The agent that gets the keys; it is authorized for the account. */
  agent: `did:key:${string}`
  /** Only backups from before this time, as the last answer has it. */
  before?: string | undefined
  /** What the service may do in the Space; its audience is the service. */
  delegation?: Delegation | undefined
}

/**
 * Begins the way of the service into an account. The user opens the address
 * that it answers with; the receipt of the task tells what came of it.
 *
 * @example
 * ```ts
 * const { ok, error } = await Authorization.request(
 *   { issuer: agent, with: space, proofs },
 *   { account: 'alice.bsky.social', delegation },
 *   { connection }
 * )
 * if (ok) open(ok.url)
 * ```
 */
export async function request(
  config: InvocationConfig,
  { account, include, returnTo, delegation }: RequestInput,
  options: InvocationOptions
) {
  const attachments = await attachmentsOf(config, options, { delegation })
  const invocation = Authorization.request.invoke({
    ...commonOf(config, options),
    nb: {
      account,
      ...(include ? { include } : {}),
      ...(returnTo ? { returnTo: returnTo.href } : {}),
      ...(delegation ? { delegation: delegation.cid } : {}),
    },
    facts: attachments.facts,
  })
  attachments.attachTo(invocation)
  return (await invocation.execute(options.connection)).out
}

/** Lists the grants that the service has for the Space. */
export async function list(
  config: InvocationConfig,
  options: InvocationOptions
) {
  const invocation = Authorization.list.invoke(commonOf(config, options))
  return (await invocation.execute(options.connection)).out
}

/** Has the service give a grant back to the host, and forget it. */
export async function revoke(
  config: InvocationConfig,
  { account }: { account: `did:${string}:${string}` },
  options: InvocationOptions
) {
  const invocation = Authorization.revoke.invoke({
    ...commonOf(config, options),
    nb: { account },
  })
  return (await invocation.execute(options.connection)).out
}

/**
 * Has the service share with an agent what it can open of backups from before
 * that agent was there. One call does some of them; as long as it answers a
 * `before`, there are more. What the agent can open already is passed over.
 *
 * @example
 * ```ts
 * for (let before, more = true; more; more = before !== undefined) {
 *   const { ok, error } = await Authorization.share(
 *     { issuer: agent, with: space, proofs },
 *     { account, agent: agent.did(), before, delegation },
 *     { connection, nonce: crypto.randomUUID() }
 *   )
 *   if (error) throw new Error(error.message)
 *   before = ok.before
 * }
 * ```
 */
export async function share(
  config: InvocationConfig,
  { account, agent, before, delegation }: ShareInput,
  options: InvocationOptions
) {
  const attachments = await attachmentsOf(config, options, { delegation })
  const invocation = Authorization.share.invoke({
    ...commonOf(config, options),
    nb: {
      account,
      agent,
      ...(before === undefined ? {} : { before }),
      ...(delegation ? { delegation: delegation.cid } : {}),
    },
    facts: attachments.facts,
  })
  attachments.attachTo(invocation)
  return (await invocation.execute(options.connection)).out
}
