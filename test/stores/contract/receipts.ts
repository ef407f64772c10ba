import type { Contract } from './contract.ts'
import { bytesOf } from './samples.ts'

export const receiptStoreContract: Contract = {
  'a receipt is kept': async (assert, { receipts }) => {
    await receipts.put('task', bytesOf('receipt'))
    assert.deepEqual(await receipts.get('task'), bytesOf('receipt'))
    assert.equal(await receipts.get('other'), undefined)
  },

  'the first receipt of a task stays': async (assert, { receipts }) => {
    await receipts.put('task', bytesOf('first'))
    await receipts.put('task', bytesOf('second'))
    assert.deepEqual(await receipts.get('task'), bytesOf('first'))
  },
}
