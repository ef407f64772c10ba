import type { Contract } from './contract.ts'
import { account, alice, bob, bytesOf } from './samples.ts'

export const journalStoreContract: Contract = {
  'entries come back in the order they were appended': async (
    assert,
    { journal }
  ) => {
    assert.deepEqual(await journal.load(alice, account), [])
    for (const key of ['b', 'c', 'a']) {
      await journal.append(alice, account, key, bytesOf(key))
    }
    const entries = ['b', 'c', 'a'].map(bytesOf)
    assert.deepEqual(await journal.load(alice, account), entries)
  },

  'a key that is there is not appended again': async (assert, { journal }) => {
    await journal.append(alice, account, 'a', bytesOf('first'))
    await journal.append(alice, account, 'b', bytesOf('b'))
    await journal.append(alice, account, 'a', bytesOf('second'))
    const entries = ['first', 'b'].map(bytesOf)
    assert.deepEqual(await journal.load(alice, account), entries)
  },

  'each account in each Space has its own entries': async (
    assert,
    { journal }
  ) => {
    await journal.append(alice, account, 'a', bytesOf('1'))
    await journal.append(bob, account, 'a', bytesOf('2'))
    await journal.append(alice, 'did:plc:other', 'a', bytesOf('3'))
    await journal.clear(alice, account)
    assert.deepEqual(await journal.load(alice, account), [])
    assert.deepEqual(await journal.load(bob, account), [bytesOf('2')])
    assert.deepEqual(await journal.load(alice, 'did:plc:other'), [bytesOf('3')])
  },

  'a cleared journal starts again': async (assert, { journal }) => {
    await journal.append(alice, account, 'a', bytesOf('1'))
    await journal.clear(alice, account)
    await journal.append(alice, account, 'a', bytesOf('2'))
    assert.deepEqual(await journal.load(alice, account), [bytesOf('2')])
  },
}
