/**
 * Gives a courier something to carry, and is killed before there is an answer.
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
}

const [errand] = (await once(process, 'message')) as [Errand]
const courier = createCourier(errand.options)
const { response } = await courier.send(
  new Request(errand.url, { method: 'POST', body: 'refresh' }),
  errand.grant
)
// Nobody has released it: the courier still holds it.
process.send?.({ status: response.status })
