import assert from 'node:assert/strict'
import type { Stores, StoresOptions } from '../../../src/stores/index.ts'
import { openStores } from '../../../src/stores/index.ts'

/** The part of `node:assert/strict` that contracts use. */
export interface Assert {
  ok(value: unknown, message?: string): void
  equal(actual: unknown, expected: unknown, message?: string): void
  deepEqual(actual: unknown, expected: unknown, message?: string): void
  rejects(
    promise: Promise<unknown>,
    expected: { name: string } | RegExp
  ): Promise<void>
}

/** Sentences that hold for stores on any database. */
export type Contract = Record<
  string,
  (assert: Assert, stores: Stores) => Promise<void>
>

/**
 * Sentences that hold when several have the same database open. `open` opens
 * it once more, `options` let another process open it.
 */
export type SharedContract = Record<
  string,
  (
    assert: Assert,
    open: () => Promise<Stores>,
    options: StoresOptions
  ) => Promise<void>
>

/** A database of its own for each test. */
export interface TestDatabase extends AsyncDisposable {
  options: StoresOptions
}

export function bind(
  contract: Contract,
  createDatabase: () => Promise<TestDatabase>
): void {
  for (const [sentence, test] of Object.entries(contract)) {
    it(sentence, async () => {
      await using database = await createDatabase()
      await using stores = await openStores(database.options)
      await test(assert, stores)
    })
  }
}

export function bindShared(
  contract: SharedContract,
  createDatabase: () => Promise<TestDatabase>
): void {
  for (const [sentence, test] of Object.entries(contract)) {
    it(sentence, async () => {
      await using database = await createDatabase()
      await using opened = new AsyncDisposableStack()
      const open = async () => opened.use(await openStores(database.options))
      await test(assert, open, database.options)
    })
  }
}
