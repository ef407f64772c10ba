/**
 * What no durable Ucanto server can do without: it reads an invocation, checks
 * its signature, commits one row, and signs a receipt. It is no clock.
 *
 * Is given a file of SQLite, or the URL of a PostgreSQL database.
 */
import * as Server from '@ucanto/server'
import { ed25519 } from '@ucanto/principal'
import { CAR } from '@ucanto/transport'
import Database from 'better-sqlite3'
import { CID } from 'multiformats/cid'
import pg from 'pg'
import { Clock } from '../src/capabilities/index.ts'
import { parseVerifier, withNativeSigning } from '../src/node/index.ts'
import { serveUcanto } from './serve-ucanto.ts'

const [store = ''] = process.argv.slice(2)
const insert = /^postgres/.test(store)
  ? await insertIntoPostgres(store)
  : insertIntoSqlite(store)
const id = withNativeSigning(await ed25519.generate())
let count = 0

await serveUcanto(
  id.did(),
  Server.create({
    id,
    codec: CAR.inbound,
    principal: { parse: parseVerifier },
    validateAuthorization: () => ({ ok: {} }),
    service: {
      clock: {
        advance: Server.provide(
          Clock.advance,
          async ({ capability, invocation }) => {
            const event = CID.parse(capability.nb.event.toString())
            await insert(`${count++}`, invocation.bytes)
            return { ok: { head: [event] } }
          }
        ),
      },
    },
  })
)

function insertIntoSqlite(path: string) {
  const database = new Database(path)
  database.pragma('journal_mode = WAL')
  database.pragma('synchronous = FULL')
  database.exec('create table rows (id text primary key, bytes blob)')
  const statement = database.prepare('insert into rows values (?, ?)')
  return (id: string, bytes: Uint8Array): unknown => statement.run(id, bytes)
}

async function insertIntoPostgres(url: string) {
  const pool = new pg.Pool({ connectionString: url, max: 10 })
  await pool.query('create table rows (id text primary key, bytes bytea)')
  return (id: string, bytes: Uint8Array): unknown =>
    pool.query({
      name: 'insert',
      text: 'insert into rows values ($1, $2)',
      values: [id, bytes],
    })
}
