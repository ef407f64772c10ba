import assert from 'node:assert/strict'
import { delegate, invoke } from '@ucanto/core'
import type { Ability } from '@ucanto/interface'
import { ed25519, Verifier } from '@ucanto/principal'
import { access } from '@ucanto/validator'
import * as raw from 'multiformats/codecs/raw'
import { CID } from 'multiformats/cid'
import { identity } from 'multiformats/hashes/identity'
import {
  ABILITIES,
  Authorization,
  Backup,
  BACKUP_ABILITIES,
  Clock,
  Revocation,
} from '../../src/capabilities/index.ts'

const CAPABILITIES = {
  'clock/head': Clock.head,
  'clock/advance': Clock.advance,
  'backup/run': Backup.run,
  'backup/status': Backup.status,
  'backup/schedule': Backup.schedule,
  'backup/schedules': Backup.schedules,
  'backup/pause': Backup.pause,
  'backup/resume': Backup.resume,
  'backup/unschedule': Backup.unschedule,
  'clock/*': Clock.clock,
  'backup/*': Backup.backup,
  'backup/perform': Backup.perform,
  'authorization/*': Authorization.authorization,
  'authorization/request': Authorization.request,
  'authorization/list': Authorization.list,
  'authorization/revoke': Authorization.revoke,
  'authorization/share': Authorization.share,
  'ucan/revoke': Revocation.revoke,
}

const ACCOUNT = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const OTHER_ACCOUNT = 'did:web:other.example'

const linkTo = (text: string) =>
  CID.createV1(raw.code, identity.digest(new TextEncoder().encode(text)))

const ONE = linkTo('one')
const TWO = linkTo('two')

const HOURLY = { account: ACCOUNT, every: 3600, delegation: ONE }
const DAILY = {
  account: ACCOUNT,
  cron: '0 4 * * *',
  timezone: 'Europe/Berlin',
  delegation: ONE,
}

const REQUEST = {
  account: ACCOUNT,
  include: ['blobs'],
  returnTo: 'https://alice.example/',
  delegation: ONE,
}

const SHARE = {
  account: ACCOUNT,
  agent: 'did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH',
  before: '2025-03-12T15:13:59.958Z',
  delegation: ONE,
}

type Nb = Record<string, unknown>

