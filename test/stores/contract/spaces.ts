import type { Contract } from './contract.ts'
import { alice, bob } from './samples.ts'

export const spaceStoreContract: Contract = {
  'what is known of a Space is what was said last': async (
    assert,
    { spaces }
  ) => {
    assert.equal(await spaces.get(alice), undefined)
    await spaces.put(alice, { provisioned: true, checked: 2 ** 41 })
    await spaces.put(bob, { provisioned: false, checked: 1 })
    assert.deepEqual(await spaces.get(alice), {
      provisioned: true,
      checked: 2 ** 41,
    })
    await spaces.put(alice, { provisioned: false, checked: 2 ** 41 + 1 })
    assert.deepEqual(await spaces.get(alice), {
      provisioned: false,
      checked: 2 ** 41 + 1,
    })
    assert.deepEqual(await spaces.get(bob), { provisioned: false, checked: 1 })
  },
}
