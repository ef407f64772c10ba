import { describeKeyOfTheService } from './service-key.ts'
import { createEmbeddedStore } from './slow-stores.ts'

describe('the database of a service, on SQLite', () =>
  describeKeyOfTheService(createEmbeddedStore))
