import type { Contract, SharedContract } from './contract.ts'
import { alice, bob } from './samples.ts'

export const serviceStoreContract: Contract = {
  'a database belongs to the agent that came first': async (
    assert,
    { service }
  ) => {
    assert.equal(await service.claim(alice), alice)
    assert.equal(await service.claim(bob), alice)
    assert.equal(await service.claim(alice), alice)
  },

  'a database goes to another agent by the name of the old one': async (
    assert,
    { service }
  ) => {
    assert.equal(await service.replace(alice, bob), false)
    await service.claim(alice)
    assert.equal(await service.replace('did:key:carol', bob), false)
    assert.equal(await service.claim(bob), alice)
    assert.equal(await service.replace(alice, bob), true)
    assert.equal(await service.replace(alice, 'did:key:carol'), false)
    assert.equal(await service.claim(alice), bob)
  },
}

export const sharedServiceStoreContract: SharedContract = {
  'of many that come at the same time one has the database': async (
    assert,
    open
  ) => {
    const stores = await Promise.all(Array.from({ length: 4 }, open))
    const owners = await Promise.all(
      stores.map(({ service }, index) => service.claim(`did:key:${index}`))
    )
    assert.equal(new Set(owners).size, 1)
  },
}
