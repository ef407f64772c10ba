import assert from 'node:assert/strict'
import { describeKeyOfTheService } from './service-key.ts'
import { createPostgresStore, databaseServer } from './slow-stores.ts'

describe('the database of a service, on PostgreSQL', () =>
  describeKeyOfTheService(() => {
    assert.ok(databaseServer, 'run: npm run test:postgres')
    return createPostgresStore(databaseServer)
  }))
