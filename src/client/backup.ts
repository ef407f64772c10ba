/**
 * Backups by a service.
 *
 * @packageDocumentation
 */
import type { Delegation, Link } from '@ucanto/interface'
import { Backup } from '../capabilities/index.ts'
import { attach, factsOf } from './attach.ts'
import type { InvocationConfig, InvocationOptions } from './connection.ts'

export * from './schedule.ts'

/** What to back up. */
export interface RunInput {
  /** DID of the account. */
  account: `did:${string}:${string}`
  /** What to back up beside the repository; all but conversations, if left out. */
  include?: Backup.Part[]
  /** What the service may do in the Space; its audience is the service. */
  delegation?: Delegation
}

/** Asks the service to back an account up now. Answers with the run. */
export async function run(
  { issuer, audience, with: space, proofs }: InvocationConfig,
  { account, include, delegation }: RunInput,
  { connection, expiration, nonce }: InvocationOptions
) {
  const invocation = Backup.run.invoke({
    issuer,
    audience: audience ?? connection.id,
    with: space,
    proofs,
    nb: {
      account,
      ...(include ? { include } : {}),
      ...(delegation ? { delegation: delegation.cid } : {}),
    },
    ...(delegation ? { facts: factsOf(delegation) } : {}),
    ...(expiration === undefined ? {} : { expiration }),
    ...(nonce === undefined ? {} : { nonce }),
  })
  if (delegation) attach(invocation, delegation)
  const receipt = await invocation.execute(connection)
  return receipt.out
}

/** Which runs to ask for. */
export interface StatusInput {
  run?: Link
  account?: `did:${string}:${string}`
  limit?: number
}

/**
 * Asks how far runs are.
 *
 * @param input.run - one run; the latest of the Space, if left out
 * @param input.account - only runs of this account
 * @param input.limit - the most runs to answer
 */
export async function status(
  { issuer, audience, with: space, proofs }: InvocationConfig,
  { run, account, limit }: StatusInput,
  { connection, expiration, nonce }: InvocationOptions
) {
  const receipt = await Backup.status
    .invoke({
      issuer,
      audience: audience ?? connection.id,
      with: space,
      proofs,
      nb: {
        ...(run ? { run } : {}),
        ...(account === undefined ? {} : { account }),
        ...(limit === undefined ? {} : { limit }),
      },
      ...(expiration === undefined ? {} : { expiration }),
      ...(nonce === undefined ? {} : { nonce }),
    })
    .execute(connection)
  return receipt.out
}
