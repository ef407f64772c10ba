/**
 * What is asked of the user, and what came of it.
 *
 * @see https://atproto.com/specs/permission
 */

/** Grows when other scopes are asked for than before. */
export const SCOPE_VERSION = 1

/** Without it there is no session at all. */
const BASE = 'atproto'

const APP_VIEW = 'did:web:api.bsky.app#bsky_appview'
const CHAT = 'did:web:api.bsky.chat#bsky_chat'

/** What is asked of hosts that know no scopes by name. */
const TRANSITION = {
  [APP_VIEW]: 'transition:generic',
  [CHAT]: 'transition:chat.bsky',
}

type Service = keyof typeof TRANSITION

/** The methods that a private part is read by, and who answers them. */
const METHODS: Record<string, { service: Service; methods: string[] }> = {
  preferences: {
    service: APP_VIEW,
    methods: ['app.bsky.actor.getPreferences'],
  },
  mutes: { service: APP_VIEW, methods: ['app.bsky.graph.getMutes'] },
  'muted-lists': {
    service: APP_VIEW,
    methods: ['app.bsky.graph.getListMutes'],
  },
  'blocked-lists': {
    service: APP_VIEW,
    methods: ['app.bsky.graph.getListBlocks'],
  },
  bookmarks: {
    service: APP_VIEW,
    methods: ['app.bsky.bookmark.getBookmarks'],
  },
  'notification-preferences': {
    service: APP_VIEW,
    methods: ['app.bsky.notification.getPreferences'],
  },
  drafts: { service: APP_VIEW, methods: ['app.bsky.draft.getDrafts'] },
  conversations: {
    service: CHAT,
    methods: ['chat.bsky.actor.exportAccountData'],
  },
}

/** Private parts that there are scopes for. */
export const GRANTABLE_PARTS: readonly string[] = Object.keys(METHODS)

/** Those that are asked for where nobody says which. */
export const DEFAULT_PARTS: readonly string[] = GRANTABLE_PARTS.filter(
  (part) => part !== 'conversations'
)

/**
 * The least that serves the parts, by the names of methods.
 *
 * @param parts - those that there are no scopes for are left out
 */
export function scopeFor(parts: Iterable<string>): string {
  const scopes = new Set([BASE])
  for (const part of parts) {
    for (const scope of scopesOf(part)) scopes.add(scope)
  }
  return [...scopes].join(' ')
}

/** More than is needed, for hosts that know no scopes by name. */
export function transitionScopeFor(parts: Iterable<string>): string {
  const scopes = new Set([BASE])
  for (const part of parts) {
    const method = METHODS[part]
    if (!method) continue
    // Whatever else is chatted about, it is the generic one that opens the door.
    scopes.add(TRANSITION[APP_VIEW])
    scopes.add(TRANSITION[method.service])
  }
  return [...scopes].join(' ')
}

/** All that is ever asked for; what a client says of itself. */
export function allScopes(): string {
  const scopes = new Set(scopeFor(GRANTABLE_PARTS).split(' '))
  for (const scope of transitionScopeFor(GRANTABLE_PARTS).split(' ')) {
    scopes.add(scope)
  }
  return [...scopes].join(' ')
}

/**
 * The parts that were granted. Hosts leave out without a word what they do not
 * know, so that only the answer counts.
 *
 * @param scope - what the host says that it has granted
 */
export function partsIn(scope: string): string[] {
  const granted = new Set(scope.split(' ').map(canonical))
  return GRANTABLE_PARTS.filter((part) => {
    const method = METHODS[part]
    return (
      method !== undefined &&
      (granted.has(TRANSITION[method.service]) ||
        scopesOf(part).every((each) => granted.has(canonical(each))))
    )
  })
}

function scopesOf(part: string): string[] {
  const { service, methods } = METHODS[part] ?? { methods: [] }
  return methods.map(
    (method) => `rpc:${method}?aud=${String(service).replace('#', '%23')}`
  )
}

/** Hosts may write the fragment of an audience as it is. */
function canonical(scope: string): string {
  return scope.replace('#', '%23')
}
