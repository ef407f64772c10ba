/**
 * Gives a courier something to carry, and is killed or goes before there is an
 * answer.
 */
import { once } from 'node:events'
import {
  createCourier,
  type CarriedGrant,
  type CourierOptions,
} from '../../src/service/courier.ts'

export interface Errand {
  options: CourierOptions
  url: string
  grant: CarriedGrant
  /** Whether it goes by itself, when it is told to, without the answer. */
  leaves?: boolean
}

const [errand] = (await once(process, 'message')) as [Errand]
const courier = createCourier(errand.options)
const sending = courier.send(
  new Request(errand.url, { method: 'POST', body: 'refresh' }),
  errand.grant
)
if (errand.leaves) {
  await once(process, 'message')
  courier[Symbol.dispose]()
} else {
  const { response } = await sending
  // Nobody has released it: the courier still holds it.
  process.send?.({ status: response.status })
}
