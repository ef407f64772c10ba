/**
 * Backups by a service.
 *
 * @packageDocumentation
 */
import type { Delegation, Link } from '@ucanto/interface'
import { Backup } from '../capabilities/index.ts'
import { attachmentsOf } from './attach.ts'
import {
  commonOf,
  type InvocationConfig,
  type InvocationOptions,
} from './connection.ts'

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
  config: InvocationConfig,
  { account, include, delegation }: RunInput,
  options: InvocationOptions
) {
  const attachments = await attachmentsOf(config, options, { delegation })
  const invocation = Backup.run.invoke({
    ...commonOf(config, options),
    nb: {
      account,
      ...(include ? { include } : {}),
      ...(delegation ? { delegation: delegation.cid } : {}),
    },
    facts: attachments.facts,
  })
  attachments.attachTo(invocation)
  return (await invocation.execute(options.connection)).out
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
