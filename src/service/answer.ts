import { z } from 'zod'
import { openPart, sealPart } from '../space/private-part.ts'

/** What a host has answered to a refresh. */
const answerSchema = z.object({
  status: z.number(),
  headers: z.array(z.tuple([z.string(), z.string()])),
  body: z.string(),
})

export type RefreshAnswer = z.infer<typeof answerSchema>

/**
 * Seals an answer by somebody who has no key of the agent.
 *
 * @param recipient - age recipient of the agent
 * @throws {@link InvalidRecipientError}
 */
export async function sealAnswer(
  recipient: string,
  answer: RefreshAnswer
): Promise<Uint8Array> {
  const plain = new Blob([JSON.stringify(answer)]).stream()
  return new Response(await sealPart([recipient], plain)).bytes()
}

/**
 * @param identity - of the agent, for the account that the grant is for
 * @throws {@link UnsealError}
 */
export async function openAnswer(
  identity: CryptoKey,
  sealed: Uint8Array
): Promise<Response> {
  const stream = new Blob([Uint8Array.from(sealed)]).stream()
  const text = await new Response(await openPart(identity, stream)).text()
  return responseOf(answerSchema.parse(JSON.parse(text)))
}

/** The response that an answer was made of. */
export function responseOf({ body, ...init }: RefreshAnswer): Response {
  // Some statuses have none, and then there must not even be an empty one.
  return new Response(body === '' ? null : body, init)
}
