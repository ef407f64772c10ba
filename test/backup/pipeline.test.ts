import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { Secp256k1Keypair } from '@atproto/crypto'
import { CarReader } from '@ipld/car/reader'
import { CarWriter } from '@ipld/car/writer'
import * as dagCBOR from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import { signingKeysIn } from '../../src/atproto/index.ts'
import {
  BlobNotFoundError,
  HostUnavailableError,
  openBackup,
  verifyBackup,
  type AccountReader,
  type Identity,
} from '../../src/backup/index.ts'
import { createNativeSha256 } from '../../src/node/index.ts'
import { listBackups } from '../../src/space/index.ts'
import { createSpaceReader } from '../../src/storacha/index.ts'
import {
  seedAccount,
  startNetwork,
  type Account,
  type Network,
} from '../network/index.ts'
import {
  chunksOf,
  collect,
  createOwner,
  createReader,
  readState,
  tampering,
  type Owner,
} from './harness.ts'

const KILOBYTE = 1024

describe('the pipeline', () => {
  let network: Network
  let alice: Account
  let owner: Owner
  let handles = 0

  before(async () => {
    network = await startNetwork()
  })

  after(async () => {
    await network[Symbol.asyncDispose]()
  })

  beforeEach(async () => {
    alice = await createAccount()
    owner = await createOwner(network)
  })

  afterEach(() => {
    Object.assign(network.storacha.faults, {
      uploadsClosed: false,
      overQuota: false,
      down: false,
      lyingGateway: false,
      failAfterBlobAdds: undefined,
    })
  })

  async function createAccount(): Promise<Account> {
    return network.pds.createAccount({ handle: `alice${handles++}.test` })
  }

  async function backups(of: Owner = owner, account = alice.did) {
    const { reader, state } = await readState(network, of)
    const listed = []
    for await (const { timestamp, backup } of listBackups(
      reader,
      state,
      account as never
    )) {
      const opened = await openBackup(reader, backup, {
        createSha256: createNativeSha256,
      })
      listed.push({ timestamp, opened })
    }
    return listed
  }

  async function assertVerified(of: Owner = owner, account = alice.did) {
    const listed = await backups(of, account)
    for (const { opened } of listed) {
      const { problems } = await verifyBackup(opened, { keys: signingKeysIn })
      assert.deepEqual(problems, [])
    }
    return listed
  }

  describe('with an honest host', () => {
    it('backs up what the host serves, block for block', async () => {
      await seedAccount(alice.agent, {
        posts: 60,
        likes: 30,
        follows: 20,
        blobs: [10, KILOBYTE, 1_300_000, 5_300_000],
      })
      const outcome = await owner.backUp(alice.handle)
      assert.equal(outcome.kind, 'first')
      assert.equal(outcome.records, 114)
      assert.equal(outcome.blobsUploaded, 4)
      assert.equal(outcome.signature, 'current')

      const [backup] = await assertVerified()
      assert.ok(backup)
      const served = await CarReader.fromBytes(
        await collect(await owner.context.accounts.repo(await identity(alice)))
      )
      const ours = await CarReader.fromBytes(await collect(backup.opened.car()))
      assert.deepEqual(await ours.getRoots(), await served.getRoots())
      assert.deepEqual(await cidsIn(ours), await cidsIn(served))
      for await (const [cid, root] of backup.opened.blobs()) {
        const expected = await collect(
          await owner.context.accounts.blob(await identity(alice), cid)
        )
        assert.deepEqual(await collect(backup.opened.blob(cid, root)), expected)
      }
    })

    it('adds only what is new', async () => {
      await seedAccount(alice.agent, { posts: 300, blobs: [50_000, 60_000] })
      const first = await owner.backUp(alice.did)
      await alice.agent.post({ text: 'one more' })
      const second = await owner.backUp(alice.did)
      assert.equal(second.kind, 'incremental')
      assert.equal(second.records, 1)
      assert.equal(second.blobsUploaded, 0)
      assert.ok(second.bytesUploaded * 8 < first.bytesUploaded)
      const listed = await assertVerified()
      assert.equal(listed.length, 2)
    })

    it('keeps the earlier backup when posts are deleted', async () => {
      const post = await alice.agent.post({ text: 'to be deleted' })
      await seedAccount(alice.agent, { posts: 50 })
      await owner.backUp(alice.did)
      await alice.agent.deletePost(post.uri)
      await owner.backUp(alice.did)
      const [before, after] = await assertVerified()
      assert.ok(before && after)
      assert.equal(await recordsIn(before.opened), 51)
      assert.equal(await recordsIn(after.opened), 50)
    })

    it('does nothing when nothing is new', async () => {
      await seedAccount(alice.agent, { posts: 5, blobs: [100] })
      const first = await owner.backUp(alice.did)
      const state = await owner.state()
      const again = await owner.backUp(alice.did)
      assert.equal(again.kind, 'unchanged')
      assert.equal(again.timestamp, first.timestamp)
      assert.equal(again.event, undefined)
      assert.equal(again.requests, 0)
      assert.deepEqual(await owner.state(), state)
    })

    it('gets along with an empty account', async () => {
      const outcome = await owner.backUp(alice.did)
      assert.equal(outcome.records, 0)
      await assertVerified()
    })

    it('keeps several accounts in one Space', async () => {
      const bob = await createAccount()
      await seedAccount(alice.agent, { posts: 3 })
      await seedAccount(bob.agent, { posts: 4, blobs: [1000] })
      await owner.backUp(alice.did)
      await owner.backUp(bob.did)
      assert.equal((await assertVerified(owner, alice.did)).length, 1)
      assert.equal((await assertVerified(owner, bob.did)).length, 1)
    })

    it('merges with another agent that backs up at the same time', async () => {
      const bob = await createAccount()
      await seedAccount(alice.agent, { posts: 3 })
      await seedAccount(bob.agent, { posts: 3 })
      await Promise.all([owner.backUp(alice.did), owner.backUp(bob.did)])
      assert.equal((await assertVerified(owner, alice.did)).length, 1)
      assert.equal((await assertVerified(owner, bob.did)).length, 1)
      assert.equal(owner.clock.heads.length, 1)
    })

    it('leaves a head in place that it cannot read, and says so', async () => {
      await seedAccount(alice.agent, { posts: 3 })
      await owner.backUp(alice.did)
      const bad = CID.parse(
        'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
      ) as never
      owner.clock.heads.push(bad)
      const before = owner.clock.advances
      await alice.agent.post({ text: 'more' })
      const { kind } = await owner.backUp(alice.did)
      assert.equal(kind, 'incremental')
      assert.equal(owner.clock.advances, before + 1)
      assert.equal(owner.clock.heads.length, 2)
      assert.ok(owner.clock.heads.includes(bad))
      assert.ok(owner.warnings.some((warning) => warning.includes(`${bad}`)))
    })

    it('reads a backup back in few requests', async () => {
      await seedAccount(alice.agent, { posts: 1500 })
      await owner.backUp(alice.did)
      const [backup] = await backups()
      assert.ok(backup)
      network.storacha.stats.reset()
      assert.equal(await recordsIn(backup.opened), 1500)
      assert.ok(network.storacha.stats.requests <= 5)
    })

    it('leaves blobs out when told, and adds them later', async () => {
      await seedAccount(alice.agent, { posts: 3, blobs: [1000, 2000] })
      const without = await owner.backUp(alice.did, { parts: [] })
      assert.equal(without.blobsUploaded, 0)
      const later = await owner.backUp(alice.did)
      assert.equal(later.kind, 'incremental')
      assert.equal(later.blobsUploaded, 2)
      assert.equal((await owner.backUp(alice.did)).kind, 'unchanged')
      await assertVerified()
    })

    it('tells how far it is', async () => {
      await seedAccount(alice.agent, { posts: 3, blobs: [1000] })
      const stages = new Set<string>()
      await owner.backUp(alice.did, {
        onProgress: ({ stage }) => stages.add(stage),
      })
      assert.deepEqual(
        [...stages],
        ['resolve', 'read', 'verify', 'blobs', 'upload', 'record', 'advance']
      )
    })

    it('takes a commit signed with an earlier key, and marks it', async () => {
      await seedAccount(alice.agent, { posts: 3 })
      const rotated = (await Secp256k1Keypair.create()).did() as never
      const outcome = await owner.backUp(alice.did, {
        with: {
          identities: {
            resolve: async () => {
              const now = await identity(alice)
              return {
                ...now,
                signingKey: rotated,
                previousSigningKeys: [rotated, now.signingKey],
              }
            },
          },
        },
      })
      assert.equal(outcome.signature, 'previous')
    })
  })

  describe('blobs that cannot be had', () => {
    it('are noted with their reason and fetched when they are back', async () => {
      const { blobs } = await seedAccount(alice.agent, {
        posts: 2,
        blobs: [1000, 2000],
      })
      const [gone] = blobs
      assert.ok(gone)
      await network.pds.takedownBlob(alice.did, gone.cid)
      const first = await owner.backUp(alice.did)
      assert.equal(first.blobsMissing, 1)
      assert.equal(first.blobsUploaded, 1)
      assert.deepEqual(await missing(), [[gone.cid, 'not-found']])

      const again = await owner.backUp(alice.did)
      assert.equal(again.kind, 'unchanged')

      await network.pds.takedownBlob(alice.did, gone.cid, false)
      const back = await owner.backUp(alice.did)
      assert.equal(back.kind, 'incremental')
      assert.equal(back.blobsUploaded, 1)
      assert.deepEqual(await missing(), [])
      await assertVerified()
    })

    it('are too large', async () => {
      const { blobs } = await seedAccount(alice.agent, { blobs: [5000, 100] })
      const outcome = await owner.backUp(alice.did, {
        with: { limits: { ...owner.context.limits, maxBlobSize: 1000 } },
      })
      assert.equal(outcome.blobsUploaded, 1)
      assert.deepEqual(await missing(), [[blobs[0]?.cid, 'too-large']])
    })

    it('are other bytes than asked for', async () => {
      const { blobs } = await seedAccount(alice.agent, {
        blobs: [500, 1_500_000],
      })
      const outcome = await owner.backUp(alice.did, {
        with: {
          accounts: tampering(owner.context.accounts, {
            blob: async () => chunksOf(new Uint8Array(1_500_000)),
          }),
        },
      })
      assert.equal(outcome.blobsMissing, 0)
      assert.equal(outcome.blobsFailed, 2)
      assert.ok(outcome.bytesRead >= outcome.repoBytes + 3_000_000)
      assert.deepEqual(
        await missing(),
        blobs.map(({ cid }) => [cid, 'wrong-hash']).sort()
      )
    })

    it('fail, are withheld, or have no CID that can be checked', async () => {
      await seedAccount(alice.agent, { posts: 1, blobs: [500] })
      const strange = [
        'not a cid\u0000',
        'bafkqabtimvwgy3yk',
        'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku',
      ]
      const outcome = await owner.backUp(alice.did, {
        with: {
          accounts: tampering(owner.context.accounts, {
            async *blobs() {
              yield* strange
            },
            blob: async () => {
              throw new BlobNotFoundError('gone')
            },
          }),
        },
      })
      assert.equal(outcome.blobsMissing, 2)
      assert.equal(outcome.blobsFailed, 2)
      assert.deepEqual(
        new Set((await missing()).map(([, why]) => why)),
        new Set(['failed', 'not-found'])
      )
    })

    it('are found in the records of a host that does not list them', async () => {
      await seedAccount(alice.agent, { posts: 1, blobs: [500, 600, 700] })
      const outcome = await owner.backUp(alice.did, {
        with: {
          accounts: tampering(owner.context.accounts, {
            // eslint-disable-next-line require-yield
            async *blobs() {
              throw new Error('no list today')
            },
          }),
        },
      })
      assert.equal(outcome.blobsUploaded, 3)
      assert.equal(owner.warnings.length, 1)
      await assertVerified()
    })

    async function missing() {
      const listed = await backups()
      const found: [string, string][] = []
      const last = listed.at(-1)
      assert.ok(last)
      for await (const [cid, { reason }] of last.opened.missing()) {
        found.push([cid, reason])
      }
      return found.sort()
    }
  })

  describe('a run with many blocks', () => {
    const small = () => ({
      limits: {
        ...owner.context.limits,
        shardSize: 32 * KILOBYTE,
        indexSize: 40,
      },
    })

    it('publishes indexes while it stores shards', async () => {
      await seedAccount(alice.agent, { posts: 300, blobs: [90_000, 80_000] })
      const { writer } = owner.context
      const contents: string[] = []
      const watching = {
        ...writer,
        get requests() {
          return writer.requests
        },
        publishIndex: async (
          ...[index, options]: Parameters<typeof writer.publishIndex>
        ) => {
          contents.push(index.content.toString())
          return writer.publishIndex(index, options)
        },
      }
      const { commit, backup } = await owner.backUp(alice.did, {
        with: { ...small(), writer: watching },
      })
      assert.ok(contents.length > 2)
      assert.deepEqual([...new Set(contents)], [commit, backup])
      await assertVerified()
    })

    it('fails when an index is refused', async () => {
      await seedAccount(alice.agent, { posts: 300 })
      const { writer } = owner.context
      const failing = {
        ...writer,
        get requests() {
          return writer.requests
        },
        publishIndex: async () => {
          throw new Error('no index today')
        },
      }
      await assert.rejects(
        owner.backUp(alice.did, { with: { ...small(), writer: failing } }),
        /no index today/
      )
      assert.equal(owner.clock.heads.length, 0)
      await owner.backUp(alice.did, { with: small() })
      await assertVerified()
    })
  })

  describe('a run that is interrupted', () => {
    const small = () => ({
      limits: { ...owner.context.limits, shardSize: 64 * KILOBYTE },
    })

    it('is resumed without uploading again what the Space has', async () => {
      await seedAccount(alice.agent, {
        posts: 400,
        blobs: Array.from({ length: 8 }, (_, index) => 40_000 + index),
      })
      const { writer } = owner.context
      let puts = 0
      const failing = {
        ...writer,
        get requests() {
          return writer.requests
        },
        putShard: async (...shard: Parameters<typeof writer.putShard>) => {
          if (++puts > 4) throw new Error('the power is gone')
          return writer.putShard(...shard)
        },
      }
      await assert.rejects(
        owner.backUp(alice.did, { with: { ...small(), writer: failing } }),
        /power/
      )
      assert.equal(owner.clock.heads.length, 0)
      const uploaded = new Set(
        owner.journal.entries.flatMap(({ shard }) =>
          (shard?.slices ?? []).map(({ digest }) => digest.join())
        )
      )
      assert.ok(uploaded.size > 0)

      const again: string[] = []
      const watching = {
        ...writer,
        get requests() {
          return writer.requests
        },
        putShard: async (
          ...[shard, options]: Parameters<typeof writer.putShard>
        ) => {
          const car = await CarReader.fromBytes(shard.bytes)
          for await (const { cid } of car.blocks()) {
            again.push(cid.multihash.digest.join())
          }
          return writer.putShard(shard, options)
        },
      }
      await owner.backUp(alice.did, { with: { ...small(), writer: watching } })
      assert.deepEqual(
        again.filter((digest) => uploaded.has(digest)),
        []
      )
      assert.deepEqual(owner.journal.entries, [])
      await assertVerified()
    })

    describe('by a host that is to be left alone', () => {
      const refused = new HostUnavailableError('not now', { retryAfter: 9 })
      const asked: string[] = []

      /** A host that gives so many blobs. */
      const giving = (count: number) =>
        tampering(owner.context.accounts, {
          async blob(identity, cid, options) {
            if (count-- <= 0) throw refused
            asked.push(cid)
            return owner.context.accounts.blob(identity, cid, options)
          },
        })

      beforeEach(async () => {
        asked.length = 0
        await seedAccount(alice.agent, {
          posts: 3,
          blobs: [1000, 2000, 3000, 4000],
        })
      })

      it('has kept what the host gave', async () => {
        await assert.rejects(
          owner.backUp(alice.did, { with: { accounts: giving(2) } }),
          refused
        )
        assert.equal(owner.clock.heads.length, 0)
        const kept = owner.journal.entries.flatMap(({ blobs }) => blobs)
        assert.deepEqual(kept.map(([cid]) => cid).sort(), asked.toSorted())
        const { blobsMissing } = await owner.backUp(alice.did, {
          with: { accounts: giving(Infinity) },
        })
        assert.equal(blobsMissing, 0)
        assert.equal(asked.length, 4)
        assert.equal(new Set(asked).size, 4)
        await assertVerified()
      })

      it('says what could not be kept', async () => {
        network.storacha.faults.uploadsClosed = true
        await assert.rejects(
          owner.backUp(alice.did, { with: { accounts: giving(2) } }),
          refused
        )
        assert.match(owner.warnings.join(), /could not be kept/)
        network.storacha.faults.uploadsClosed = false
        await owner.backUp(alice.did)
        await assertVerified()
      })

      it('does not go on without the list of blobs', async () => {
        const accounts = tampering(owner.context.accounts, {
          // eslint-disable-next-line require-yield
          async *blobs() {
            throw refused
          },
        })
        await assert.rejects(
          owner.backUp(alice.did, { with: { accounts } }),
          refused
        )
        assert.equal(owner.clock.heads.length, 0)
      })
    })

    it('ends soon when it is stopped, and goes on later', async () => {
      await seedAccount(alice.agent, { posts: 100, blobs: [90_000, 80_000] })
      const stop = new AbortController()
      const reason = new Error('the user has had enough')
      await assert.rejects(
        owner.backUp(alice.did, {
          with: small(),
          signal: stop.signal,
          onProgress: ({ bytesUploaded }) => {
            if (bytesUploaded > 0) stop.abort(reason)
          },
        }),
        reason
      )
      assert.equal(owner.clock.heads.length, 0)
      await owner.backUp(alice.did, { with: small() })
      await assertVerified()
    })

    it('may fail with uploads that wait for their turn', async () => {
      await seedAccount(alice.agent, {
        posts: 2,
        blobs: Array.from({ length: 20 }, () => 60_000 + handles++),
      })
      network.storacha.faults.uploadsClosed = true
      await assert.rejects(owner.backUp(alice.did, { with: small() }), {
        name: 'SpaceUnavailableError',
      })
    })
  })

  describe('with a host that is not honest', () => {
    interface Bad {
      name: string
      error: string
      tamper: (
        accounts: AccountReader,
        account: Account
      ) => Promise<Partial<AccountReader>>
    }

    const rows: Bad[] = [
      {
        name: 'something that is not a CAR',
        error: 'InvalidRepoError',
        tamper: replaceRepo(async () =>
          new TextEncoder().encode('<html>no</html>')
        ),
      },
      {
        name: 'nothing',
        error: 'InvalidRepoError',
        tamper: replaceRepo(async () => new Uint8Array()),
      },
      {
        name: 'a CAR that is cut off',
        error: 'InvalidRepoError',
        tamper: replaceRepo(async (car) => car.subarray(0, car.length - 7)),
      },
      {
        name: 'a block with other bytes',
        error: 'InvalidRepoError',
        tamper: replaceRepo(async (car) => {
          const changed = car.slice()
          const last = changed.length - 1
          changed[last] = (changed[last] ?? 0) ^ 1
          return changed
        }),
      },
      {
        name: 'a CAR without one of the blocks',
        error: 'IncompleteRepoError',
        tamper: replaceRepo((car) =>
          rewrite(car, (blocks) => blocks.slice(0, -1))
        ),
      },
      {
        name: 'a CAR without the commit',
        error: 'IncompleteRepoError',
        tamper: replaceRepo((car) => rewrite(car, (blocks) => blocks.slice(1))),
      },
      {
        name: 'a commit that somebody else has signed',
        error: 'InvalidRepoError',
        tamper: replaceRepo((car) => resign(car, {})),
      },
      {
        name: "another account's commit",
        error: 'InvalidRepoError',
        tamper: replaceRepo((car) =>
          resign(car, { did: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz' })
        ),
      },
      {
        name: 'a repository that never ends',
        error: 'InvalidRepoError',
        tamper: async () => ({
          repo: async () => endless(),
        }),
      },
    ]

    for (const { name, error, tamper } of rows) {
      it(`refuses ${name}`, async () => {
        await seedAccount(alice.agent, { posts: 20, blobs: [1000] })
        const { accounts } = owner.context
        const changes = await tamper(accounts, alice)
        const state = await owner.state()
        await assert.rejects(
          owner.backUp(alice.did, {
            with: { accounts: tampering(accounts, changes) },
          }),
          { name: error }
        )
        assert.deepEqual(await owner.state(), state)
        assert.equal((await owner.backUp(alice.did)).kind, 'first')
        await assertVerified()
      })
    }

    it('reads again what changed while it was read', async () => {
      await seedAccount(alice.agent, { posts: 40 })
      await owner.backUp(alice.did)
      await alice.agent.post({ text: 'new' })
      const { accounts } = owner.context
      let reads = 0
      const since: (string | undefined)[] = []
      const outcome = await owner.backUp(alice.did, {
        with: {
          accounts: tampering(accounts, {
            repo: async (who, options) => {
              since.push(options?.since)
              const car = await collect(await accounts.repo(who, options))
              return chunksOf(
                ++reads < 3
                  ? await rewrite(car, (blocks) => blocks.slice(0, -1))
                  : car
              )
            },
          }),
        },
      })
      assert.equal(outcome.kind, 'incremental')
      assert.equal(since.length, 3)
      assert.ok(since[0] && since[1])
      assert.equal(since[2], undefined)
      await assertVerified()
    })

    it('gives a host up that hangs, and reads the account the next time', async () => {
      const server = createServer(() => {})
      server.listen(0, '127.0.0.1')
      await once(server, 'listening')
      const { port } = server.address() as AddressInfo
      const patient = await createOwner(network, {
        safeFetch: {
          small: { timeout: 300 },
          stream: { headTimeout: 300, idleTimeout: 300 },
        },
      })
      const { identities } = patient.context
      await assert.rejects(
        patient.backUp(alice.did, {
          with: {
            identities: {
              resolve: async (account) => ({
                ...(await identities.resolve(account)),
                pds: new URL(`http://127.0.0.1:${port}`),
              }),
            },
          },
        }),
        { name: 'HostError' }
      )
      server.closeAllConnections()
      server.close()
      assert.equal((await patient.backUp(alice.did)).kind, 'first')
    })

    it('does not go to private addresses unless it may', async () => {
      const careful = await createOwner(network, {
        safeFetch: { allowPrivateNetwork: false },
      })
      await assert.rejects(
        careful.backUp(alice.did, {
          with: { identities: owner.context.identities },
        }),
        { name: 'ForbiddenAddressError' }
      )
    })

    it('says that an account is taken down', async () => {
      await network.pds.takedownAccount(alice.did)
      await assert.rejects(owner.backUp(alice.did), {
        name: 'AccountUnavailableError',
      })
      await network.pds.takedownAccount(alice.did, false)
      assert.equal((await owner.backUp(alice.did)).kind, 'first')
    })
  })

  describe('with a Space that does not take or give', () => {
    const faults = {
      uploadsClosed: 'SpaceUnavailableError',
      down: 'SpaceUnavailableError',
      overQuota: 'SpaceQuotaError',
    } as const

    for (const [fault, error] of Object.entries(faults)) {
      it(`tells of ${fault} as ${error}`, async () => {
        await seedAccount(alice.agent, { posts: 10, blobs: [1000] })
        Object.assign(network.storacha.faults, { [fault]: true })
        await assert.rejects(owner.backUp(alice.did), { name: error })
        Object.assign(network.storacha.faults, { [fault]: false })
        assert.deepEqual((await owner.state()).head, [])
        assert.equal((await owner.backUp(alice.did)).kind, 'first')
        await assertVerified()
      })
    }

    it('tells of a delegation that does not suffice', async () => {
      const poor = await createOwner(network, { abilities: ['upload/add'] })
      await assert.rejects(poor.backUp(alice.did), {
        name: 'SpaceUnauthorizedError',
      })
    })

    it('stops in the middle when the upload service closes', async () => {
      await seedAccount(alice.agent, { posts: 10 })
      network.storacha.faults.failAfterBlobAdds = 1
      await assert.rejects(owner.backUp(alice.did), {
        name: 'SpaceUnavailableError',
      })
      network.storacha.faults.failAfterBlobAdds = undefined
      assert.deepEqual(owner.clock.heads, [])
      await owner.backUp(alice.did)
      await assertVerified()
    })

    it('does not believe a gateway that lies', async () => {
      await seedAccount(alice.agent, { posts: 10 })
      await owner.backUp(alice.did)
      await alice.agent.post({ text: 'new' })
      network.storacha.faults.lyingGateway = true
      const state = await owner.state()
      await assert.rejects(
        owner.backUp(alice.did, { with: { reader: createReader(network) } }),
        { name: 'GatewayError' }
      )
      assert.deepEqual(await owner.state(), state)
      network.storacha.faults.lyingGateway = false
      const again = await owner.backUp(alice.did, {
        with: { reader: createReader(network) },
      })
      assert.equal(again.kind, 'incremental')
    })

    it('asks the next gateway when one lies', async () => {
      await seedAccount(alice.agent, { posts: 10 })
      await owner.backUp(alice.did)
      const liar = createServer((_request, response) => {
        response.end('a lie')
      })
      liar.listen(0, '127.0.0.1')
      await once(liar, 'listening')
      const { port } = liar.address() as AddressInfo
      await alice.agent.post({ text: 'new' })
      const outcome = await owner.backUp(alice.did, {
        with: {
          reader: createSpaceReader({
            gateways: [
              new URL(`http://127.0.0.1:${port}`),
              new URL(network.storacha.url),
            ],
            fetch: globalThis.fetch,
            createSha256: createNativeSha256,
          }),
        },
      })
      liar.close()
      assert.equal(outcome.kind, 'incremental')
    })
  })

  describe('checking a backup', () => {
    it('finds bytes that are not those of the backup', async () => {
      await seedAccount(alice.agent, { posts: 20, blobs: [1000, 1_200_000] })
      await owner.backUp(alice.did)
      const [backup] = await backups()
      assert.ok(backup)
      network.storacha.faults.lyingGateway = true
      const { problems } = await verifyBackup(backup.opened, {
        keys: signingKeysIn,
      })
      assert.ok(problems.some(({ subject }) => subject === 'repository'))
      network.storacha.faults.lyingGateway = false
    })

    it('finds a signature by a key that is not the account’s', async () => {
      await owner.backUp(alice.did)
      const [backup] = await backups()
      assert.ok(backup)
      const stranger = (await Secp256k1Keypair.create()).did() as never
      const { problems } = await verifyBackup(backup.opened, {
        keys: async () => ({ signingKey: stranger, previousSigningKeys: [] }),
      })
      assert.deepEqual(
        problems.map(({ subject }) => subject),
        ['commit']
      )
    })
  })

  async function identity(account: Account): Promise<Identity> {
    return owner.context.identities.resolve(account.did)
  }
})

async function recordsIn(
  backup: Awaited<ReturnType<typeof openBackup>>
): Promise<number> {
  let records = 0
  for await (const { kind } of backup.repo()) if (kind === 'record') records++
  return records
}

async function cidsIn(car: CarReader): Promise<Set<string>> {
  const cids = new Set<string>()
  for await (const cid of car.cids()) cids.add(cid.toString())
  return cids
}

/** A host that answers with what is made of the real repository. */
function replaceRepo(make: (car: Uint8Array) => Promise<Uint8Array>) {
  return async (accounts: AccountReader): Promise<Partial<AccountReader>> => ({
    repo: async (identity, options) =>
      chunksOf(
        await make(await collect(await accounts.repo(identity, options)))
      ),
  })
}

type CarBlocks = { cid: CID; bytes: Uint8Array }[]

async function rewrite(
  car: Uint8Array,
  change: (blocks: CarBlocks) => CarBlocks,
  root?: CID
): Promise<Uint8Array> {
  const reader = await CarReader.fromBytes(car)
  const blocks: CarBlocks = []
  for await (const { cid, bytes } of reader.blocks()) {
    blocks.push({ cid: cid, bytes })
  }
  const roots = root ? [root] : await reader.getRoots()
  const { writer, out } = CarWriter.create(roots)
  const written = collect(out)
  for (const block of change(blocks)) await writer.put(block)
  await writer.close()
  return written
}

/** The commit with other fields, signed by a key that is not the account's. */
async function resign(
  car: Uint8Array,
  fields: Record<string, unknown>
): Promise<Uint8Array> {
  const reader = await CarReader.fromBytes(car)
  const [root] = await reader.getRoots()
  const commit = root && (await reader.get(root))
  assert.ok(commit)
  const mallory = await Secp256k1Keypair.create()
  const { sig: _sig, ...unsigned } = {
    ...dagCBOR.decode<Record<string, unknown>>(commit.bytes),
    ...fields,
  }
  const sig = await mallory.sign(dagCBOR.encode(unsigned))
  const bytes = dagCBOR.encode({ ...unsigned, sig })
  const cid = CID.createV1(dagCBOR.code, await sha256.digest(bytes))
  return rewrite(car, (blocks) => [{ cid, bytes }, ...blocks], cid)
}

/** A CAR whose first block has a length that nothing could hold. */
async function* endless(): AsyncGenerator<Uint8Array> {
  const header = dagCBOR.encode({ version: 1, roots: [] })
  yield Uint8Array.of(header.length)
  yield header
  yield Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0x0f)
  for (;;) yield new Uint8Array(64 * 1024)
}
