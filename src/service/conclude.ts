import { Message, Receipt } from '@ucanto/core'
import type { Invocation, Result, Signer } from '@ucanto/interface'
import { CAR } from '@ucanto/transport'
import type { Logger } from 'pino'
import type { Authorization } from '../capabilities/index.ts'
import type { ReceiptStore } from '../stores/index.ts'
import { decodeDelegations } from './authority.ts'
import { GrantRequestError, type GrantKeeper } from './grants.ts'
import type { Page } from './http/page.ts'
import type { Publisher } from './publisher.ts'

export interface ConcludeContext {
  /** Signs receipts. */
  id: Signer
  agent: Signer
  grants: Pick<GrantKeeper, 'conclude'>
  publisher: Pick<Publisher, 'publish'>
  receipts: ReceiptStore
  logger: Logger
}

/**
 * Concludes the request that a user comes back from: keeps what the host has
 * granted, has it written into the Space, and issues the receipt that whoever
 * asked waits for.
 *
 * @param params - what the host of the account sent along
 */
export async function conclude(
  context: ConcludeContext,
  params: URLSearchParams
): Promise<{ status: 200 | 400 | 502; page: Page }> {
  const { grants, publisher, logger, agent } = context
  try {
    const granted = await grants.conclude(params)
    const { space, account, parts, expiration } = granted
    const log = logger.child({ space, account })
    log.info({ parts }, 'an account has let us in')
    const ok: Authorization.Granted = {
      account,
      agent: agent.did(),
      parts,
      expiration,
    }
    await issueReceipt(context, granted.delegation, { ok })
    // The grant is kept already; a Space that cannot take it gets it later.
    const published = await publisher.publish(space, account)
    return {
      status: 200,
      page: {
        title: 'You have let Bluesky Backups in',
        text: [
          [
            'From now on the backups of ',
            { code: account },
            ' also have: ',
            listed(parts),
            '.',
          ],
          published
            ? [
                'The authorization is in your Space, sealed. You can close this page.',
              ]
            : [
                'The authorization is kept, and gets into your Space as soon as it can be reached. You can close this page.',
              ],
        ],
        returnTo: granted.returnTo,
      },
    }
  } catch (error) {
    if (!(error instanceof GrantRequestError)) throw error
    const { name, message, request } = error
    logger.info(
      {
        failure: { name, message },
        space: request?.space,
        account: request?.account,
      },
      'an account has not let us in'
    )
    if (request) {
      await issueReceipt(context, request.delegation, {
        error: { name, message },
      })
    }
    return {
      status: name === 'HostUnavailable' ? 502 : 400,
      page: {
        title: TITLES[name] ?? 'You have not let Bluesky Backups in',
        text: [[message]],
        returnTo: request?.returnTo,
      },
    }
  }
}

const TITLES: Record<string, string> = {
  AuthorizationRefused: 'You have said no',
  WrongAccount: 'This is another account',
  AuthorizationExpired: 'This page is not valid any more',
}

/** Tells whoever has asked, once: what is there never changes. */
async function issueReceipt(
  { id, receipts }: ConcludeContext,
  delegation: Uint8Array,
  result: Result<object, { name: string; message: string }>
): Promise<void> {
  const [task] = decodeDelegations(delegation)
  if (!task) throw new TypeError('a request without its task')
  const receipt = await Receipt.issue({
    issuer: id,
    ran: task as Invocation,
    result: result,
  })
  const message = await Message.build({ receipts: [receipt] as never })
  await receipts.put(
    task.cid.toString(),
    CAR.request.encode(message as never).body
  )
}

function listed(parts: string[]): string {
  return parts.length === 0 ? 'nothing more than is public' : parts.join(', ')
}
