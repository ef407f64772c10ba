import type { Delegation, Principal, Signer } from '@ucanto/interface'
import { ed25519 } from '@ucanto/principal'
import {
  DEFAULT_LIMITS,
  recordAuthorization,
  type Clock,
} from '../../src/backup/index.ts'
import { BACKUP_ABILITIES } from '../../src/capabilities/index.ts'
import { createClock } from '../../src/client/clock.ts'
import { connect } from '../../src/client/index.ts'
import { createNativeSha256, systemTime } from '../../src/node/index.ts'
import {
  decodeDelegations,
  encodeDelegations,
} from '../../src/service/authority.ts'
import {
  accounts,
  letGo,
  listAuthorizations,
  mergeHeads,
  setAuthorization,
  type Authorization,
  type Block,
  type BlockFetcher,
  type DID,
  type Link,
  type Revision,
  type State,
} from '../../src/space/index.ts'
import {
  connectUploadService,
  createSpaceReader,
  createSpaceWriter,
} from '../../src/storacha/index.ts'
import { startStoracha } from '../network/storacha.ts'
import { allow, startTestService } from './harness.ts'

export const SPACE: DID =
  'did:key:z6MkgGwb4xuUuddp6KsJqKNstgHUzkup95CyebHLDZZka9eU'

/** What a Space has of the authorizations of one agent. */
export interface TestSpace {
  did: DID
  read(account: DID): Promise<Authorization | undefined>
  /** @returns what the Space has then */
  record(
    account: DID,
    authorization: Authorization
  ): Promise<Authorization | undefined>
}

/**
 * The state as it is in a Space, and merges as it does there, without the
 * Space: for tests that are about hosts and databases.
 */
export class MemorySpace implements TestSpace {
  readonly did = SPACE
  /** May be put back to an earlier one. */
  state: Link<State> | undefined
  readonly #agent: Principal
  readonly #blocks = new Map<string, Block>()
  readonly #fetcher: BlockFetcher = {
    get: async (link) => this.#blocks.get(link.toString()),
  }

  constructor(agent: Principal) {
    this.#agent = agent
  }

  async read(account: DID): Promise<Authorization | undefined> {
    if (!(await accounts(this.#fetcher, this.state)).includes(account)) {
      return undefined
    }
    const [own] = await listAuthorizations(this.#fetcher, this.state, account, {
      agent: this.#agent.did(),
    })
    return own?.authorization
  }

  async record(
    account: DID,
    authorization: Authorization
  ): Promise<Authorization | undefined> {
    const agent = this.#agent.did()
    const change = { account, agent, authorization }
    this.#keep(await setAuthorization(this.#fetcher, this.state, change))
    return this.read(account)
  }

  /** What another agent does with the one whose authorizations these are. */
  async letGo(account: DID): Promise<void> {
    const agent = this.#agent.did()
    this.#keep(await letGo(this.#fetcher, this.state, { account, agent }))
  }

  #keep({ root, additions }: Revision<State>): void {
    for (const block of additions) this.#blocks.set(block.cid.toString(), block)
    this.state = root
  }
}

/** A Space at a real upload service, and the clock that tracks it. */
export function openRealSpace(
  agent: Signer,
  {
    space,
    proofs,
    storacha,
    clock,
  }: {
    space: DID
    /** What allows the agent to write into it. */
    proofs: Delegation[]
    storacha: { url: string; did: string; receiptsUrl: string }
    clock: Clock
  }
): TestSpace {
  const reader = createSpaceReader({
    gateways: [new URL(storacha.url)],
    fetch: globalThis.fetch,
    createSha256: createNativeSha256,
  })
  const service = connectUploadService({
    url: new URL(storacha.url),
    did: storacha.did,
    receiptsUrl: new URL(storacha.receiptsUrl),
  })
  const authority = {
    issuer: agent,
    space: space as `did:key:${string}`,
    proofs,
  }
  const writer = createSpaceWriter(service, authority, {
    sha256: createNativeSha256,
  })
  return {
    did: space,
    async read(account) {
      const { state, unreadable } = await mergeHeads(reader, await clock.head())
      if (unreadable[0]) throw unreadable[0].error
      const [own] = await listAuthorizations(reader, state, account, {
        agent: agent.did(),
      })
      return own?.authorization
    },
    record: (account, authorization) =>
      recordAuthorization(
        {
          ...{ writer, reader, clock },
          createSha256: createNativeSha256,
          time: systemTime,
          limits: DEFAULT_LIMITS,
        },
        { account, agent: agent.did(), authorization }
      ),
  }
}

/** Where a Space and its clock are, for an agent in whatever process. */
export interface SpacePlace {
  space: DID
  /** CAR of what allows the agent to write into it. */
  proofs: Uint8Array
  storacha: { url: string; did: string; receiptsUrl: string }
  /** Has the clock. */
  service: { url: string; did: string }
}

/** Opens a Space whose clock a service has. */
export function openSpaceAt(
  agent: Signer,
  { space, service, storacha, ...place }: SpacePlace
): TestSpace {
  const proofs = decodeDelegations(place.proofs)
  const clock = createClock(
    { issuer: agent, with: space as `did:key:${string}`, proofs },
    { connection: connect({ ...service, url: new URL(service.url) }) }
  )
  return openRealSpace(agent, { space, proofs, storacha, clock })
}

/** A new Space at a real upload service, and a service that has its clock. */
export async function createSpacePlace(
  agent: Signer
): Promise<{ place: SpacePlace } & AsyncDisposable> {
  await using resources = new AsyncDisposableStack()
  const storacha = resources.use(await startStoracha())
  const service = resources.use(await startTestService())
  const space = await ed25519.generate()
  await storacha.provision(space.did())
  const proofs = await allow(space, agent, BACKUP_ABILITIES)
  const { url, did, receiptsUrl } = storacha
  const owned = resources.move()
  return {
    place: {
      space: space.did(),
      proofs: encodeDelegations([proofs]),
      storacha: { url, did, receiptsUrl },
      service: { url: service.url.href, did: service.did },
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}