describe('capabilities', () => {
  let space: ed25519.EdSigner
  let alice: ed25519.EdSigner
  let bob: ed25519.EdSigner
  let service: ed25519.EdSigner

  before(async () => {
    ;[space, alice, bob, service] = (await Promise.all(
      Array.from({ length: 4 }, () => ed25519.generate())
    )) as [
      ed25519.EdSigner,
      ed25519.EdSigner,
      ed25519.EdSigner,
      ed25519.EdSigner,
    ]
  })

  /** Why the claim is refused, if it is. */
  const check = async (
    claimed: { can: keyof typeof CAPABILITIES; with?: string; nb?: Nb },
    delegated: { can: string; with?: string; nb?: Nb }
  ) => {
    const resource = space.did()
    const proof = await delegate({
      issuer: space,
      audience: alice,
      capabilities: [{ with: resource, ...delegated } as never],
      expiration: Infinity,
    })
    const invocation = await invoke({
      issuer: alice,
      audience: service,
      capability: { with: resource, ...claimed } as never,
      proofs: [proof],
    }).delegate()
    const { error } = await access(invocation as never, {
      capability: CAPABILITIES[claimed.can] as never,
      authority: service,
      principal: Verifier,
      validateAuthorization: () => ({ ok: {} }),
    })
    return error?.message
  }

  const nbOf: Partial<Record<string, Nb>> = {
    'clock/advance': { event: ONE },
    'backup/run': { account: ACCOUNT },
    'backup/schedule': HOURLY,
    'backup/pause': { account: ACCOUNT },
    'backup/resume': { account: ACCOUNT },
    'backup/unschedule': { account: ACCOUNT },
    'authorization/request': { account: ACCOUNT },
    'authorization/revoke': { account: ACCOUNT },
    'authorization/share': SHARE,
    'ucan/revoke': { ucan: ONE },
  }

  describe('that cover others', () => {
    const covers: Record<string, string[]> = {
      'clock/*': ['clock/head', 'clock/advance'],
      'backup/*': ABILITIES.filter((can) => can.startsWith('backup/')),
      'authorization/*': ABILITIES.filter((can) =>
        can.startsWith('authorization/')
      ),
      'authorization/request': ['authorization/request'],
      'authorization/list': ['authorization/list'],
      'authorization/revoke': ['authorization/revoke'],
      'authorization/share': ['authorization/share'],
      '*': [...ABILITIES],
      'clock/head': ['clock/head'],
      'clock/advance': ['clock/advance'],
      'backup/run': ['backup/run'],
      'backup/status': ['backup/status'],
      'backup/schedule': ['backup/schedule'],
      'backup/schedules': ['backup/schedules'],
      'backup/pause': ['backup/pause'],
      'backup/resume': ['backup/resume'],
      'backup/unschedule': ['backup/unschedule'],
      'space/*': [],
      'upload/*': [],
      'clock/advance/*': [],
      'ucan/*': ['ucan/revoke'],
      'ucan/revoke': ['ucan/revoke'],
    }
    for (const [delegated, covered] of Object.entries(covers)) {
      for (const can of ABILITIES) {
        const yes = covered.includes(can)
        it(`${delegated} ${yes ? 'allows' : 'does not allow'} ${can}`, async () => {
          const nb = nbOf[can]
          const refusal = await check(
            { can, ...(nb ? { nb } : {}) },
            { can: delegated }
          )
          assert.equal(refusal === undefined, yes, refusal)
        })
      }
    }

    it('allow in one Space nothing in another', async () => {
      const other = await ed25519.generate()
      for (const can of ABILITIES) {
        for (const delegated of [can, `${can.split('/')[0]}/*`, '*']) {
          const nb = nbOf[can]
          const refusal = await check(
            { can, with: other.did(), ...(nb ? { nb } : {}) },
            { can: delegated }
          )
          assert.ok(refusal)
        }
      }
    })

    it('allow with all of an agent only what is delegated to it', async () => {
      assert.match(
        (await check({ can: 'clock/head' }, { can: '*', with: bob.did() }))!,
        /cannot derive|not authorized/
      )
      assert.equal(
        await check({ can: 'clock/head' }, { can: '*', with: 'ucan:*' }),
        undefined
      )
    })
  })

  describe('with narrower delegations', () => {
    const cases: [
      can: keyof typeof CAPABILITIES,
      claimed: Nb,
      delegated: Nb,
      refused: RegExp | undefined,
    ][] = [
      ['clock/advance', { event: ONE }, { event: ONE }, undefined],
      ['clock/advance', { event: ONE }, { event: TWO }, /for event/],
      ['backup/run', { account: ACCOUNT }, { account: ACCOUNT }, undefined],
      [
        'backup/run',
        { account: OTHER_ACCOUNT },
        { account: ACCOUNT },
        /for account did:plc:\w+, not did:web:other\.example/,
      ],
      [
        'backup/run',
        { account: ACCOUNT, include: ['blobs'] },
        { include: ['blobs'] },
        undefined,
      ],
      [
        'backup/run',
        { account: ACCOUNT, include: [] },
        { include: ['blobs'] },
        undefined,
      ],
      [
        'backup/run',
        { account: ACCOUNT },
        { include: ['blobs'] },
        /limits include to \[blobs\]; say which/,
      ],
      [
        'backup/run',
        { account: ACCOUNT, include: ['blobs'] },
        { include: [] },
        /limits include to \[\], without blobs/,
      ],
      [
        'backup/run',
        { account: ACCOUNT },
        { include: [] },
        /limits include to \[\]; say which/,
      ],
      [
        'backup/run',
        { account: ACCOUNT, delegation: ONE },
        { delegation: ONE },
        undefined,
      ],
      [
        'backup/run',
        { account: ACCOUNT, delegation: TWO },
        { delegation: ONE },
        /for delegation/,
      ],
      [
        'backup/run',
        { account: ACCOUNT },
        { delegation: ONE },
        /for delegation \w+, not for all/,
      ],
      ['backup/schedule', HOURLY, HOURLY, undefined],
      ['backup/schedule', HOURLY, { account: ACCOUNT }, undefined],
      [
        'backup/schedule',
        HOURLY,
        { account: OTHER_ACCOUNT },
        /for account did:web:other\.example, not did:plc:/,
      ],
      ['backup/schedule', HOURLY, { every: 3600 }, undefined],
      [
        'backup/schedule',
        HOURLY,
        { every: 86_400 },
        /for every 86400, not 3600/,
      ],
      ['backup/schedule', DAILY, { every: 86_400 }, /for every 86400, not for/],
      ['backup/schedule', DAILY, DAILY, undefined],
      [
        'backup/schedule',
        DAILY,
        { cron: '0 5 * * *' },
        /for cron 0 5 \* \* \*/,
      ],
      [
        'backup/schedule',
        DAILY,
        { timezone: 'UTC' },
        /for timezone UTC, not Eur/,
      ],
      [
        'backup/schedule',
        HOURLY,
        { include: [] },
        /limits include to \[\]; say which/,
      ],
      ['backup/schedule', HOURLY, { delegation: TWO }, /for delegation/],
      ['backup/pause', { account: ACCOUNT }, { account: ACCOUNT }, undefined],
      [
        'backup/pause',
        { account: ACCOUNT },
        { account: OTHER_ACCOUNT },
        /for account/,
      ],
      ['backup/pause', { account: ACCOUNT, until: 2 }, { until: 2 }, undefined],
      [
        'backup/pause',
        { account: ACCOUNT, until: 3 },
        { until: 2 },
        /for until 2, not 3/,
      ],
      [
        'backup/pause',
        { account: ACCOUNT },
        { until: 2 },
        /for until 2, not for/,
      ],
      ['backup/resume', { account: ACCOUNT }, { account: ACCOUNT }, undefined],
      [
        'backup/resume',
        { account: ACCOUNT },
        { account: OTHER_ACCOUNT },
        /for account/,
      ],
      [
        'backup/unschedule',
        { account: ACCOUNT },
        { account: ACCOUNT },
        undefined,
      ],
      [
        'backup/unschedule',
        { account: ACCOUNT },
        { account: OTHER_ACCOUNT },
        /for account/,
      ],
      ['authorization/request', REQUEST, {}, undefined],
      ['authorization/request', REQUEST, REQUEST, undefined],
      [
        'authorization/request',
        { account: 'alice.test' },
        { account: ACCOUNT },
        /for account/,
      ],
      [
        'authorization/request',
        { account: ACCOUNT },
        { account: ACCOUNT, include: ['blobs'] },
        /limits include/,
      ],
      [
        'authorization/request',
        REQUEST,
        { ...REQUEST, returnTo: 'https://bob.example/' },
        /for returnTo/,
      ],
      [
        'authorization/request',
        REQUEST,
        { ...REQUEST, delegation: TWO },
        /for delegation/,
      ],
      [
        'authorization/revoke',
        { account: ACCOUNT },
        { account: ACCOUNT },
        undefined,
      ],
      [
        'authorization/revoke',
        { account: ACCOUNT },
        { account: OTHER_ACCOUNT },
        /for account/,
      ],
      ['authorization/share', SHARE, {}, undefined],
      ['authorization/share', SHARE, SHARE, undefined],
      [
        'authorization/share',
        { account: ACCOUNT, agent: SHARE.agent },
        { account: ACCOUNT, agent: SHARE.agent },
        undefined,
      ],
      ['authorization/share', SHARE, { account: OTHER_ACCOUNT }, /for account/],
      [
        'authorization/share',
        SHARE,
        { agent: 'did:key:z6MkgGwb4xuUuddp6KsJqKNstgHUzkup95CyebHLDZZka9eU' },
        /for agent/,
      ],
      [
        'authorization/share',
        { account: ACCOUNT, agent: SHARE.agent },
        { before: SHARE.before },
        /for before \S+, not for all/,
      ],
      ['authorization/share', SHARE, { delegation: TWO }, /for delegation/],
      ['backup/status', { run: ONE }, { run: ONE }, undefined],
      ['backup/status', { run: TWO }, { run: ONE }, /for run/],
      ['backup/status', {}, { run: ONE }, /for run \w+, not for all/],
      ['backup/status', { limit: 5 }, {}, undefined],
      ['backup/status', { account: ACCOUNT }, { account: ACCOUNT }, undefined],
      ['backup/status', { run: ONE }, { account: ACCOUNT }, /for account/],
      [
        'backup/status',
        { account: 'did:plc:other' },
        { account: ACCOUNT },
        /for account/,
      ],
    ]
    for (const [can, claimed, delegated, refused] of cases) {
      const show = (nb: Nb) =>
        Object.entries(nb)
          .map(([key, value]) => `${key} ${String(value)}`)
          .join(', ') || 'everything'
      it(`${can} of ${show(claimed)} is ${refused ? 'refused' : 'allowed'} for ${show(delegated)}`, async () => {
        for (const ability of [can, `${can.split('/')[0]}/*`, '*']) {
          const refusal = await check(
            { can, nb: claimed },
            { can: ability, nb: delegated }
          )
          if (refused) assert.match(refusal ?? 'allowed', refused)
          else assert.equal(refusal, undefined)
        }
      })
    }
  })

  describe('with malformed values', () => {
    const cases: [keyof typeof CAPABILITIES, Nb | undefined][] = [
      ['clock/advance', undefined],
      ['clock/advance', { event: 'bafy' }],
      ['clock/advance', { event: [ONE] }],
      ['clock/advance', { event: null }],
      ['backup/run', undefined],
      ['backup/run', { account: 1 }],
      ['backup/run', { account: 'alice.test' }],
      ['backup/run', { account: 'did:plc:' }],
      ['backup/run', { account: 'did:key:z6MkvpF1' }],
      ['backup/run', { account: ACCOUNT, include: 'blobs' }],
      ['backup/run', { account: ACCOUNT, include: ['everything'] }],
      ['backup/run', { account: ACCOUNT, delegation: 'bafy' }],
      ['backup/schedule', { ...HOURLY, account: 'alice.test' }],
      ['backup/schedule', { ...HOURLY, every: '1h' }],
      ['backup/schedule', { ...HOURLY, every: 1.5 }],
      ['backup/schedule', { ...DAILY, cron: 4 }],
      ['backup/schedule', { ...DAILY, timezone: 1 }],
      ['backup/schedule', { ...HOURLY, include: ['everything'] }],
      ['backup/schedule', { account: ACCOUNT, every: 3600 }],
      ['backup/schedule', { ...HOURLY, account: 'did:plc:\0' }],
      ['backup/schedule', { ...HOURLY, account: 'did:web:\ud800' }],
      ['backup/schedule', { ...HOURLY, account: `did:plc:${'a'.repeat(249)}` }],
      ['backup/schedule', { ...DAILY, cron: '0'.repeat(501) }],
      ['backup/schedule', { ...DAILY, timezone: 'a'.repeat(65) }],
      ['backup/schedule', { ...HOURLY, include: ['blobs', 'blobs'] }],
      ['backup/run', { account: 'did:plc:a b' }],
      ['backup/status', { account: 'did:plc:' }],
      [
        'authorization/request',
        { account: ACCOUNT, returnTo: `https://a.example/${'a'.repeat(2048)}` },
      ],
      ['backup/pause', undefined],
      ['backup/pause', { account: ACCOUNT, until: 'tomorrow' }],
      ['backup/resume', { account: 'alice.test' }],
      ['backup/unschedule', {}],
      ['authorization/request', undefined],
      ['authorization/request', { account: 'alice' }],
      ['authorization/request', { account: 'did:key:z6MkvpF1' }],
      ['authorization/request', { account: 'alice..test' }],
      ['authorization/request', { account: `${'a'.repeat(64)}.test` }],
      ['authorization/request', { account: ACCOUNT, include: ['all'] }],
      ['authorization/request', { account: ACCOUNT, returnTo: 1 }],
      ['authorization/request', { account: ACCOUNT, delegation: 'bafy' }],
      ['authorization/revoke', {}],
      ['authorization/revoke', { account: 'alice.test' }],
      ['authorization/share', undefined],
      ['authorization/share', { account: ACCOUNT }],
      ['authorization/share', { agent: SHARE.agent }],
      ['authorization/share', { ...SHARE, account: 'alice.test' }],
      ['authorization/share', { ...SHARE, agent: ACCOUNT }],
      ['authorization/share', { ...SHARE, before: 'yesterday' }],
      ['authorization/share', { ...SHARE, before: '2025-03-12' }],
      ['authorization/share', { ...SHARE, before: 1 }],
      ['authorization/share', { ...SHARE, delegation: 'bafy' }],
      ['backup/status', { run: 'bafy' }],
      ['backup/status', { run: 1 }],
      ['backup/status', { account: 'alice.test' }],
      ['backup/status', { limit: 0 }],
      ['backup/status', { limit: 1.5 }],
    ]
    for (const [can, nb] of cases) {
      it(`refuse ${can} of ${JSON.stringify(nb)}`, async () => {
        assert.ok(
          await check(nb ? { can, nb } : { can }, {
            can: `${can.split('/')[0]}/*`,
          })
        )
      })
    }

    it('refuse what is no Space', async () => {
      for (const resource of [
        'did:web:space.example',
        'mailto:a@example.com',
      ]) {
        assert.ok(
          await check(
            { can: 'clock/head', with: resource },
            { can: 'clock/*', with: resource }
          )
        )
      }
    })
  })

  it('lists what can be invoked and what a service needs', () => {
    for (const can of ABILITIES) assert.equal(CAPABILITIES[can].can, can)
    assert.deepEqual(new Set<Ability>(BACKUP_ABILITIES).size, 5)
  })
})
