import assert from 'node:assert/strict'
import {
  DEFAULT_PARTS,
  GRANTABLE_PARTS,
  loopbackMetadata,
  partsIn,
} from '../../src/atproto/oauth/index.ts'
import {
  allScopes,
  scopeFor,
  transitionScopeFor,
} from '../../src/atproto/oauth/scopes.ts'

describe('scopes', () => {
  it('are the least that serves what is asked for', () => {
    assert.equal(scopeFor([]), 'atproto')
    assert.equal(scopeFor(['repo', 'nonsense']), 'atproto')
    assert.equal(
      scopeFor(['preferences', 'conversations']),
      'atproto rpc:app.bsky.actor.getPreferences?aud=did:web:api.bsky.app%23bsky_appview rpc:chat.bsky.actor.exportAccountData?aud=did:web:api.bsky.chat%23bsky_chat'
    )
    assert.ok(!DEFAULT_PARTS.includes('conversations'))
    assert.ok(!scopeFor(DEFAULT_PARTS).includes('chat.bsky'))
    assert.ok(!scopeFor(GRANTABLE_PARTS).includes('transition:'))
  })

  it('are wider only for hosts that know none by name', () => {
    assert.equal(transitionScopeFor([]), 'atproto')
    assert.equal(transitionScopeFor(['mutes']), 'atproto transition:generic')
    assert.equal(
      transitionScopeFor(['mutes', 'conversations']),
      'atproto transition:generic transition:chat.bsky'
    )
  })

  it('say which parts were granted, whatever was asked for', () => {
    assert.deepEqual(partsIn(''), [])
    assert.deepEqual(partsIn('atproto'), [])
    for (const part of GRANTABLE_PARTS) {
      assert.deepEqual(partsIn(scopeFor([part])), [part])
      assert.deepEqual(partsIn(scopeFor([part]).replace('%23', '#')), [part])
      // Of another service it is another thing.
      assert.deepEqual(
        partsIn(scopeFor([part]).replace('did:web:api', 'did:web:ape')),
        []
      )
    }
    assert.deepEqual(partsIn(scopeFor(GRANTABLE_PARTS)), GRANTABLE_PARTS)
    assert.deepEqual(partsIn('atproto transition:generic'), DEFAULT_PARTS)
    assert.deepEqual(partsIn(allScopes()), GRANTABLE_PARTS)
  })

  it('are all named by a client of this machine, whatever its port', () => {
    const one = loopbackMetadata(new URL('http://127.0.0.1:1234/callback'))
    const two = loopbackMetadata(new URL('http://127.0.0.1:5678/callback'))
    assert.equal(one.client_id, two.client_id)
    assert.deepEqual(two.redirect_uris, ['http://127.0.0.1:5678/callback'])
    assert.equal(one.scope, allScopes())
  })
})
