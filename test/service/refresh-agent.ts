import type { Signer } from '@ucanto/interface'
import { pino } from 'pino'
import { createSafeFetch, type Fetch } from '../../src/atproto/index.ts'
import { createOAuth, loopbackMetadata } from '../../src/atproto/oauth/index.ts'
import { CONFIDENTIAL_LIFETIMES } from '../../src/atproto/oauth/lifetimes.ts'
import type { Time } from '../../src/backup/index.ts'
import { systemTime } from '../../src/node/index.ts'
import type { Courier } from '../../src/service/courier.ts'
import {
  createGrantKeeper,
  GRANT_POLICY,
  type GrantKeeper,
} from '../../src/service/grants.ts'
import type { DID } from '../../src/space/index.ts'
import type { GrantStore } from '../../src/stores/index.ts'
import type { TestSpace } from './test-space.ts'

/** Where a refresh is, in this order; it waits until it may go on. */
export type RefreshStep =
  /** The token is about to be sent. */
  | 'request'
  /** The host has traded the token, and what it answers is not kept yet. */
  | 'answer'
  /** What the host has answered is kept. */
  | 'journal'
  /** The Space has it, and the agent has not noted that. */
  | 'space'

export interface RefreshAgentOptions {
  agent: Signer
  store: GrantStore
  plcUrl: string
  pdsUrl: string
  space: TestSpace
  onStep?: (step: RefreshStep) => Promise<void>
  /** Carries refreshes; without one they are sent from this process. */
  courier?: Courier
  /** How far the agent's time is ahead, in milliseconds. */
  ahead: () => number
}

export interface RefreshAgent {
  keeper: GrantKeeper
  /** Puts what is pending into the Space. */
  publish: (account: DID) => Promise<void>
}

/** An agent with grants at a real host, one of several with the same store. */
export function createRefreshAgent({
  agent,
  store,
  plcUrl,
  pdsUrl,
  space,
  onStep = async () => {},
  courier,
  ahead,
}: RefreshAgentOptions): RefreshAgent {
  const safe = createSafeFetch({ allowPrivateNetwork: true })
  // A host that knows the agent no more first asks for a nonce.
  const onAnswer = async ({ ok }: Response) => {
    if (ok) await onStep('answer')
  }
  const stream: Fetch = async (input, init) => {
    const body = input instanceof Request ? await input.clone().text() : ''
    const isRefresh =
      new URLSearchParams(body).get('grant_type') === 'refresh_token'
    if (isRefresh) await onStep('request')
    const response = await safe.stream(input, init)
    if (isRefresh) await onAnswer(response)
    return response
  }
  const oauth = createOAuth({
    metadata: loopbackMetadata(new URL('http://127.0.0.1:1/oauth/callback')),
    fetch: { ...safe, stream },
    plcUrl: new URL(plcUrl),
    handleResolverUrl: new URL(pdsUrl),
    allowHttp: true,
  })
  const time: Time = {
    now: () => Date.now() + ahead(),
    sleep: (ms, signal) => systemTime.sleep(ms, signal),
  }
  const keeper = createGrantKeeper({
    agent,
    grants: {
      ...store,
      async put(...input) {
        const isNewest = await store.put(...input)
        await onStep('journal')
        return isNewest
      },
    },
    // How long a grant lasts is for another test.
    oauth: { ...oauth, lifetimes: CONFIDENTIAL_LIFETIMES },
    courier: courier && {
      ...courier,
      async send(request, grant) {
        await onStep('request')
        const answer = await courier.send(request, grant)
        await onAnswer(answer.response)
        return answer
      },
    },
    readAuthorization: (_space, account) => space.read(account),
    time,
    logger: pino({ level: 'silent' }),
    // Whoever waits for another is to find out at once.
    policy: { ...GRANT_POLICY, poll: 20, precedence: 20 },
  })
  return {
    keeper,
    async publish(account) {
      for (;;) {
        const pending = await keeper.pending(space.did, account)
        if (!pending) return
        const found = await space.record(account, pending.authorization)
        await onStep('space')
        if (await keeper.published(space.did, account, found)) return
      }
    },
  }
}
