import { Message, Receipt } from '@ucanto/core'
import type { Invocation, Result, Signer } from '@ucanto/interface'
import { CAR } from '@ucanto/transport'
import type { Logger } from 'pino'
import { CALLBACK_PATH } from '../atproto/oauth/index.ts'
import type { Authorization } from '../capabilities/index.ts'
import type { ReceiptStore } from '../stores/index.ts'
import { decodeDelegations } from './authority.ts'
import { GrantRequestError, type GrantRequestFailure } from './grant-errors.ts'
import type { GrantKeeper, OpenRequest } from './grants.ts'
import type { Page } from './http/page.ts'
import type { Publisher } from './publisher.ts'

export interface ConcludeContext {
  /** Signs receipts. */
  id: Signer
  agent: Signer
  grants: Pick<GrantKeeper, 'find' | 'conclude'>
  publisher: Pick<Publisher, 'publish'>
  receipts: ReceiptStore
  logger: Logger
}

/** What the user sees. */
export interface Answer {
  status: 200 | 400 | 500 | 502
  page: Page
}

/** The end of the way into an account, as its user sees it. */
export interface Conclusion {
  /**
   * Asks the user who comes back from the host whether it is them who wanted
   * it: a host knows whose account it is, and nothing of the Space that its
   * private parts are to go to. Whoever sends somebody else the address of a
   * request would have them in a Space of their own. Nothing is traded before
   * the user says yes.
   *
   * @param params - what the host of the account sent along
   */
  review(params: URLSearchParams): Promise<Answer>

  /**
   * Concludes the request that a user comes back from: keeps what the host has
   * granted, has it written into the Space, and issues the receipt that whoever
   * asked waits for.
   *
   * @param params - what the host of the account sent along, and what the user
   *   says
   */
  conclude(params: URLSearchParams): Promise<Answer>
}

export function createConclusion(context: ConcludeContext): Conclusion {
  const { grants, publisher, logger, agent } = context

  const conclude = async (
    params: URLSearchParams,
    options: { refused?: boolean } = {}
  ): Promise<Answer> => {
    try {
      const granted = await grants.conclude(params, options)
      if (granted.again) return askAgain(granted.again)
      const { space, account, parts, missing, expiration } = granted
      const log = logger.child({ space, account })
      log.info({ parts, missing }, 'an account has let us in')
      const ok: Authorization.Granted = {
        account,
        agent: agent.did(),
        parts,
        missing,
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
              ' in the Space ',
              { code: space },
              ' also have: ',
              listed(parts),
              '.',
            ],
            ...(missing.length > 0
              ? [
                  [
                    `The host of the account does not grant: ${listed(missing)}.`,
                  ],
                ]
              : []),
            [
              published
                ? 'The authorization is in your Space, sealed. You can close this page.'
                : 'The authorization is kept, and gets into your Space as soon as it can be reached. You can close this page.',
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
        status: STATUS[name] ?? 400,
        page: {
          title: TITLES[name] ?? 'You have not let Bluesky Backups in',
          text: [[message]],
          returnTo: request?.returnTo,
        },
      }
    }
  }

  return {
    async review(params) {
      // Who was refused has nothing to give away.
      if (!params.has('code')) return conclude(params)
      let found: OpenRequest
      try {
        found = await grants.find(params)
      } catch (error) {
        if (!(error instanceof GrantRequestError)) throw error
        return conclude(params)
      }
      const { space, account, handle, parts, requester, returnTo } = found
      return {
        status: 200,
        page: {
          title: 'Are the backups yours?',
          text: [
            [
              'The service is about to be let into the account ',
              ...(handle === undefined ? [] : [{ code: handle }, ', ']),
              { code: account },
              `, for: ${listed(parts)}.`,
            ],
            [
              'What it reads goes into the Space ',
              { code: space },
              ', and whoever the Space belongs to can have it opened. The agent ',
              { code: requester },
              ' has asked for that',
              returnTo ? ` on ${returnTo.host}.` : '.',
            ],
            [
              'Go on only if you have begun this yourself. If somebody has sent you here, say no.',
            ],
          ],
          form: {
            action: CALLBACK_PATH,
            fields: Object.fromEntries(
              [...params].filter(([name]) => FIELDS.has(name))
            ),
            answers: [
              { value: YES, label: 'Yes, this is my Space' },
              { value: 'no', label: 'No' },
            ],
          },
        },
      }
    },

    conclude: (params) =>
      conclude(params, { refused: params.get('answer') !== YES }),
  }
}

/** What hosts send along that is needed. */
const FIELDS = new Set(['code', 'state', 'iss'])

/** What the user says who wants it. */
const YES = 'yes'

function askAgain(url: URL): Answer {
  return {
    status: 200,
    page: {
      title: 'Your host asks you once more',
      text: [
        [
          'It knows no permission for the parts of your account that were asked for, only one for more than is needed. What you have consented to is given back. Go on if you want to grant that.',
        ],
      ],
      next: { url, label: `Go on at ${url.host}` },
    },
  }
}

const STATUS: Partial<Record<GrantRequestFailure, Answer['status']>> = {
  HostUnavailable: 502,
  InternalError: 500,
}

const TITLES: Record<string, string> = {
  AuthorizationRefused: 'You have said no',
  WrongAccount: 'This is another account',
  AuthorizationExpired: 'This page is not valid any more',
  InternalError: 'Something went wrong here',
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
