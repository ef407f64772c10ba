import type { Contract } from './contract.ts'
import { alice, bob, bytesOf } from './samples.ts'

export const revocationStoreContract: Contract = {
  'a revocation is found by its delegation': async (
    assert,
    { revocations }
  ) => {
    const cause = bytesOf('cause')
    await revocations.add({
      delegation: 'a',
      revoker: alice,
      cause,
      created: 1,
    })
    await revocations.add({ delegation: 'b', revoker: bob, cause, created: 2 })
    assert.deepEqual(await revocations.find(['a', 'c', 'a']), [
      { delegation: 'a', revoker: alice },
    ])
    assert.deepEqual(await revocations.find(['c']), [])
    assert.deepEqual(await revocations.find([]), [])
  },

  'a delegation may be revoked by several, and by one again': async (
    assert,
    { revocations }
  ) => {
    const cause = bytesOf('cause')
    for (const revoker of [alice, bob, alice]) {
      await revocations.add({ delegation: 'a', revoker, cause, created: 1 })
    }
    const found = await revocations.find(['a'])
    assert.deepEqual(
      found.map(({ revoker }) => revoker).sort(),
      [alice, bob].sort()
    )
  },
}
