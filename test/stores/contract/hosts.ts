import type { HostTrouble } from '../../../src/stores/index.ts'
import type { Contract, SharedContract } from './contract.ts'

const host = 'pds.example'
const now = 2 ** 41
const trouble: HostTrouble = {
  kind: 'failing',
  failures: 2,
  closures: 0,
  until: now,
}

export const hostStoreContract: Contract = {
  'nothing is kept of a host that is as it should be': async (
    assert,
    { hosts }
  ) => {
    assert.equal(await hosts.get(host), undefined)
    const changed = await hosts.change(host, (present) => {
      assert.equal(present, undefined)
      return undefined
    })
    assert.equal(changed, undefined)
    assert.equal(await hosts.get(host), undefined)
    assert.equal((await hosts.closed()).size, 0)
  },

  'what is kept of a host is what was decided last': async (
    assert,
    { hosts }
  ) => {
    assert.deepEqual(await hosts.change(host, () => trouble), trouble)
    assert.deepEqual(await hosts.get(host), trouble)
    assert.equal(await hosts.get('other.example'), undefined)
    const more = { kind: 'limited', failures: 3, closures: 1, until: now + 1 }
    await hosts.change(host, (present) => {
      assert.deepEqual(present, trouble)
      return more as HostTrouble
    })
    assert.deepEqual(await hosts.get(host), more)
    await hosts.change(host, () => undefined)
    assert.equal(await hosts.get(host), undefined)
  },

  'those that are left alone can be told, with until when': async (
    assert,
    { hosts }
  ) => {
    await hosts.change(host, () => trouble)
    const closed = { ...trouble, closures: 1 }
    await hosts.change('b.example', () => closed)
    assert.deepEqual([...(await hosts.closed())], [['b.example', closed]])
  },

  'a decision that fails changes nothing': async (assert, { hosts }) => {
    await hosts.change(host, () => trouble)
    await assert.rejects(
      hosts.change(host, () => {
        throw new Error('undecided')
      }),
      /undecided/
    )
    assert.deepEqual(await hosts.get(host), trouble)
  },

  'those that nobody asked for long are forgotten': async (
    assert,
    { hosts }
  ) => {
    await hosts.change(host, () => trouble)
    await hosts.change('b.example', () => ({ ...trouble, until: now + 1 }))
    await hosts.forget(now + 1)
    assert.equal(await hosts.get(host), undefined)
    assert.ok(await hosts.get('b.example'))
  },
}

export const sharedHostStoreContract: SharedContract = {
  'of many changes of a host at once, none is lost': async (assert, open) => {
    const [one, two] = [await open(), await open()]
    await Promise.all(
      Array.from({ length: 20 }, () => [one, two])
        .flat()
        .map(({ hosts }) =>
          hosts.change(host, (present = { ...trouble, failures: 0 }) => ({
            ...present,
            failures: present.failures + 1,
          }))
        )
    )
    assert.equal((await one.hosts.get(host))?.failures, 40)
  },
}
