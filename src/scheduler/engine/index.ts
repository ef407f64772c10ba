export { createEmbeddedEngine } from './embedded.ts'
export type * from './interface.ts'
export { openPgBossEngine } from './pg-boss.ts'
export { retryWithBackoff } from './policy.ts'
