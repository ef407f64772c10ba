/**
 * Hostile tenants, in a process of their own. They attack from the first line
 * on standard input until the next one, and then say what came of it.
 *
 *   node attack-process.ts TARGET
 */
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { ed25519 } from '@ucanto/principal'
import { prepareAttacks } from './attacks.ts'
import { startHostileHosts } from './hosts.ts'
import type { Attack, Target } from './world.ts'

/** Steps of one attack that may be under way. */
const UNDER_WAY = 8

const target = JSON.parse(process.argv[2] ?? '') as Target
const hosts = await startHostileHosts(target.plcUrl, [
  { malice: 'hangs', accounts: 4 },
  { malice: 'hangs', accounts: 4 },
  { malice: 'hangs', accounts: 4 },
  { malice: 'trickles', accounts: 4 },
  { malice: 'trickles', accounts: 4 },
  { malice: 'sends-junk', accounts: 2 },
  { malice: 'makes-up-blobs', accounts: 2 },
])
const attacks = await prepareAttacks({
  ...target,
  tenants: await Promise.all(
    target.provisioned.map(async (text) => ed25519.parse(text))
  ),
  freshKeys: await Promise.all(
    Array.from({ length: target.strangers }, () => ed25519.generate())
  ),
  hostileAccounts: hosts.accounts,
})
process.stdout.write('"ready"\n')
const lines = createInterface(process.stdin)[Symbol.asyncIterator]()
if ((await lines.next()).done) process.exit()
const stopping = new AbortController()
const attacking = Promise.all(attacks.map((attack) => repeat(attack)))
await lines.next()
stopping.abort()
process.stdout.write(
  `${JSON.stringify(Object.fromEntries(await attacking))}\n`,
  // Connections are open that nobody closes.
  () => process.exit()
)

/** @returns how often a step ended with what */
async function repeat(
  attack: Attack
): Promise<[string, Record<string, number>]> {
  const { name, pace } = attack
  const counts: Record<string, number> = {}
  const count = (outcome: string) => {
    counts[outcome] = (counts[outcome] ?? 0) + 1
  }
  let underWay = 0
  for (let round = 0; !stopping.signal.aborted; round++) {
    if (underWay < UNDER_WAY) {
      underWay++
      void attack
        .step(round)
        .then(count, (error: unknown) => {
          const { name, code } = error as NodeJS.ErrnoException
          count(code === undefined ? name : String(code))
        })
        .finally(() => underWay--)
    }
    await sleep(pace, undefined, { signal: stopping.signal }).catch(() => {})
  }
  return [name, counts]
}
