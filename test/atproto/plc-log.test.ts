import assert from 'node:assert/strict'
import { P256Keypair, Secp256k1Keypair } from '@atproto/crypto'
import type { Keypair } from '@atproto/crypto'
import * as plc from '@did-plc/lib'
import { InvalidPlcLogError, verifyPlcLog } from '../../src/atproto/plc-log.ts'

type Operation = plc.CompatibleOpOrTombstone

const toLog = (operations: Operation[], nullified: Operation[] = []) =>
  JSON.stringify(
    operations.map((operation) => ({
      operation,
      nullified: nullified.includes(operation),
    }))
  )

describe('PLC log', () => {
  let alice: Keypair
  let recovery: Keypair
  let mallory: Keypair
  let keys: string[]
  let did: string
  let genesis: plc.Operation

  before(async () => {
    alice = await Secp256k1Keypair.create()
    recovery = await P256Keypair.create()
    mallory = await Secp256k1Keypair.create()
    keys = await Promise.all(
      [0, 1, 2].map(async () => (await Secp256k1Keypair.create()).did())
    )
    const created = await plc.createOp({
      signingKey: keys[0]!,
      handle: 'alice.test',
      pds: 'https://pds.test',
      rotationKeys: [recovery.did(), alice.did()],
      signer: alice,
    })
    did = created.did
    genesis = created.op
  })

  const update = (last: plc.CompatibleOp, key: string, signer: Keypair) =>
    plc.updateAtprotoKeyOp(last, signer, key)

  const refuses = async (log: string, cause?: RegExp) =>
    assert.rejects(verifyPlcLog(did, log), (error: Error) => {
      assert.ok(error instanceof InvalidPlcLogError)
      if (cause) assert.match((error.cause as Error).message, cause)
      return true
    })

  it('gives the signing keys in their order', async () => {
    const second = await update(genesis, keys[1]!, alice)
    const third = await update(second, keys[2]!, recovery)
    const log = toLog([genesis, second, third])
    assert.deepEqual(await verifyPlcLog(did, log), keys)
  })

  it('verifies a log that begins in the old format', async () => {
    const first = await plc.deprecatedSignCreate(
      {
        type: 'create',
        signingKey: alice.did(),
        recoveryKey: recovery.did(),
        handle: 'alice.test',
        service: 'https://pds.test',
        prev: null,
      },
      alice
    )
    const old = await plc.didForCreateOp(first)
    const second = await update(first, keys[1]!, recovery)
    const log = toLog([first, second])
    assert.deepEqual(await verifyPlcLog(old, log), [alice.did(), keys[1]])
  })

  it('follows the chain that recovery made, without what it nullified', async () => {
    const stolen = await update(genesis, mallory.did(), alice)
    const recovered = await update(genesis, keys[1]!, recovery)
    const log = toLog([genesis, stolen, recovered], [stolen])
    assert.deepEqual(await verifyPlcLog(did, log), [keys[0], keys[1]])
    await refuses(toLog([genesis, stolen, recovered]), /does not follow/)
  })

  it('verifies operations with fields that it does not know', async () => {
    const { sig: _, ...unsigned } = await update(genesis, keys[1]!, alice)
    const signed = await plc.addSignature({ ...unsigned, color: 'blue' }, alice)
    const log = toLog([genesis, signed])
    assert.deepEqual(await verifyPlcLog(did, log), [keys[0], keys[1]])
  })

  it('takes an account without a signing key', async () => {
    const second = await plc.createUpdateOp(genesis, alice, (operation) => ({
      ...operation,
      verificationMethods: {},
    }))
    assert.deepEqual(await verifyPlcLog(did, toLog([genesis, second])), [
      keys[0],
    ])
  })

  it('refuses the log of another account', async () => {
    const { op } = await plc.createOp({
      signingKey: keys[0]!,
      handle: 'mallory.test',
      pds: 'https://pds.test',
      rotationKeys: [mallory.did()],
      signer: mallory,
    })
    await refuses(toLog([op]), /does not hash to the DID/)
  })

  it('refuses an operation that is signed by somebody else', async () => {
    const second = await update(genesis, keys[1]!, mallory)
    await refuses(toLog([genesis, second]), /not signed by a key/)
  })

  it('refuses an operation that is signed by a key of a later one', async () => {
    const second = await plc.updateRotationKeysOp(genesis, alice, [
      mallory.did(),
    ])
    const third = await update(second, keys[2]!, alice)
    await refuses(toLog([genesis, second, third]), /not signed by a key/)
  })

  it('refuses an operation that was changed', async () => {
    const second = await update(genesis, keys[1]!, alice)
    second.verificationMethods['atproto'] = mallory.did()
    await refuses(toLog([genesis, second]), /not signed by a key/)
  })

  it('refuses a log with a gap', async () => {
    const second = await update(genesis, keys[1]!, alice)
    const third = await update(second, keys[2]!, alice)
    await refuses(toLog([genesis, third]), /does not follow/)
    await refuses(toLog([second, third]), /does not follow/)
  })

  it('refuses what follows a tombstone', async () => {
    const { cid } = await plc.getLastOpWithCid([genesis])
    const tombstone = await plc.tombstoneOp(cid, alice)
    assert.deepEqual(await verifyPlcLog(did, toLog([genesis, tombstone])), [
      keys[0],
    ])
    const last = await plc.getLastOpWithCid([genesis, tombstone])
    const { sig: _, ...unsigned } = genesis
    const third = await plc.signOperation(
      { ...unsigned, prev: last.cid.toString() },
      alice
    )
    await refuses(toLog([genesis, tombstone, third]), /not signed by a key/)
  })

  it('refuses a second first operation', async () => {
    await refuses(toLog([genesis, genesis]), /does not follow/)
  })

  for (const [what, log] of [
    ['nothing', ''],
    ['HTML', '<html>'],
    ['an empty log', '[]'],
    ['an object', '{}'],
    ['a log of nothing', '[null]'],
    ['an operation of no type', '[{"nullified":false,"operation":{}}]'],
    ['a log of another shape', '[{"nullified":1}]'],
  ] as const) {
    it(`refuses ${what}`, () => refuses(log))
  }

  it('refuses a log of which nothing is in force', async () => {
    await refuses(toLog([genesis], [genesis]), /no operation/i)
  })

  it('refuses a signature that is no base64url', async () => {
    await refuses(toLog([{ ...genesis, sig: '!!' }]))
  })

  it('lets others work while it verifies', async () => {
    let ticks = 0
    const timer = setInterval(() => ticks++, 0)
    const operations = [genesis]
    for (let index = 0; index < 30; index++) {
      operations.push(await update(operations.at(-1)!, keys[index % 3]!, alice))
    }
    ticks = 0
    await verifyPlcLog(did, toLog(operations))
    clearInterval(timer)
    assert.ok(ticks > 10, `${ticks} ticks`)
  })
})
