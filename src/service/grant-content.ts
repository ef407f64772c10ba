import type { Signer } from '@ucanto/interface'
import { z } from 'zod'
import {
  openAuthorization,
  sealAuthorization,
  type Authorization,
  type DID,
} from '../space/index.ts'

/** What something sealed is about. */
export interface GrantSubject {
  space: DID
  account: DID
}

/** What is sealed of a grant. */
const grantSchema = z.object({
  version: z.literal(1),
  session: z.string(),
  scope: z.string(),
  scopeVersion: z.number(),
  /** Names of the parts that were asked for. */
  asked: z.array(z.string()).default([]),
  /** Unix milliseconds of the consent. */
  created: z.number(),
  /** Unix milliseconds of the last refresh. */
  refreshed: z.number(),
  /** Unix milliseconds until which the session is good. */
  until: z.number(),
})

export type SealedGrant = z.infer<typeof grantSchema>

/** What is sealed in the place of a grant that was given back. */
const revokedSchema = z.strictObject({
  /** Unix milliseconds; not there in those of the first versions. */
  revoked: z.number().default(0),
})

/** What is sealed of a request: with `seq` 0, as no grant is. */
const requestSchema = z.object({
  version: z.literal(1),
  state: z.string(),
  returnTo: z.string().optional(),
  /** Names of the parts that were asked for. */
  parts: z.array(z.string()),
  /** Whether they were asked for by the names of methods. */
  isGranular: z.boolean(),
  /** DID of the agent that has asked. */
  requester: z.string(),
  /** Of the account. */
  handle: z.string().optional(),
})

export type SealedRequest = z.infer<typeof requestSchema>

/** What is sealed of a session that is to be given back. */
const returnSchema = z.object({ version: z.literal(1), session: z.string() })

/** A grant as its agent finds it: in its journal, or in the Space. */
export interface OpenedGrant {
  /** Not there if it was given back. */
  grant?: SealedGrant
  /** Unix milliseconds: of two, the later counts, whatever their numbers. */
  time: number
}

/** Opens and seals what the grants of one agent are made of. */
export interface GrantContents {
  /** @param grant - nothing for one that was given back */
  sealGrant(
    details: GrantSubject & Omit<Authorization, 'sealed'>,
    grant: SealedGrant | undefined,
    now: number
  ): Promise<Uint8Array>

  /** @throws {@link UnsealError} {@link ReplayedAuthorizationError} */
  openGrant(
    subject: GrantSubject & { newestSeq?: number },
    authorization: Authorization
  ): Promise<OpenedGrant>

  /** @param details.expiration - Unix seconds */
  sealRequest(
    details: GrantSubject & { expiration: number },
    request: SealedRequest
  ): Promise<Uint8Array>

  /** @throws {@link UnsealError} */
  openRequest(
    details: GrantSubject & { expiration: number },
    sealed: Uint8Array
  ): Promise<SealedRequest>

  /** @param details.expiration - Unix seconds */
  sealReturn(
    details: GrantSubject & { seq: number; expiration: number },
    session: string
  ): Promise<Uint8Array>

  /** @throws {@link UnsealError} */
  openReturn(
    details: GrantSubject & { seq: number; expiration: number },
    sealed: Uint8Array
  ): Promise<string>
}

export function createGrantContents(agent: Signer): GrantContents {
  const seal = async (
    details: GrantSubject & Omit<Authorization, 'sealed'>,
    value: object
  ) => {
    const bytes = new TextEncoder().encode(JSON.stringify(value))
    return (await sealAuthorization(agent, details, bytes)).sealed
  }
  const open = async (
    subject: GrantSubject & { newestSeq?: number },
    authorization: Authorization
  ): Promise<unknown> =>
    JSON.parse(
      new TextDecoder().decode(
        await openAuthorization(agent, subject, authorization)
      )
    )
  return {
    sealGrant: (details, grant, now) =>
      seal(details, grant ?? { revoked: now }),

    async openGrant(subject, authorization) {
      const value = await open(subject, authorization)
      const revoked = revokedSchema.safeParse(value)
      if (revoked.success) return { time: revoked.data.revoked }
      const grant = grantSchema.parse(value)
      return { grant, time: Math.max(grant.created, grant.refreshed) }
    },

    sealRequest: (details, request) => seal({ ...details, seq: 0 }, request),

    openRequest: async ({ expiration, ...subject }, sealed) =>
      requestSchema.parse(await open(subject, { seq: 0, expiration, sealed })),

    sealReturn: (details, session) => seal(details, { version: 1, session }),

    async openReturn({ seq, expiration, ...subject }, sealed) {
      const value = await open(subject, { seq, expiration, sealed })
      return returnSchema.parse(value).session
    },
  }
}
